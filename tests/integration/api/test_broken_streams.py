"""Each answer that is sent piece by piece, and an exception in its middle: no client takes a part for the whole."""

import dataclasses
import importlib
import io
import json
import pkgutil
import typing
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from sqlalchemy import Engine, text

from zhub.client import Client
from zhub.database.sessions import system_session, tenant_session
from zhub.errors import ApiError, StoreError
from zhub.generation import Started, Text
from zhub.ids import parse_id
from zhub.models import Job
from zhub.process.config import Settings
from zhub.queue.job_logs import Chunk, chunk_key, encode_line
from zhub.storage.keys import attempts_prefix
from zhub.tenancy import audit, audit_log
from zhub.tenancy.keys import Caller
from zhub_api import routes
from zhub_api.routes import job_events

STARTED = Started(strategy="base", experts=[], reason="by name", prompt_tokens=3)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}


class BreakingStore:
    """A store whose objects break off after their first byte."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def open(self, key: str) -> Iterator[bytes]:
        yield next(self._store.open(key))[:1]
        raise StoreError("the disk is gone", key=key)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A request for a stream, and what breaks it once the client has its first piece."""

    method: str
    path: str
    harm: Callable[[], object] = lambda: None
    body: Any = None


Break = Callable[[], Broken]


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "POLL_S", 0.05)


@pytest.fixture
def settings(settings: Settings, run_server: Callable[[FastAPI], str]) -> Settings:
    serving = FastAPI()

    async def lines() -> AsyncIterator[str]:
        for line in (STARTED, Text(text="40")):
            yield line.model_dump_json(ensure_ascii=True) + "\n"
        raise ConnectionError

    @serving.post("/generate")
    async def generate() -> StreamingResponse:
        return StreamingResponse(lines())

    return settings.model_copy(update={"serving_url": run_server(serving).removesuffix("/v1")})


@pytest.fixture
def break_store(app: FastAPI) -> Callable[[], None]:
    def harm() -> None:
        context = app.state.context
        app.state.context = dataclasses.replace(context, store=BreakingStore(context.store))

    return harm


@pytest.fixture
def job(train: Callable[..., Any], system_engine: Engine, store: Any) -> str:
    """A job in its first attempt, which has written two lines of its log."""
    job_id: str = train().id
    with system_session(system_engine) as session:
        row = session.get_one(Job, parse_id("fine-tuning job", job_id))
        row.fence = 1
        prefix = attempts_prefix(row.org_id, row.id)
    lines = b"".join(encode_line(datetime.now(UTC), "info", "x", line, 1) for line in ("one", "two"))
    store.put(chunk_key(prefix, Chunk(1, 0)), io.BytesIO(lines))
    return job_id


@pytest.fixture
def hide_job(system_engine: Engine) -> Callable[[], None]:
    """Make the job one that this API does not have."""

    def harm() -> None:
        with system_session(system_engine) as session:
            session.execute(text("UPDATE jobs SET kind = 'unknown' WHERE kind = 'train'"))

    return harm


@pytest.fixture
def hide_log(
    api_engine: Engine, owner_engine: Engine, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Make an audit log of many pages; and make it one that the API may not read."""
    monkeypatch.setattr(audit_log, "EXPORTED_AT_ONCE", 50)
    with tenant_session(api_engine, caller.org_id) as session:
        for number in range(2000):
            audit.record(session, caller, "file.deleted", f"file-{number}", before={"name": "x" * 2000})

    def harm() -> None:
        with owner_engine.begin() as connection:
            connection.execute(text("REVOKE SELECT ON audit_events FROM zhub_app"))

    return harm


@pytest.fixture
def streams(request: pytest.FixtureRequest) -> dict[str, Break]:
    """Each route that answers with a stream, and how it is broken. Made when asked for: each needs its own rows."""

    def get(name: str) -> Any:
        return request.getfixturevalue(name)

    def job_stream(part: str, query: str) -> Broken:
        return Broken("GET", f"/fine_tuning/jobs/{get('job')}/{part}{query}", get("hide_job"))

    def stored(path: str) -> Broken:
        get("break_store")()
        return Broken("GET", path)

    def chat() -> Broken:
        get("checked_file")
        return Broken("POST", "/chat/completions", body=CHAT)

    return {
        "/v1/chat/completions": chat,
        "/v1/completions": lambda: dataclasses.replace(
            chat(), path="/completions", body={"model": "tiny", "prompt": "x", "stream": True}
        ),
        "/v1/fine_tuning/jobs/{job_id}/events": lambda: job_stream("events", "?stream=true"),
        "/v1/fine_tuning/jobs/{job_id}/logs?stream": lambda: job_stream("logs", "?stream=true"),
        "/v1/fine_tuning/jobs/{job_id}/logs": lambda: stored(f"/fine_tuning/jobs/{get('job')}/logs"),
        "/v1/evaluations/{evaluation_id}/rows": lambda: stored(f"/evaluations/{get('evaluate')()}/rows"),
        "/v1/files/{file_id}/content": lambda: stored(f"/files/{get('checked_file')}/content"),
        "/v1/expert_exports/{export_id}/files/{filename:path}": lambda: stored(
            f"/expert_exports/{get('exported')}/files/a.json"
        ),
        "/v1/experts/{name}/files/{filename}": lambda: stored(f"/experts/{get('publish')()}/files/manifest.json"),
        "/v1/organization/audit_logs/export": lambda: Broken("GET", "/organization/audit_logs/export", get("hide_log")),
    }


NAMES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/fine_tuning/jobs/{job_id}/events",
    "/v1/fine_tuning/jobs/{job_id}/logs?stream",
    "/v1/fine_tuning/jobs/{job_id}/logs",
    "/v1/evaluations/{evaluation_id}/rows",
    "/v1/files/{file_id}/content",
    "/v1/expert_exports/{export_id}/files/{filename:path}",
    "/v1/experts/{name}/files/{filename}",
    "/v1/organization/audit_logs/export",
)


def test_every_route_that_streams_is_broken_here(streams: dict[str, Break]) -> None:
    def answers_piece_by_piece(route: APIRoute) -> bool:
        returned = typing.get_type_hints(route.endpoint)["return"]
        return any(issubclass(part, StreamingResponse) for part in typing.get_args(returned) or (returned,)
                   if isinstance(part, type))  # fmt: skip

    modules = [
        importlib.import_module(found.name) for found in pkgutil.walk_packages(routes.__path__, f"{routes.__name__}.")
    ]
    every = [route for module in modules if hasattr(module, "router") for route in module.router.routes]
    found = {route.path for route in every if answers_piece_by_piece(route)}
    assert found == {name.partition("?")[0] for name in NAMES}
    assert set(streams) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_in_the_middle_of_a_stream_is_an_error_of_its_client(
    name: str, streams: dict[str, Break], api_url: str, make_key: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    broken = streams[name]()
    headers = {"authorization": f"Bearer {make_key()}"}
    pieces: list[bytes] = []
    cut = False
    with httpx.stream(broken.method, api_url + broken.path, headers=headers, json=broken.body, timeout=20) as response:
        assert response.status_code == 200
        try:
            for piece in response.iter_raw():
                if not pieces:
                    broken.harm()
                pieces.append(piece)
        except httpx.RemoteProtocolError:
            cut = True
    if not response.headers["content-type"].startswith("text/event-stream"):
        assert cut  # the answer has no place for an error: it is not whole, and HTTP says so
        return
    *before, last = [event for event in b"".join(pieces).decode().split("\n\n") if event]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert before and not cut
    assert error["message"] and error["code"] and error["status"] >= 400
    assert not any(event.startswith("event: end") or "[DONE]" in event for event in before)


@pytest.mark.parametrize("part", ["events", "logs"])
def test_zhubs_own_client_raises_what_a_stream_of_a_job_breaks_off_with(
    part: str, job: str, hide_job: Callable[[], None], api_url: str, make_key: Callable[..., str]
) -> None:
    with Client(api_url.removesuffix("/v1"), make_key(), poll_s=0.01) as client:
        followed = client.jobs.follow(job) if part == "events" else client.logs.follow(job)
        next(iter(followed))
        hide_job()
        with pytest.raises(ApiError, match="fine-tuning job") as caught:
            list(followed)
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_zhubs_own_client_raises_what_an_answer_breaks_off_with(
    checked_file: str, api_url: str, make_key: Callable[..., str]
) -> None:
    with (
        Client(api_url.removesuffix("/v1"), make_key()) as client,
        pytest.raises(ApiError, match="Serving does not answer") as caught,
    ):
        list(client.chat_stream("tiny", "x"))
    assert (caught.value.status, caught.value.code) == (503, "unavailable")


def test_a_base_that_is_still_decomposed_answers_alone(
    client: openai.OpenAI, make_base_model: Callable[..., uuid.UUID]
) -> None:
    make_base_model("big", status="decomposing", is_default=True)
    for model in ("big", "auto", "auto:big"):
        with client.chat.completions.create(model=model, messages=CHAT["messages"], stream=True) as answer:  # type: ignore[call-overload]
            first = next(iter(answer))
        assert first.routing["base_model"] == "big" and first.system_fingerprint.startswith("fp_")


@pytest.mark.parametrize(("status", "code"), [("uploading", "not_ready"), ("error", "conflict")])
def test_a_base_that_cannot_answer_is_refused_by_name(
    client: openai.OpenAI, make_base_model: Callable[..., uuid.UUID], status: str, code: str
) -> None:
    make_base_model("odd", status=status, error="It has no linear layers.")
    with pytest.raises(openai.ConflictError, match="'odd'") as caught:
        client.chat.completions.create(model="odd", messages=CHAT["messages"])  # type: ignore[call-overload]
    assert caught.value.code == code
