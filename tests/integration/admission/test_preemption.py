"""Workers that were lent are taken back."""

import uuid
from collections.abc import Callable

from admission_passes import add_row, admit, desired_changes_of, running_for
from claims import AGENT
from job_moves import execute
from sqlalchemy import Engine, func, select

from zhub.admission import snapshot as admission
from zhub.database.sessions import system_session
from zhub.models import Attempt, Quota
from zhub.queue import attempts, jobs
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def test_a_worker_that_was_lent_is_taken_back_and_goes_to_whose_it_is(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=2)
    add_row(system_engine, Quota(org_id=globex.org_id, nominal_workers=1))
    borrowers = running_for(system_engine, acme, make_job, 2)
    owed = make_job(globex)
    assert admit(system_engine) == []
    assert sorted(desired_changes_of(system_engine, borrowers)) == ["preempt", "run"]
    admit(system_engine)
    assert sorted(desired_changes_of(system_engine, borrowers)) == ["preempt", "run"], "one is enough"
    (victim,) = [job_id for job_id in borrowers if desired_changes_of(system_engine, [job_id]) == ["preempt"]]
    with system_session(system_engine) as session:
        assert attempts.stopped(session, victim, 1).state == "queued"
        (attempt,) = session.scalars(select(Attempt).where(Attempt.job_id == victim))
        assert attempt.outcome == "preempted"
        job = jobs.get_job(session, victim)
        assert (job.desired, job.user_failures, job.infra_failures) == ("run", 0, 0)
    assert admit(system_engine) == [owed]


def test_what_an_organisation_holds_of_its_own_is_not_taken(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=2)
    add_row(system_engine, Quota(org_id=globex.org_id, nominal_workers=1))
    add_row(system_engine, Quota(org_id=acme.org_id, nominal_workers=2))
    own = running_for(system_engine, acme, make_job, 2)
    make_job(globex)
    admit(system_engine)
    assert desired_changes_of(system_engine, own) == ["run", "run"]


def test_a_job_that_was_preempted_often_is_left_alone_for_a_while(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=1)
    add_row(system_engine, Quota(org_id=globex.org_id, nominal_workers=1))
    (job_id,) = running_for(system_engine, acme, make_job, 1)
    for fence in range(1, admission.MAX_PREEMPTIONS + 1):
        past = {"job_id": job_id, "fence": 100 + fence, "agent_id": AGENT, "outcome": "preempted"}
        add_row(system_engine, Attempt(org_id=acme.org_id, ended_at=func.now(), created_at=func.now(), **past))
    execute(system_engine, "UPDATE attempts SET created_at = now() - interval '1 hour'")
    make_job(globex)
    admit(system_engine)
    assert desired_changes_of(system_engine, [job_id]) == ["run"]
    execute(system_engine, "UPDATE attempts SET ended_at = now() - interval '3 hours' WHERE ended_at IS NOT NULL")
    admit(system_engine)
    assert desired_changes_of(system_engine, [job_id]) == ["preempt"]
