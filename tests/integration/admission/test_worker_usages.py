"""The time of workers by the day: each attempt once, in the days that it ran in, for whom and what it ran."""

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from admission_passes import admit, running_for
from claims import claim_one
from job_moves import execute
from sqlalchemy import Engine, select

from zhub.admission import usage
from zhub.database.sessions import system_session, tenant_session
from zhub.models import WorkerUsage
from zhub.queue import attempts
from zhub.tenancy import worker_usage
from zhub.tenancy.keys import Caller
from zhub.tenancy.worker_usage import Filter, Group, Worked

MakeJob = Callable[..., uuid.UUID]
MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)


def ended(engine: Engine, job_id: uuid.UUID, began: datetime, until: datetime) -> None:
    """Let the job's attempt fail, as if it had run in this time."""
    with system_session(engine) as session:
        attempts.fail(session, job_id, 1, attempts.Failure("x", "It broke."))
    execute(engine, "UPDATE attempts SET created_at = :began, ended_at = :until", began=began, until=until)


def charge(engine: Engine) -> None:
    with system_session(engine) as session:
        usage.charge(session)


def report(engine: Engine, caller: Caller, *groups: Group, only: Filter = Filter()) -> list[Worked]:
    until = datetime.now(UTC).date() + timedelta(days=1)
    with tenant_session(engine, caller.org_id) as session:
        return worker_usage.report(session, caller.org_id, date(2026, 1, 1), until, groups, only)


def test_an_attempt_counts_in_each_day_that_it_ran_in_and_once(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    (job_id,) = running_for(system_engine, acme, make_job, 1, workers=2)
    ended(system_engine, job_id, MIDNIGHT - timedelta(hours=1), MIDNIGHT + timedelta(hours=26))
    for _ in range(2):
        charge(system_engine)
    with system_session(system_engine) as session:
        rows = session.execute(select(WorkerUsage.day, WorkerUsage.worker_seconds).order_by(WorkerUsage.day)).all()
    first = date(2026, 2, 28)
    assert rows == [(first, 2 * 3600.0), (date(2026, 3, 1), 2 * 24 * 3600.0), (date(2026, 3, 2), 2 * 2 * 3600.0)]


def test_two_attempts_of_a_day_are_added_up(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    for _ in range(2):
        (job_id,) = running_for(system_engine, acme, make_job, 1)
        ended(system_engine, job_id, MIDNIGHT, MIDNIGHT + timedelta(hours=1))
        charge(system_engine)
    assert [row.worker_seconds for row in report(system_engine, acme)] == [7200.0]


def test_the_row_says_who_asked_and_for_what(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    (job_id,) = running_for(system_engine, acme, make_job, 1, asked_by=acme.key_id, trained_tokens=70)
    ended(system_engine, job_id, MIDNIGHT - timedelta(hours=1), MIDNIGHT + timedelta(hours=1))
    execute(system_engine, "UPDATE attempts SET outcome = 'succeeded'")
    charge(system_engine)
    _, row = report(system_engine, acme, *worker_usage.COLUMNS)
    assert row == Worked(
        date(2026, 3, 1),
        {
            "project_id": acme.project_id,
            "api_key_id": acme.key_id,
            "cluster": "default",
            "kind": "train",
            "expert": f"{acme.project}.summer",
            "base_model": "tiny",
        },
        3600.0,
        70,
    )


def test_what_a_schedule_asked_for_belongs_to_no_key(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    (job_id,) = running_for(system_engine, acme, make_job, 1, asked_by=uuid.uuid4())
    ended(system_engine, job_id, MIDNIGHT, MIDNIGHT + timedelta(hours=1))
    charge(system_engine)
    (row,) = report(system_engine, acme, "api_key_id")
    assert row.group == {"api_key_id": None}
    assert report(system_engine, acme, only=Filter(key_ids=[acme.key_id])) == []


def test_what_still_runs_is_reported_and_counts_once_when_it_ends(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=2)
    (job_id,) = running_for(system_engine, acme, make_job, 1)
    assert sum(row.worker_seconds for row in report(system_engine, acme)) == pytest.approx(3600, abs=60)
    with system_session(system_engine) as session:
        attempts.fail(session, job_id, 1, attempts.Failure("x", "It broke."))
    before = report(system_engine, acme, "project_id")
    charge(system_engine)
    assert report(system_engine, acme, "project_id") == before
    assert report(system_engine, globex) == []


def test_a_validation_takes_no_time_of_workers(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=1)
    make_job(acme, kind="validate")
    admit(system_engine)
    with system_session(system_engine) as session:
        assert claim_one(session, "validate") is not None
    execute(system_engine, "UPDATE attempts SET created_at = created_at - interval '1 hour'")
    assert report(system_engine, acme) == []
