"""An agent whose database goes away, or whose acknowledgements are lost."""

import contextlib
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from agent_rig import AgentRig, Training, thread_launcher
from job_moves import lead
from sqlalchemy import Engine

from zhub.database.sessions import make_engine
from zhub.embedded.postgres import Urls
from zhub.errors import UnavailableError
from zhub.process.wakeup import PollingWakeup
from zhub_workers.agent.loop import Agent


@pytest.fixture
def far_engine(proxy: Any, database: Urls) -> Iterator[Engine]:
    """The same database behind the proxy."""
    engine = make_engine(proxy.url(database.system), pool_size=2)
    yield engine
    engine.dispose()


def test_an_agent_whose_database_was_away_goes_on(
    rig: AgentRig,
    job_id: uuid.UUID,
    training: Training,
    proxy: Any,
    far_engine: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = Agent(rig.settings, far_engine, thread_launcher(training))
    rig.drive(agent, job_id, "running")
    stopping = threading.Event()

    def pause(_seconds: float) -> None:
        stopping.wait(0.01)

    thread = threading.Thread(target=agent.run, args=(PollingWakeup(pause), stopping))
    proxy.cut()
    thread.start()
    try:
        rig.until(lambda: "the database does not answer" in caplog.text)
        training.finish.set()
        proxy.mend()
        rig.until(lambda: rig.job(job_id).state == "succeeded")
    finally:
        stopping.set()
        thread.join(timeout=15)
    assert (rig.attempts(job_id), rig.versions()) == ([(1, "succeeded")], 1)


@pytest.mark.parametrize("after", range(8))
def test_a_job_makes_one_version_whichever_acknowledgement_is_lost(
    rig: AgentRig, job_id: uuid.UUID, training: Training, proxy: Any, far_engine: Engine, after: int
) -> None:
    training.finish.set()
    agent = Agent(rig.settings, far_engine, thread_launcher(training))
    agent._announce()
    lead(rig.engine)
    proxy.swallow_commits(after=after)

    def succeeded() -> bool:
        with contextlib.suppress(UnavailableError):
            rig.round(agent)
        return rig.job(job_id).state == "succeeded"

    rig.until(succeeded)
    outcomes = [outcome for _fence, outcome in rig.attempts(job_id)]
    assert rig.versions() == outcomes.count("succeeded") == 1
    assert set(outcomes) <= {"succeeded", "lost"}
