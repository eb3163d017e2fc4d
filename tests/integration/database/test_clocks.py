"""Time is the database's: the wall clocks of processes may be wrong."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from claims import admit_queued, claim_one
from sqlalchemy import Engine, select, text
from suites import manifest_of

from zhub.admission.explain import explain
from zhub.database.sessions import system_session
from zhub.errors import AuthenticationError
from zhub.kinds import table
from zhub.models import BaseModel, QueuePlace
from zhub.process.config import Settings
from zhub.registry import listing, versions
from zhub.registry import publish as version_publish
from zhub.tenancy import keys
from zhub.tenancy.keys import Caller

HOUR, A_WHILE = timedelta(hours=1), timedelta(minutes=10)
MakeJob = Callable[..., uuid.UUID]


def clock_off_by(offset: timedelta) -> Any:
    return time_machine.travel(datetime.now(UTC) + offset)


def publish(engine: Engine, job_id: uuid.UUID) -> None:
    with system_session(engine) as session:
        admit_queued(session)
        claim = claim_one(session, "train")
        assert claim is not None and claim.job_id == job_id
        version_publish.publish(session, job_id, claim.fence, manifest_of(job_id), "k", 1)


def test_the_newest_version_is_the_last_one_published_by_whichever_clock(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    with clock_off_by(HOUR):
        publish(system_engine, make_job(caller))
    publish(system_engine, make_job(caller))
    with system_session(system_engine) as session:
        base = session.scalars(select(BaseModel)).one()
        assert [record.version.version for record in versions.newest(session, caller.project_id, base, limit=100)] == [
            2
        ]
        listed, _ = listing.list_versions(session, caller.project_id, limit=10)
        assert [record.version.version for record in listed] == [2, 1]


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_a_job_is_told_when_it_may_start_by_the_databases_clock(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], caller: Caller, offset: timedelta
) -> None:
    make_agent()
    make_job(caller)
    with clock_off_by(offset), system_session(system_engine) as session:
        explain(session, table.names(), agent_lost_after_s=60)
    with system_session(system_engine) as session:
        told = session.scalars(select(QueuePlace.starts_at)).one()
    assert told is not None and abs(told - datetime.now(UTC)) < A_WHILE


def test_a_key_expires_by_the_databases_clock(
    api_engine: Engine, make_key: Callable[..., str], caller: Caller, secret_key: str
) -> None:
    good, expired = (make_key(expires_at=datetime.now(UTC) + offset) for offset in (A_WHILE, -A_WHILE))
    with clock_off_by(HOUR):
        assert keys.authenticate(api_engine, good, secret_key=secret_key).org_id == caller.org_id
    with clock_off_by(-HOUR), pytest.raises(AuthenticationError, match="expired"):
        keys.authenticate(api_engine, expired, secret_key=secret_key)


def test_a_process_frozen_within_a_transaction_holds_its_locks_no_longer_than_a_leader_leads(
    system_engine: Engine,
) -> None:
    setting = "SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'"
    with system_session(system_engine) as session:
        allowed_s = session.scalars(text(setting)).one()
    assert 0 < allowed_s < Settings.model_fields["leader_lease_s"].default
