"""A job, what happens to it, and its end; and the claim of a training under way."""

import uuid
from collections.abc import Callable

import pytest
from checkpoint_reports import claim_again
from sqlalchemy import Engine, func, text

from zhub.database.sessions import system_session
from zhub.queue import job_events
from zhub.queue.claims import Claim
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]
REQUEST = {
    "model": "tiny",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
    "seed": 1,
    "suffix": None,
    "metadata": None,
}


@pytest.fixture
def job_id(make_job: MakeJob, caller: Caller) -> uuid.UUID:
    return make_job(caller, request=REQUEST)


@pytest.fixture
def tell(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> Callable[[str], None]:
    """Have something happen to the job."""

    def add(message: str) -> None:
        with system_session(system_engine) as session:
            job_events.add(session, caller.org_id, job_id, message)

    return add


@pytest.fixture
def end(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> Callable[[], None]:
    """Have the job end, with a last event in the same transaction."""

    def cancel() -> None:
        with system_session(system_engine) as session:
            session.execute(text("UPDATE jobs SET state = 'cancelled', finished_at = now()"))
            job_events.add(session, caller.org_id, job_id, "Over.")

    return cancel


@pytest.fixture
def claim(system_engine: Engine, make_job: Callable[..., uuid.UUID], caller: Caller) -> Claim:
    """A training job under way."""
    make_job(caller, state="admitted", admitted_at=func.now())
    return claim_again(system_engine)
