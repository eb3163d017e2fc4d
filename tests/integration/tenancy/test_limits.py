"""Limits of an organisation: what holds by default, what an operator sets, and what a refusal says."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import ROWS, raw, refused, upload
from sqlalchemy import Engine

from zhub.cli.database_operations import set_quota
from zhub.database.sessions import tenant_session
from zhub.embedded.postgres import Urls
from zhub.process.buckets import MemoryBuckets
from zhub.tenancy.keys import Caller
from zhub.tenancy.quotas import Limits, limits_of, stored_bytes
from zhub_api.request_rates import LIMIT_KEPT_S, RequestRates

Client = openai.OpenAI


def test_an_organisation_has_limits_by_default(api_engine: Engine, caller: Caller) -> None:
    with tenant_session(api_engine, caller.org_id) as session:
        assert limits_of(session, caller.org_id) == Limits()
    assert min(Limits().max_queued, Limits().max_bytes, Limits().requests_per_minute) > 0


def test_an_operator_sets_the_limits_and_reads_them(
    api_engine: Engine, caller: Caller, database: Urls, capsys: pytest.CaptureFixture[str]
) -> None:
    set_quota(database.system, "acme", max_queued=3, max_bytes=5_000, requests_per_minute=7_000)
    with tenant_session(api_engine, caller.org_id) as session:
        assert limits_of(session, caller.org_id) == Limits(3, 5_000, 7_000)
    said = capsys.readouterr().err
    assert "3 jobs waiting" in said and "5,000 bytes" in said and "7,000 requests a minute" in said
    set_quota(database.system, "acme")
    with tenant_session(api_engine, caller.org_id) as session:
        assert limits_of(session, caller.org_id) == Limits()


def test_a_file_beyond_the_bytes_of_its_organisation_is_refused(
    client: Client, caller: Caller, database: Urls, api_engine: Engine
) -> None:
    set_quota(database.system, "acme", max_bytes=len(ROWS) + 10)
    file = upload(client, "a.jsonl")
    error = refused(lambda: upload(client, "b.jsonl", b"x" * 11))
    assert (error.status_code, error.code) == (429, "quota_exceeded") and f"{len(ROWS):,}" in error.message
    upload(client, "b.jsonl", b"x" * 10)
    client.files.delete(file.id)
    with tenant_session(api_engine, caller.org_id) as session:
        assert stored_bytes(session, caller.org_id) == 10


def test_a_private_base_counts_and_one_of_the_platform_does_not(
    client: Client, caller: Caller, database: Urls, api_url: str
) -> None:
    set_quota(database.system, "acme", max_bytes=3)
    for name, private, status in (("shared", False, 200), ("own", True, 429)):
        client.post("/base_models", body={"name": name, "private": private}, cast_to=object)
        answer = raw(api_url, client.api_key, "PUT", f"/v1/base_models/{name}/files/config.json", content=b"{  }")
        assert answer.status_code == status


def test_every_answer_says_where_the_organisation_stands(client: Client, caller: Caller, database: Urls) -> None:
    set_quota(database.system, "acme", requests_per_minute=3)
    for remaining in ("2", "1", "0"):
        headers = client.files.with_raw_response.list().headers
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert headers["x-ratelimit-remaining-requests"] == remaining
        assert headers["x-ratelimit-reset-requests"].endswith("s")
    error = refused(client.files.list)
    assert (error.status_code, error.code) == (429, "rate_limit_exceeded")
    assert 1 <= int(error.response.headers["retry-after"]) <= 20
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in error.response.headers


def test_an_organisation_can_read_its_limits(client: Client, caller: Caller, database: Urls) -> None:
    set_quota(database.system, "acme", max_bytes=50_000, monthly_worker_hours=3)
    upload(client)
    found: Any = client.get("/organization/limits", cast_to=object)
    assert found == {
        "object": "organization.limits",
        "max_queued": Limits().max_queued,
        "max_bytes": 50_000,
        "stored_bytes": len(ROWS),
        "requests_per_minute": Limits().requests_per_minute,
        "budgets": [{"used": 0, "budget": 3, "unit": "worker-hours"}],
    }


def test_one_organisations_requests_are_not_anothers(
    client: Client, caller: Caller, database: Urls, open_client: Callable[[str], Client], make_key: Callable[..., str]
) -> None:
    set_quota(database.system, "acme", requests_per_minute=1)
    client.files.list()
    assert refused(client.files.list).status_code == 429
    assert open_client(make_key("globex")).files.list().data == []


def test_a_bucket_fills_evenly_and_holds_a_minute(api_engine: Engine, caller: Caller, database: Urls) -> None:
    set_quota(database.system, "acme", requests_per_minute=60)
    now = 0.0
    rates = RequestRates(api_engine, MemoryBuckets(lambda: now), lambda: now)

    def passed(tries: int) -> int:
        count = 0
        for _ in range(tries):
            standing = rates.take(caller.org_id)
            assert 0 <= standing.retry_after_s <= 60 / standing.limit
            count += not standing.retry_after_s
        return count

    assert passed(100) == 60
    now = 10.0
    assert passed(100) == 10
    now = 10_000.0
    assert passed(100) == 60
    set_quota(database.system, "acme", requests_per_minute=6)
    now += LIMIT_KEPT_S + 10
    assert passed(100) == (LIMIT_KEPT_S + 10) * 6 // 60
