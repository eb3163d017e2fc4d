"""Attempts that are cancelled, are asked to stop and do not, or make no progress."""

import threading
import uuid
from collections.abc import Callable

import pytest
from agent_rig import AgentRig, CheckpointsWhenStopped, Training, fails_with, thread_launcher
from job_moves import cancel, pause
from sqlalchemy import select

from zhub.database.sessions import system_session
from zhub.models import JobEvent
from zhub.process.wakeup import PollingWakeup, job_topic
from zhub.queue import attempts
from zhub.tenancy.keys import Caller
from zhub_workers.agent.followed import CLUSTER_STOPS
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import STOP_GRACE_S, Agent
from zhub_workers.attempts.attempt import AttemptStoppedError


def test_a_cancelled_attempt_stops_and_leaves_no_version(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    cancel(rig.engine, caller, job_id)
    rig.drive(running[0], job_id, "cancelled")
    assert (rig.attempts(job_id), rig.versions()) == ([(1, "cancelled")], 0)


@pytest.mark.parametrize(("stop", "state"), [(cancel, "cancelled"), (pause, "paused")])
def test_a_job_that_was_stopped_frees_its_worker_for_another(
    rig: AgentRig,
    caller: Caller,
    job_id: uuid.UUID,
    running: tuple[Agent, ThreadLauncher],
    training: Training,
    make_job: Callable[..., uuid.UUID],
    stop: Callable[..., None],
    state: str,
) -> None:
    stop(rig.engine, caller, job_id)
    rig.drive(running[0], job_id, state)
    training.finish.set()
    rig.drive(running[0], make_job(caller), "succeeded")
    assert rig.job(job_id).state == state


def test_a_job_whose_attempts_stop_unasked_is_not_tried_for_ever(rig: AgentRig, job_id: uuid.UUID) -> None:
    failed = rig.drive(rig.agent(thread_launcher(fails_with(AttemptStoppedError()))), job_id, "failed")
    assert failed.error is not None and failed.error["code"] == "stopped"
    assert len(rig.attempts(job_id)) == 1 + attempts.MAX_INFRA_FAILURES


def test_an_attempt_that_ignores_the_request_to_stop_is_killed_after_the_grace(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    held = thread_launcher(training)
    agent = rig.agent(held)
    rig.drive(agent, job_id, "running")
    cancel(rig.engine, caller, job_id)
    rig.drive(agent, job_id, "stopping")
    (followed,) = agent._followed.values()
    assert followed.stop_requested_at is not None and held.running()
    followed.stop_requested_at -= STOP_GRACE_S + 1
    rig.round(agent)
    assert (rig.job(job_id).state, held.running(), held.free("torch")) == ("cancelled", {}, True)


def test_within_the_grace_an_attempt_is_only_asked(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    agent = rig.agent(thread_launcher(training))
    rig.drive(agent, job_id, "running")
    cancel(rig.engine, caller, job_id)
    for _ in range(3):
        rig.round(agent)
    assert rig.job(job_id).state == "stopping"


def test_a_result_that_comes_after_the_cancellation_is_dropped(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    held = thread_launcher(training)
    agent = rig.agent(held)
    rig.drive(agent, job_id, "running")
    cancel(rig.engine, caller, job_id)
    training.finish.set()
    rig.drive(agent, job_id, "cancelled")
    assert (rig.versions(), held.free("torch")) == (0, True)


def test_an_attempt_without_progress_is_killed_and_paid_by_the_platform(
    rig: AgentRig, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False  # asked whether to stop, an attempt shows progress
    agent = rig.agent(thread_launcher(training), stall_s=0.05)
    rig.drive(agent, job_id, "running")
    rig.drive_first_attempt_to_its_end(agent, job_id)
    assert rig.attempts(job_id)[0] == (1, "failed_infra")


def test_an_attempt_that_shows_progress_is_not_taken_for_stalled(
    rig: AgentRig, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    agent = rig.agent(running[1], stall_s=0.5)
    training.started.wait(5)
    rounds = 0

    def enough() -> bool:
        nonlocal rounds
        rounds += 1
        rig.round(agent)
        (followed,) = agent._followed.values()
        return rounds >= 20 and followed.progress > 20

    rig.until(enough)
    assert rig.attempts(job_id) == [(1, None)]


def test_a_job_whose_cluster_stops_is_queued_again_with_a_checkpoint_and_pays_no_retry(
    rig: AgentRig, job_id: uuid.UUID
) -> None:
    runner = CheckpointsWhenStopped()
    agent = rig.agent(thread_launcher(runner))
    rig.drive(agent, job_id, "running")
    agent.run(PollingWakeup(), now(), cluster_stops=now())
    job = rig.job(job_id)
    assert (job.state, job.desired, job.lease_until, job.not_before) == ("queued", "run", None, None)
    assert (rig.attempts(job_id), job.infra_failures) == ([(1, "preempted")], 0)
    rig.drive(rig.agent(thread_launcher(runner)), job_id, "succeeded")
    assert [began and began["step"] for began in runner.began_from] == [None, 7]


def test_who_watches_a_job_whose_cluster_stops_is_told_that_it_goes_on(rig: AgentRig, job_id: uuid.UUID) -> None:
    agent = rig.agent(thread_launcher(CheckpointsWhenStopped()))
    rig.drive(agent, job_id, "running")
    told: list[str] = []

    class Heard(PollingWakeup):
        def notify(self, topic: str) -> None:
            told.append(topic)

    agent.run(Heard(), now(), cluster_stops=now())
    with system_session(rig.engine) as session:
        messages = session.scalars(select(JobEvent.message).where(JobEvent.job_id == job_id)).all()
    assert CLUSTER_STOPS in messages and job_topic(job_id) in told


def test_an_attempt_that_does_not_leave_in_time_is_killed_and_its_job_queued_again(
    rig: AgentRig, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    held = thread_launcher(training)
    agent = rig.agent(held)
    rig.drive(agent, job_id, "running")
    agent.release(0.0)
    job = rig.job(job_id)
    assert (job.state, job.infra_failures, held.running()) == ("queued", 0, {})
    assert rig.attempts(job_id) == [(1, "preempted")]


def test_a_job_that_was_to_be_cancelled_when_its_cluster_stopped_is_cancelled(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    cancel(rig.engine, caller, job_id)
    running[0].release(5.0)
    assert rig.job(job_id).state == "cancelled"


def now() -> threading.Event:
    """An event that is set already."""
    event = threading.Event()
    event.set()
    return event
