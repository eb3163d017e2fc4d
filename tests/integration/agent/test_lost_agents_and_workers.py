"""Agents and workers that go away: what the next agent adopts, frees, gives back and leaves alone."""

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from agent_rig import AgentRig, Training, thread_launcher
from claims import claim_one
from job_moves import lead
from sqlalchemy import select, text

from zhub.database.sessions import system_session
from zhub.models import JobEvent
from zhub.process.wakeup import SCHEDULER, PollingWakeup, job_topic
from zhub.tenancy.keys import Caller
from zhub_workers.agent.launcher import ThreadLauncher, WorkerLostError
from zhub_workers.agent.loop import Agent
from zhub_workers.attempts.attempt import Attempt, AttemptKey
from zhub_workers.worker import light_runner


def test_a_finished_job_is_published_once(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    training.finish.set()
    rig.drive(running[0], job_id, "succeeded")
    for _ in range(3):
        rig.round(running[0])
    assert (rig.versions(), rig.attempts(job_id)) == (1, [(1, "succeeded")])


def test_the_next_agent_adopts_what_the_last_one_began(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    second = rig.agent(running[1])
    rig.round(second)
    training.finish.set()
    adopted = rig.drive(second, job_id, "succeeded")
    assert (adopted.agent_id, training.runs) == (second.id, [AttemptKey(job_id, 1)])
    assert rig.attempts(job_id) == [(1, "succeeded")]


def test_a_worker_that_was_dead_before_the_job_came_is_not_its_fault(rig: AgentRig, job_id: uuid.UUID) -> None:
    died: dict[AttemptKey, str] = {}

    class Dead(ThreadLauncher):
        def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
            died[attempt.key] = f"node-{attempt.key.fence}"
            raise WorkerLostError("the worker died")

        def died_on(self, key: AttemptKey) -> str | None:
            return died.pop(key, None)

        def nodes(self) -> set[str]:
            return {f"node-{fence}" for fence in range(1, 9)}

    failed = rig.drive(rig.agent(Dead({"light": light_runner.run, "torch": light_runner.run})), job_id, "failed")
    assert failed.error is not None and failed.error["code"] == "lost"


def test_an_agent_that_looks_around_leaves_alone_what_another_begins_meanwhile(
    rig: AgentRig, job_id: uuid.UUID, training: Training
) -> None:
    class Busy(ThreadLauncher):
        """Between two looks of one agent at it, another has begun something."""

        def running(self) -> dict[AttemptKey, str]:
            if not training.runs:
                other.round()
            return super().running()

    workers = Busy({"light": light_runner.run, "torch": training})
    looking, other = rig.agent(workers), rig.agent(workers)
    other._reconciled_at = float("inf")
    other._announce()
    lead(rig.engine)
    looking._reconcile()
    training.finish.set()
    rig.drive(other, job_id, "succeeded")
    assert rig.attempts(job_id) == [(1, "succeeded")]


def test_no_event_is_lost_or_repeated_when_the_agent_changes(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    training.finish.set()
    rig.drive(rig.agent(running[1]), job_id, "succeeded")
    with system_session(rig.engine) as session:
        statement = select(JobEvent.message).where(JobEvent.seq.is_not(None)).order_by(JobEvent.position)
        assert list(session.scalars(statement)) == ["Attempt 1 trains.", "Trained."]


def test_an_agent_that_was_replaced_does_no_harm_when_it_wakes_up(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    first, _held = running
    second = rig.agent(running[1])
    rig.round(second)
    training.finish.set()
    rig.drive(second, job_id, "succeeded")
    rig.round(first)
    assert (rig.versions(), rig.job(job_id).state) == (1, "succeeded")


def test_a_job_whose_worker_died_is_tried_again_and_makes_one_version(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    agent, held = running
    held.kill(AttemptKey(job_id, 1))
    rig.drive_first_attempt_to_its_end(agent, job_id)
    training.finish.set()
    rig.drive(agent, job_id, "succeeded")
    assert (rig.attempts(job_id), rig.versions()) == ([(1, "lost"), (2, "succeeded")], 1)


def test_a_job_that_another_agent_took_over_is_let_go(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    frozen, frozen_launcher = running
    with rig.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET lease_until = now() - interval '1 second'"))
    lead(rig.engine)
    lead(rig.engine)
    other = rig.agent(thread_launcher(training))
    other.round()
    training.finish.set()
    other.round()
    frozen._reconciled_at = float("inf")  # it wakes up in the middle of its round
    frozen.round()
    assert frozen_launcher.running() == {}
    rig.drive(other, job_id, "succeeded")
    assert (rig.attempts(job_id), rig.versions()) == ([(1, "lost"), (2, "succeeded")], 1)


def test_a_worker_that_holds_what_no_row_knows_is_freed(
    rig: AgentRig, caller: Caller, training: Training, tmp_path: Path
) -> None:
    held = thread_launcher(training)
    key = AttemptKey(uuid.uuid4(), 1)
    held.start("torch", Attempt(key, caller.org_id, {}, "file:///nowhere", tmp_path, None), 60)
    rig.round(rig.agent(held))
    assert held.running() == {}


def test_a_claim_whose_worker_never_began_is_given_back(rig: AgentRig, job_id: uuid.UUID, training: Training) -> None:
    agent = rig.agent(thread_launcher(training))
    agent._announce()
    lead(rig.engine)
    with system_session(rig.engine) as session:  # claimed, and then the agent was interrupted
        assert claim_one(session, "train", agent=agent.id) is not None
    training.finish.set()
    rig.drive(agent, job_id, "succeeded")
    assert rig.attempts(job_id) == [(1, "lost"), (2, "succeeded")]


def test_no_more_is_claimed_than_there_are_free_workers(
    rig: AgentRig, caller: Caller, make_job: Callable[..., uuid.UUID], training: Training
) -> None:
    made = [make_job(caller, kind="validate") for _ in range(3)]
    agent = rig.agent(thread_launcher(training, training))
    rig.drive(agent, made[0], "running")
    for _ in range(3):
        rig.round(agent)
    assert [rig.job(job_id).state for job_id in made] == ["running", "admitted", "admitted"]


def test_stopping_an_agent_leaves_its_attempts_running(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    stopping = threading.Event()
    stopping.set()
    running[0].run(PollingWakeup(), stopping)
    assert (rig.job(job_id).state, list(running[1].running())) == ("running", [AttemptKey(job_id, 1)])


def test_those_who_follow_a_job_get_a_hint_when_it_has_something_to_say(
    job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    stopping = threading.Event()
    give_up = time.monotonic() + 20

    class Heard(PollingWakeup):
        """A wake-up that remembers who was told, and ends the loop with the end of the job."""

        topics: list[str] = []

        def notify(self, topic: str) -> None:
            self.topics.append(topic)
            if topic == SCHEDULER:  # a job has ended
                stopping.set()

        def wait(self, topic: str, timeout_s: float) -> None:
            assert time.monotonic() < give_up
            time.sleep(0.01)

    training.finish.set()
    running[0].run(Heard(), stopping)
    assert job_topic(job_id) in Heard.topics
