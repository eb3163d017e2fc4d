"""Shares of a cluster's workers: by weight, by what was used, and what is charged for an attempt."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from admission_passes import add_row, admit, claim
from claims import AGENT, admit_queued, claim_one
from job_moves import execute
from sqlalchemy import Engine, func, select

from zhub.admission import usage as admission
from zhub.admission.fair_share import HALF_LIFE_S
from zhub.database.sessions import system_session
from zhub.models import Attempt, Quota, Usage
from zhub.queue import attempts
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def test_a_flood_of_one_organisation_does_not_keep_another_waiting(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=4)
    flood = [make_job(acme) for _ in range(10)]
    late = [make_job(globex) for _ in range(10)]
    assert set(admit(system_engine)) == {*flood[:2], *late[:2]}


def test_a_weight_is_a_larger_share(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=6)
    add_row(system_engine, Quota(org_id=globex.org_id, weight=2.0))
    ours, theirs = ([make_job(caller) for _ in range(6)] for caller in (acme, globex))
    assert set(admit(system_engine)) == {*ours[:2], *theirs[:4]}


def test_what_was_used_counts_half_a_day_later(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=1)
    add_row(system_engine, Usage(org_id=acme.org_id, cluster="default", worker_seconds=1000.0))
    add_row(system_engine, Usage(org_id=globex.org_id, cluster="default", worker_seconds=1500.0))
    execute(
        system_engine,
        "UPDATE usages SET at = now() - make_interval(secs => :s) WHERE org_id = :org",
        s=HALF_LIFE_S,
        org=globex.org_id,
    )
    make_job(acme)
    theirs = make_job(globex)
    assert admit(system_engine) == [theirs]


def test_usage_of_another_cluster_does_not_count(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=1)
    add_row(system_engine, Usage(org_id=acme.org_id, cluster="elsewhere", worker_seconds=1e6))
    add_row(system_engine, Usage(org_id=globex.org_id, cluster="default", worker_seconds=1.0))
    ours = make_job(acme)
    make_job(globex)
    assert admit(system_engine) == [ours]


def test_an_attempt_that_ends_is_charged_by_its_time_and_what_it_took(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    execute(system_engine, "UPDATE agents SET id = :id, jobs_per_worker = 4", id=AGENT)
    for columns in ({"pack_key": "basis"}, {"workers": 2}):
        make_job(acme, **columns)
        with system_session(system_engine) as session:
            admit_queued(session)
        claimed_job = claim(system_engine)
        execute(system_engine, "UPDATE attempts SET created_at = now() - interval '100 seconds' WHERE ended_at IS NULL")
        with system_session(system_engine) as session:
            attempts.fail(session, claimed_job.job_id, claimed_job.fence, attempts.Failure("x", "x"))
    for _ in range(2):  # once is enough
        with system_session(system_engine) as session:
            admission.charge(session)
    with system_session(system_engine) as session:
        assert list(session.scalars(select(Attempt.workers).order_by(Attempt.created_at, Attempt.workers))) == [0.25, 2]
        (used,) = session.scalars(select(Usage.worker_seconds))
    assert used == pytest.approx(25 + 200, abs=1)


def test_a_validation_is_not_charged(system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller) -> None:
    make_agent(slots=1)
    make_job(acme, kind="validate")
    admit(system_engine)
    with system_session(system_engine) as session:
        claimed_job = claim_one(session, "validate")
        assert claimed_job is not None
        attempts.fail(session, claimed_job.job_id, claimed_job.fence, attempts.Failure("x", "x"))
        admission.charge(session)
        assert session.scalar(select(func.count()).select_from(Usage)) == 0
