"""A kind of job that zhub has never heard of takes one entry, and nothing else is told of it."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from agent_rig import AgentRig, fails_with, returns, thread_launcher
from claims import admit_queued
from job_moves import lead
from sqlalchemy import Engine, func, update

from zhub.admission import budgets
from zhub.database.sessions import system_session
from zhub.errors import ConflictError
from zhub.kinds import redrive, table
from zhub.kinds.kind import Kind, success
from zhub.models import Job
from zhub.queue import invariants, jobs
from zhub.queue.attempts import MAX_INFRA_FAILURES, Released, Succeeded
from zhub.tenancy.keys import Caller
from zhub_workers.agent.launcher import Launcher


@dataclass
class Toy:
    """What the hooks of the kind ``toy`` were called with."""

    results: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    redrives: list[uuid.UUID] = field(default_factory=list)

    def entry(self, pool: str | None, **options: Any) -> Kind:
        def write(_session: Any, _job: Succeeded, result: Mapping[str, Any]) -> None:
            self.results.append(dict(result))

        def fail(_session: Any, job: Released) -> None:
            self.failures.append(job.reason)

        def restart(_session: Any, job: Job) -> None:
            self.redrives.append(job.id)

        return Kind("toy", pool, succeed=success(write), failed=fail, redriven=restart, **options)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def enqueue_toy(system_engine: Engine, caller: Caller) -> Callable[[], uuid.UUID]:
    def enqueue() -> uuid.UUID:
        with system_session(system_engine) as session:
            job = Job(org_id=caller.org_id, project_id=caller.project_id, kind="toy", spec={"kind": "toy"})
            jobs.enqueue(session, job, "A toy is enqueued.")
            return job.id

    return enqueue


def launcher(pool: str, runner: Any) -> Launcher:
    other = fails_with(AssertionError("another pool has nothing to run"))
    return thread_launcher(runner, other) if pool == "torch" else thread_launcher(other, runner)


@pytest.mark.parametrize("pool", ["torch", "light"])
def test_a_new_kind_runs_on_the_workers_of_its_entry_and_its_result_is_written(
    rig: AgentRig, toy: Toy, monkeypatch: pytest.MonkeyPatch, enqueue_toy: Callable[[], uuid.UUID], pool: str
) -> None:
    monkeypatch.setitem(table.KINDS, "toy", toy.entry(pool))
    job_id = enqueue_toy()
    rig.drive(rig.agent(launcher(pool, returns({"toys": 3}))), job_id, "succeeded")
    assert (toy.results, toy.failures) == ([{"toys": 3}], [])
    with system_session(rig.engine) as session:
        assert invariants.examine(session) == []


@pytest.mark.parametrize("pool", ["torch", "light"])
def test_the_failure_and_the_redrive_of_a_new_kind_are_told_to_its_entry(
    rig: AgentRig, toy: Toy, monkeypatch: pytest.MonkeyPatch, enqueue_toy: Callable[[], uuid.UUID], pool: str
) -> None:
    monkeypatch.setitem(table.KINDS, "toy", toy.entry(pool))
    job_id = enqueue_toy()
    rig.drive(rig.agent(launcher(pool, fails_with(RuntimeError("no toys left")))), job_id, "failed")
    assert len(toy.failures) == 1 and "no toys left" in toy.failures[0]
    with system_session(rig.engine) as session:
        redrive.request(session, jobs.get_job(session, job_id), by="test")
    lead(rig.engine)
    assert toy.redrives == [job_id] and rig.job(job_id).state in ("queued", "admitted")
    with system_session(rig.engine) as session:
        assert invariants.examine(session) == []


def test_a_new_kind_that_no_worker_runs_is_not_admitted(
    rig: AgentRig, toy: Toy, monkeypatch: pytest.MonkeyPatch, system_engine: Engine, caller: Caller
) -> None:
    monkeypatch.setitem(table.KINDS, "toy", toy.entry(None))
    with system_session(system_engine) as session:
        job = Job(org_id=caller.org_id, project_id=caller.project_id, kind="toy", spec={}, state="waiting")
        jobs.enqueue(session, job, "A toy is asked for.")
    rig.round(rig.agent(launcher("torch", fails_with(AssertionError("nothing is to be run")))))
    assert rig.job(job.id).state == "waiting"


def test_a_redrive_that_the_entry_refuses_is_refused(
    rig: AgentRig, toy: Toy, monkeypatch: pytest.MonkeyPatch, enqueue_toy: Callable[[], uuid.UUID]
) -> None:
    def refuse(_session: Any, _job: Job) -> None:
        raise ConflictError("A toy is played with once.")

    monkeypatch.setitem(table.KINDS, "toy", toy.entry("torch", check_redrive=refuse))
    job_id = enqueue_toy()
    rig.drive(rig.agent(launcher("torch", fails_with(RuntimeError("broken")))), job_id, "failed")
    with system_session(rig.engine) as session, pytest.raises(ConflictError, match="played with once"):
        redrive.request(session, jobs.get_job(session, job_id), by="test")


@pytest.mark.parametrize(("resumable", "paused"), [(True, 1), (False, 0)])
def test_only_a_resumable_kind_is_paused_when_the_budget_is_used_up(
    rig: AgentRig,
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    enqueue_toy: Callable[[], uuid.UUID],
    caller: Caller,
    resumable: bool,
    paused: int,
) -> None:
    monkeypatch.setitem(table.KINDS, "toy", toy.entry("torch", resumable=resumable))
    job_id = enqueue_toy()
    monkeypatch.setattr(budgets, "spent", lambda _session: {caller.org_id: budgets.BudgetUse(2.0, 1.0, budgets.HOURS)})
    with system_session(rig.engine) as session:
        admit_queued(session)
        assert budgets.pause_spent(session, table.names()) == paused
    assert rig.job(job_id).desired == ("pause" if resumable else "run")


def test_a_job_of_a_kind_that_only_another_release_knows_does_not_stop_the_leader(
    rig: AgentRig, enqueue_toy: Callable[[], uuid.UUID]
) -> None:
    job_id = enqueue_toy()
    with system_session(rig.engine) as session:
        session.execute(
            update(Job)
            .prefix_with("/* any move */")
            .where(Job.id == job_id)
            .values(state="running", lease_until=func.now() - timedelta(seconds=1), infra_failures=MAX_INFRA_FAILURES)
        )
    lead(rig.engine)
    assert rig.job(job_id).state == "failed"
    with system_session(rig.engine) as session, pytest.raises(ConflictError, match="does not know jobs of the kind"):
        redrive.request(session, jobs.get_job(session, job_id), by="test")
