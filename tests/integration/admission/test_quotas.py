"""What an organisation may hold at once, and what it may use in a month."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from admission_passes import add_row, admit, desired_changes_of, places, running_for
from job_moves import execute
from sqlalchemy import Engine, select

from zhub.admission import budgets
from zhub.admission import usage as admission
from zhub.cli.database_operations import set_quota
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.errors import NotFoundError
from zhub.kinds import table
from zhub.models import Quota
from zhub.queue import attempts
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def test_no_organisation_holds_more_than_its_quota(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=4)
    add_row(system_engine, Quota(org_id=acme.org_id, max_workers=2.0))
    made = [make_job(acme) for _ in range(4)]
    assert admit(system_engine) == made[:2]
    assert "its quota is 2 workers" in places(system_engine)[made[2]].reason


def test_a_job_that_is_larger_than_its_organisations_quota_is_told_that_it_cannot_run(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=4)
    add_row(system_engine, Quota(org_id=acme.org_id, max_workers=2.0))
    made = make_job(acme, workers=3)
    assert admit(system_engine) == []
    assert "cannot run unless the platform's operator allows more" in places(system_engine)[made].reason


def test_an_operator_sets_a_quota_by_the_organisations_name(
    system_engine: Engine, database: Urls, acme: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    for weight, cap in ((2.0, 4.0), (3.0, None)):
        more: Any = {"nominal_workers": 1.0, "monthly_worker_hours": 100.0}
        set_quota(database.system, "acme", weight=weight, max_workers=cap, max_queued=10, **more)
    with system_session(system_engine) as session:
        (quota,) = session.scalars(select(Quota))
        assert (quota.org_id, quota.weight, quota.max_workers, quota.max_queued) == (acme.org_id, 3.0, None, 10)
        assert (quota.nominal_workers, quota.monthly_worker_hours) == (1.0, 100.0)
    said = "acme: weight 3, 1 guaranteed workers of a cluster, any number of workers of it at most, 10 jobs waiting"
    assert f"{said}, 100 worker-hours a month." in capsys.readouterr().err


def test_a_quota_for_nobody_is_refused(database: Urls) -> None:
    with pytest.raises(NotFoundError, match="No such organization: 'umbrella'"):
        set_quota(database.system, "umbrella", weight=1.0, max_workers=None, max_queued=None)


def test_a_budget_that_is_used_up_pauses_trainings_and_lets_none_begin(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=4)
    add_row(system_engine, Quota(org_id=acme.org_id, monthly_worker_hours=1.5))
    runs = running_for(system_engine, acme, make_job, 1)
    with system_session(system_engine) as session:
        assert budgets.pause_spent(session, table.names()) == 0
    more = running_for(system_engine, acme, make_job, 1)
    with system_session(system_engine) as session:
        assert budgets.pause_spent(session, table.names()) == 2
        assert budgets.pause_spent(session, table.names()) == 0
    assert desired_changes_of(system_engine, [*runs, *more]) == ["pause", "pause"]
    waiting, theirs = make_job(acme), make_job(globex)
    assert admit(system_engine) == [theirs]
    assert "2 of the 1.5 worker-hours" in places(system_engine)[waiting].reason
    execute(system_engine, "UPDATE quotas SET monthly_worker_hours = 3")
    assert set(admit(system_engine)) == {theirs, waiting}


def test_a_budget_counts_what_has_ended_in_this_month_and_not_what_ended_before(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    make_agent(slots=1)
    add_row(system_engine, Quota(org_id=acme.org_id, monthly_worker_hours=1.0))
    (job_id,) = running_for(system_engine, acme, make_job, 1)
    with system_session(system_engine) as session:
        attempts.fail(session, job_id, 1, attempts.Failure("x", "It broke."))
    # It began in the month before this one and ended two hours into this one.
    month = "date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    execute(
        system_engine,
        f"UPDATE attempts SET created_at = {month} - interval '5 h', ended_at = {month} + interval '2 h'",
    )
    with system_session(system_engine) as session:
        admission.charge(session)
        (budget,) = budgets.spent(session).values()
    assert budget.used == pytest.approx(2.0)
    execute(system_engine, "UPDATE month_usages SET month = month - interval '1 month'")
    with system_session(system_engine) as session:
        assert budgets.spent(session) == {}
