"""Stored bytes: a sample each hour, the same that quotas count."""

import uuid
from collections.abc import Callable
from datetime import timedelta

import openai
from api_requests import upload
from sqlalchemy import Engine, select, text

from zhub.database.sessions import system_session
from zhub.models import StoredUsage
from zhub.tenancy import stored_usage
from zhub.tenancy.keys import Caller
from zhub.tenancy.quotas import stored_bytes

Client = openai.OpenAI


def sample(engine: Engine) -> int:
    with system_session(engine) as session:
        return stored_usage.sample(session)


def an_hour_passes(engine: Engine) -> None:
    with system_session(engine) as session:
        for row in session.scalars(select(StoredUsage)):
            row.sampled_at -= timedelta(hours=1)


def test_each_hour_adds_what_the_quota_counts_and_adds_it_once(
    client: Client, system_engine: Engine, caller: Caller, make_base_model: Callable[..., uuid.UUID]
) -> None:
    upload(client)
    base_id = make_base_model()
    with system_session(system_engine) as session:
        session.execute(
            text(
                "UPDATE base_models SET private = true, owner_org_id = :org, is_default = false,"
                """ source = jsonb_set(source, '{files}', '[{"size_bytes": 1000}]') WHERE id = :id"""
            ),
            {"org": caller.org_id, "id": base_id},
        )
    for hours in (1, 2):
        assert [sample(system_engine), sample(system_engine)] == [2, 0]
        with system_session(system_engine) as session:
            by_project = {row.project_id: int(row.byte_hours) for row in session.scalars(select(StoredUsage))}
            stored = stored_bytes(session, caller.org_id)
        assert set(by_project) == {caller.project_id, None}
        assert sum(by_project.values()) == hours * stored > 1000
        an_hour_passes(system_engine)


def test_nothing_stored_is_no_row(system_engine: Engine, caller: Caller) -> None:
    assert sample(system_engine) == 0
