"""Jobs that are paused and resumed while an agent runs them."""

import uuid

from agent_rig import AgentRig, CheckpointsWhenStopped, Training, thread_launcher
from job_moves import pause, resume

from zhub.storage.keys import checkpoints_prefix
from zhub.tenancy.keys import Caller
from zhub_workers.agent.launcher import ThreadLauncher, WorkerSilentError
from zhub_workers.agent.loop import STOP_GRACE_S, Agent
from zhub_workers.attempts.attempt import AttemptKey


def test_a_paused_job_is_paused_once_its_attempt_has_stopped(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    pause(rig.engine, caller, job_id)
    rig.drive(running[0], job_id, "paused")
    assert rig.attempts(job_id) == [(1, "paused")]


def test_a_resumed_job_goes_on_from_the_checkpoint_of_its_pause(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID
) -> None:
    runner = CheckpointsWhenStopped()
    agent = rig.agent(thread_launcher(runner))
    rig.drive(agent, job_id, "running")
    pause(rig.engine, caller, job_id)
    rig.drive(agent, job_id, "paused")
    resume(rig.engine, caller, job_id)
    rig.drive(agent, job_id, "succeeded")
    prefix = f"{checkpoints_prefix(caller.org_id, job_id)}/000007"
    assert runner.began_from == [None, {"key_prefix": prefix, "digest": "d" * 64, "step": 7}]
    assert rig.attempts(job_id) == [(1, "paused"), (2, "succeeded")]


def test_a_job_resumed_while_its_attempt_still_stops_goes_on_from_there(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    held = thread_launcher(training)
    agent = rig.agent(held)
    rig.drive(agent, job_id, "running")
    pause(rig.engine, caller, job_id)
    rig.drive(agent, job_id, "stopping")
    resume(rig.engine, caller, job_id)
    (followed,) = agent._followed.values()
    assert followed.stop_requested_at is not None
    followed.stop_requested_at -= STOP_GRACE_S + 1
    rig.round(agent)
    assert (rig.attempts(job_id), rig.job(job_id).infra_failures) == ([(1, "paused")], 0)
    training.finish.set()
    rig.drive(agent, job_id, "succeeded")


class Deaf(ThreadLauncher):
    """Its workers do not hear that they should stop, until ``hears``."""

    hears = False

    def request_stop(self, key: AttemptKey) -> None:
        if not self.hears:
            raise WorkerSilentError("no answer")
        super().request_stop(key)


def test_an_attempt_that_was_to_stop_and_has_not_heard_of_it_goes_on_when_its_job_is_wanted_again(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    agent = rig.agent(Deaf({"light": training, "torch": training}))
    rig.drive(agent, job_id, "running")
    pause(rig.engine, caller, job_id)
    rig.drive(agent, job_id, "stopping")
    (followed,) = agent._followed.values()
    assert followed.stop_requested_at is not None
    followed.stop_requested_at -= STOP_GRACE_S + 1
    resume(rig.engine, caller, job_id)
    rig.round(agent)
    training.finish.set()
    rig.drive(agent, job_id, "succeeded")
    assert rig.attempts(job_id) == [(1, "succeeded")]


def test_an_attempt_is_asked_to_stop_until_it_has_heard(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    held = Deaf({"light": training, "torch": training})
    agent = rig.agent(held)
    rig.drive(agent, job_id, "running")
    pause(rig.engine, caller, job_id)
    rig.drive(agent, job_id, "stopping")
    held.hears = True
    rig.drive(agent, job_id, "paused")
    assert rig.attempts(job_id) == [(1, "paused")]


def test_a_job_that_finishes_before_it_hears_of_its_pause_has_succeeded(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    training.obedient = False
    training.finish.set()
    pause(rig.engine, caller, job_id)
    rig.drive(running[0], job_id, "succeeded", "paused")
    assert (rig.job(job_id).state == "succeeded") == (rig.versions() == 1)


def test_an_agent_that_takes_over_in_the_middle_of_a_pause_finishes_it(
    rig: AgentRig, caller: Caller, job_id: uuid.UUID
) -> None:
    runner = CheckpointsWhenStopped()
    held = thread_launcher(runner)
    first = rig.agent(held)
    rig.drive(first, job_id, "running")
    pause(rig.engine, caller, job_id)
    rig.drive(first, job_id, "stopping", "paused")
    second = rig.agent(held)
    rig.drive(second, job_id, "paused")
    resume(rig.engine, caller, job_id)
    rig.drive(second, job_id, "succeeded")
    assert [kept and kept["step"] for kept in runner.began_from] == [None, 7]
