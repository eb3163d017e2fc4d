"""Small jobs on one base share a worker, and what befalls one of them."""

import uuid
from collections.abc import Callable

import pytest
from agent_rig import AgentRig, Training, thread_launcher
from job_moves import cancel

from zhub.tenancy.keys import Caller
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import STOP_GRACE_S, Agent

MakeJob = Callable[..., uuid.UUID]


@pytest.fixture
def shared(training: Training) -> ThreadLauncher:
    """A worker that takes up to three small jobs on one base."""
    return thread_launcher(training, jobs_per_worker=3)


def sharing(rig: AgentRig, shared: ThreadLauncher) -> Agent:
    return rig.agent(shared, slots=1, jobs_per_worker=3)


def states_after(rig: AgentRig, agent: Agent, job_ids: list[uuid.UUID], rounds: int = 4) -> list[str]:
    for _ in range(rounds):
        rig.round(agent)
    return rig.states(job_ids)


def test_small_jobs_on_one_base_run_together(
    rig: AgentRig, caller: Caller, make_job: MakeJob, training: Training, shared: ThreadLauncher
) -> None:
    made = [make_job(caller, pack_key="basis") for _ in range(4)]
    agent = sharing(rig, shared)
    assert states_after(rig, agent, made) == ["running", "running", "running", "queued"]
    training.finish.set()
    for job_id in made:
        rig.drive(agent, job_id, "succeeded")
    assert rig.versions() == 4


def test_a_job_that_cannot_share_gets_the_next_free_worker_and_no_later_one_goes_first(
    rig: AgentRig, caller: Caller, make_job: MakeJob, training: Training, shared: ThreadLauncher
) -> None:
    first, alone, later = (make_job(caller, pack_key=key) for key in ("basis", None, "basis"))
    agent = sharing(rig, shared)
    assert states_after(rig, agent, [first, alone, later]) == ["running", "queued", "queued"]
    training.finish.set()
    rig.drive(agent, later, "succeeded")
    assert [key.job_id for key in training.runs] == [first, alone, later]


def test_a_job_that_needs_a_worker_of_its_own_is_not_joined(
    rig: AgentRig, caller: Caller, make_job: MakeJob, shared: ThreadLauncher
) -> None:
    made = [make_job(caller, pack_key=key) for key in (None, "basis")]
    assert states_after(rig, sharing(rig, shared), made) == ["running", "queued"]


def test_one_job_of_a_pack_is_cancelled_and_the_others_go_on(
    rig: AgentRig, caller: Caller, make_job: MakeJob, training: Training, shared: ThreadLauncher
) -> None:
    first, second = (make_job(caller, pack_key="basis") for _ in range(2))
    agent = sharing(rig, shared)
    states_after(rig, agent, [])
    cancel(rig.engine, caller, first)
    rig.drive(agent, first, "cancelled")
    training.finish.set()
    rig.drive(agent, second, "succeeded")
    assert rig.attempts(second) == [(1, "succeeded")]


def test_a_job_whose_neighbour_had_to_be_killed_is_tried_again_without_neighbours(
    rig: AgentRig, caller: Caller, make_job: MakeJob, training: Training, shared: ThreadLauncher
) -> None:
    training.obedient = False
    first, second, third = (make_job(caller, pack_key="basis") for _ in range(3))
    agent = sharing(rig, shared)
    states_after(rig, agent, [])
    cancel(rig.engine, caller, first)
    rig.drive(agent, first, "stopping")
    followed = next(one for one in agent._followed.values() if one.key.job_id == first)
    assert followed.stop_requested_at is not None
    followed.stop_requested_at -= STOP_GRACE_S + 1
    rig.drive(agent, second, "running")
    rig.round(agent)
    assert [rig.job(job_id).state for job_id in (first, second, third)] == ["cancelled", "running", "queued"]
    assert (rig.attempts(second), rig.job(second).infra_failures) == ([(1, "lost"), (2, None)], 1)
    training.finish.set()
    rig.drive(agent, third, "succeeded")
