"""Jobs that wait for others."""

import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from promoting import advance, publish_job
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.queue import jobs

Ask = Callable[..., Any]
Client = openai.OpenAI


def test_a_job_waits_until_what_it_needs_has_succeeded(
    ask: Ask, train_expert: Ask, client: Client, system_engine: Engine
) -> None:
    first = train_expert()
    second = train_expert(depends_on=[first.id])
    assert second.depends_on == [first.id]
    advance(system_engine)
    assert state_of(system_engine, second.id) == "waiting"
    assert first.id in ask("get", f"/fine_tuning/jobs/{second.id}/queue")["reason"]
    publish_job(system_engine, first.id, "aa")
    advance(system_engine)
    assert state_of(system_engine, second.id) == "queued"


def test_a_job_waits_for_all_that_it_needs(train_expert: Ask, system_engine: Engine) -> None:
    first, second = train_expert(), train_expert()
    third = train_expert(depends_on=[first.id, second.id])
    publish_job(system_engine, first.id, "aa")
    advance(system_engine)
    assert state_of(system_engine, third.id) == "waiting"
    publish_job(system_engine, second.id, "bb")
    advance(system_engine)
    assert state_of(system_engine, third.id) == "queued"


def test_a_job_is_cancelled_with_what_it_needs_and_says_why(ask: Ask, train_expert: Ask, system_engine: Engine) -> None:
    first = train_expert()
    second = train_expert(depends_on=[first.id])
    third = train_expert(depends_on=[second.id])
    ask("post", f"/fine_tuning/jobs/{first.id}/cancel")
    advance(system_engine)
    advance(system_engine)
    for job, needed in ((second, first), (third, second)):
        found = ask("get", f"/fine_tuning/jobs/{job.id}")
        assert (found["status"], found["error"]["code"]) == ("cancelled", "dependency_failed")
        assert needed.id in found["error"]["message"]


def test_a_job_cannot_wait_for_what_will_never_succeed_or_is_not_there(
    ask: Ask, train_expert: Ask, system_engine: Engine
) -> None:
    first = train_expert()
    ask("post", f"/fine_tuning/jobs/{first.id}/cancel")
    advance(system_engine)
    with pytest.raises(openai.BadRequestError, match="would never run"):
        train_expert(depends_on=[first.id])
    with pytest.raises(openai.BadRequestError, match="there is no fine-tuning job"):
        train_expert(depends_on=["ftjob-" + "0" * 32])


def test_a_waiting_job_can_be_cancelled(ask: Ask, train_expert: Ask, system_engine: Engine) -> None:
    first = train_expert()
    second = train_expert(depends_on=[first.id])
    ask("post", f"/fine_tuning/jobs/{second.id}/cancel")
    advance(system_engine)
    assert state_of(system_engine, second.id) == "cancelled"


def state_of(engine: Engine, job_id: str) -> str:
    with system_session(engine) as session:
        return jobs.get_job(session, uuid.UUID(job_id.removeprefix("ftjob-"))).state
