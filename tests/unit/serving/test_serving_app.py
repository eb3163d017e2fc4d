"""What a replica of the Serve app writes, as the API reads it."""

import asyncio
import http.server
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from ray import serve  # noqa: TID251
from starlette.requests import Request
from starlette.responses import Response

from zhub.generation import LINE, Ended, Line, Text
from zhub.process.config import Settings
from zhub_workers.serving import app, engine, ray_routing
from zhub_workers.serving.app import Generation, json_lines, sha256_of
from zhub_workers.serving.engine import Engine

TOKEN = "0123456789abcdef" * 4


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\r\n"], ids=ascii)
def test_a_separator_of_lines_in_an_answer_stays_in_its_line(separator: str) -> None:
    answer: list[Line] = [Text(text=f"before{separator}after"), Ended(finish_reason="stop", completion_tokens=3)]

    async def written() -> str:
        lines: asyncio.Queue[Line] = asyncio.Queue()
        for line in answer:
            lines.put_nowait(line)
        return "".join([text async for text in json_lines(lines, 1, lambda: None)])

    read = httpx.Response(200, content=asyncio.run(written())).iter_lines()
    assert [LINE.validate_json(text) for text in read] == answer


@pytest.fixture
def answer(tmp_path: Path) -> Callable[..., Response]:
    """Ask a replica whose token is ``TOKEN``, unless told otherwise with a body that is no request of ours."""
    kind: Any = Generation.func_or_class  # type: ignore[attr-defined]  # the decorator's type hides it
    replica = kind(tmp_path.as_uri(), str(tmp_path), "cpu", "text", sha256_of(TOKEN), (0.5, 0.1))

    def ask(path: str, authorization: str | None, body: bytes = b"{}") -> Response:
        headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        response: Response = asyncio.run(replica(Request(scope, receive)))
        return response

    return ask


@pytest.mark.parametrize(
    "authorization", [None, "", TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xff"]
)
def test_nobody_without_the_platforms_token_is_answered(
    answer: Callable[..., Response], authorization: str | None
) -> None:
    assert answer("/generate", authorization).status_code == 401


def test_the_platforms_token_lets_a_request_in(answer: Callable[..., Response]) -> None:
    assert answer("/generate", f"Bearer {TOKEN}").status_code == 400  # let in, and then found to be no request


@pytest.mark.parametrize(
    ("path", "body"), [("/generate", {"basis": None}), ("/embed", {"inputs": ["x"]})], ids=["generate", "embed"]
)
def test_an_organisation_with_too_many_unanswered_requests_is_told_so_and_not_that_serving_is_away(
    answer: Callable[..., Response], monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(engine, "MAX_UNANSWERED", 0)
    asked = json.dumps({"base": {"name": "tiny", "files": []}} | body).encode()
    assert answer(path, f"Bearer {TOKEN}", asked).status_code == 429


def test_whether_a_replica_is_up_is_told_to_everybody(answer: Callable[..., Response]) -> None:
    assert answer("/", None).status_code == 200


def test_a_replica_whose_engine_is_not_well_says_so_to_everybody(
    answer: Callable[..., Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sick(_self: Engine) -> None:
        raise RuntimeError("The engine's thread has died.")

    monkeypatch.setattr(Engine, "check_health", sick)
    assert answer("/", None).status_code == 503


class Front(http.server.BaseHTTPRequestHandler):
    """Serve's HTTP front while every replica is busy: only the front itself answers."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/-/healthz" else 503)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.mark.parametrize(
    ("status", "well"), [("RUNNING", True), ("DEPLOYING", False), ("UNHEALTHY", False), (None, False)]
)
def test_a_serving_that_is_only_busy_is_well_as_long_as_ray_serve_says_so(
    monkeypatch: pytest.MonkeyPatch, status: str | None, well: bool
) -> None:
    applications = {} if status is None else {app.APP: SimpleNamespace(status=status, message="")}
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=applications))
    with http.server.HTTPServer(("127.0.0.1", 0), Front) as server:
        threading.Thread(target=server.serve_forever).start()
        assert app._answers(f"http://127.0.0.1:{server.server_port}") == well
        server.shutdown()


def test_that_ray_serve_gave_up_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {app.APP: SimpleNamespace(status="DEPLOY_FAILED", message="no module named torch")}
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=failed))
    with pytest.raises(RuntimeError, match="given up: no module named torch"):
        app._answers("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"num_replicas": 1}),
        ({"serving_replicas": 3, "serving_max_replicas": 2}, {"num_replicas": 3}),
        (
            {"serving_replicas": 2, "serving_max_replicas": 5, "serving_cpus": 4.0},
            {"autoscaling_config": {"min_replicas": 2, "max_replicas": 5, "policy": ray_routing.scaling()}},
        ),
    ],
)
def test_replicas_are_as_many_as_the_settings_say_and_reserve_what_they_say(
    asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = Settings(database_url="postgresql://x", store_url="file:///nowhere", **asked)
    options = app.replica_options(settings, 0.5)
    reserved = {"num_cpus": asked.get("serving_cpus", 0.0), "num_gpus": 0.5}
    assert options == {"ray_actor_options": reserved, "request_router_config": ray_routing.routing()} | expected
    Generation.options(**options)  # type: ignore[attr-defined]  # Serve refuses options that it does not know


def test_a_cache_that_leaves_no_memory_for_weights_is_refused() -> None:
    with pytest.raises(ValidationError, match="must be less than ZHUB_SERVING_MEMORY_SHARE"):
        Settings(database_url="x", store_url="file:///x", serving_memory_share=0.1, serving_cache_share=0.2)


def test_a_client_that_leaves_ends_what_is_computed_for_it() -> None:
    cancelled: list[bool] = []

    async def leave() -> None:
        lines: asyncio.Queue[Line] = asyncio.Queue()
        lines.put_nowait(Text(text="the beginning"))
        stream = json_lines(lines, 1, lambda: cancelled.append(True))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator

    asyncio.run(leave())
    assert cancelled == [True]


def test_a_stream_goes_on_until_the_last_of_its_answers_has_ended() -> None:
    answer: list[Line] = [
        Ended(index=1, finish_reason="stop", completion_tokens=3),
        Text(text="more"),
        Ended(index=0, finish_reason="stop", completion_tokens=3),
    ]

    async def written() -> str:
        lines: asyncio.Queue[Line] = asyncio.Queue()
        for line in answer:
            lines.put_nowait(line)
        return "".join([text async for text in json_lines(lines, 2, lambda: None)])

    assert [LINE.validate_json(text) for text in asyncio.run(written()).splitlines()] == answer


def test_what_comes_while_a_piece_waits_to_be_sent_goes_with_it_and_the_first_piece_waits_for_nothing() -> None:
    async def written() -> list[list[Line]]:
        lines: asyncio.Queue[Line] = asyncio.Queue()
        lines.put_nowait(Text(text="a"))
        stream = json_lines(lines, 2, lambda: None)
        pieces = [await anext(stream)]
        for text in (Text(text="b"), Text(index=1, text="x"), Text(index=1, text="y", count=2), Text(text="c")):
            lines.put_nowait(text)
        pieces.append(await anext(stream))
        ends = [Ended(index=index, finish_reason="stop", completion_tokens=3) for index in (0, 1)]
        lines.put_nowait(Text(text="d"))
        for end in ends:
            lines.put_nowait(end)
        pieces += [piece async for piece in stream]
        return [[LINE.validate_json(text) for text in piece.splitlines()] for piece in pieces]

    first, second, *rest = asyncio.run(written())
    assert first == [Text(text="a")]
    assert second == [Text(text="b"), Text(index=1, text="xy", count=3), Text(text="c")]
    assert [line for piece in rest for line in piece][0] == Text(text="d")
    assert sum(isinstance(line, Ended) for piece in rest for line in piece) == 2
