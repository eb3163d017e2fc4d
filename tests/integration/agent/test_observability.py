"""The metrics and the log records of an agent."""

import uuid
from collections.abc import Callable

import pytest
from agent_rig import AgentRig, Training, thread_launcher
from prometheus_client import REGISTRY
from sqlalchemy import text

from zhub.database.sessions import system_session
from zhub.tenancy.keys import Caller
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import Agent
from zhub_workers.attempts.attempt import AttemptKey


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"zhub_{name}", labels) or 0.0


def test_it_counts_what_a_claim_and_a_start_took(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], make_job: Callable[..., uuid.UUID]
) -> None:
    agent, _ = running
    before = counted("pickup_seconds_count"), counted("start_seconds_count")
    assert before[0] > 0 and before[1] > 0
    rig.round(agent)
    assert (counted("pickup_seconds_count"), counted("start_seconds_count")) == before


def test_it_counts_the_attempts_that_another_claim_has_replaced(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    rejected = counted("fence_rejected_total")
    with system_session(rig.engine) as session:
        session.execute(text("UPDATE jobs SET fence = fence + 1"))
    running[0].round()
    assert counted("fence_rejected_total") - rejected == 1


def test_it_counts_workers_that_hold_what_no_row_knows(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    orphans = counted("orphan_workers_killed_total")
    with system_session(rig.engine) as session:
        session.execute(text("UPDATE jobs SET state = 'queued', lease_until = NULL"))
    running[0]._reconcile()
    assert counted("orphan_workers_killed_total") - orphans == 1


def test_it_counts_workers_that_died(rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]) -> None:
    died = counted("lease_lost_total", reason="worker_died")
    running[1].kill(AttemptKey(job_id, 1))
    rig.drive_first_attempt_to_its_end(running[0], job_id)
    assert counted("lease_lost_total", reason="worker_died") - died == 1


def test_its_records_name_the_job_and_the_fence(
    rig: AgentRig, job_id: uuid.UUID, caller: Caller, training: Training, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    training.finish.set()
    rig.drive(rig.agent(thread_launcher(training)), job_id, "succeeded")
    told = {record["action"]: record for record in map(vars, caplog.records) if record.get("job_id") == job_id}
    assert {"admitted", "started", "ended"} <= told.keys()
    assert told["started"]["fence"] == told["ended"]["fence"] == 1
    assert told["admitted"]["org_id"] == told["started"]["org_id"] == caller.org_id
