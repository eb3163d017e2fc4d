"""Bodies are read for known keys only, and up to a limit; heads have to come in time."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from suites import ROWS

from zhub_api import bodies, client_timeouts
from zhub_api.client_timeouts import TimedProtocol

PIECE = b" " * (1 << 16)


class CountedPieces:
    """A body that says how much of it was sent."""

    def __init__(self, size_bytes: int) -> None:
        self.left = size_bytes
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        while self.left > 0:
            self.left -= len(PIECE)
            self.sent += len(PIECE)
            yield PIECE


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=20) as connection:
        yield connection


@pytest.mark.parametrize("key", ["", "Authorization: Bearer zhub_" + "0" * 12 + "_" + "0" * 43 + "\r\n"])
def test_a_body_is_asked_for_only_once_its_key_is_known(api_url: str, key: str) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{key}"
        "Content-Length: 150000000\r\nExpect: 100-continue\r\n\r\n"
    )
    with connected(api_url) as connection:
        connection.sendall(head.encode())
        # Not "100 Continue": nothing of the body has come, and the answer is there.
        answer = b""
        while b"API key" not in answer and (piece := connection.recv(1 << 16)):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 401 ") and b"API key" in answer


@pytest.mark.parametrize("chunked", [True, False])
def test_json_beyond_the_limit_is_refused_with_the_limit(
    api_url: str, make_key: Callable[..., str], chunked: bool
) -> None:
    headers = {"authorization": f"Bearer {make_key()}", "content-type": "application/json"}
    content: Any = CountedPieces(bodies.MAX_JSON_BYTES + 1) if chunked else b" " * (bodies.MAX_JSON_BYTES + 1)
    answer = httpx.post(f"{api_url}/fine_tuning/jobs", content=content, headers=headers, timeout=30)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (413, "request_too_large")
    assert "more than 8,388,608 bytes" in error["message"]
    assert answer.headers["x-request-id"]


def test_files_may_be_larger_than_json(
    api_url: str, make_key: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_JSON_BYTES", 10)
    headers = {"authorization": f"Bearer {make_key()}"}
    asked = {"data": {"purpose": "fine-tune"}, "files": {"file": ROWS}}
    assert httpx.post(f"{api_url}/files", headers=headers, **asked).status_code == 200  # type: ignore[arg-type]
    monkeypatch.setattr(
        bodies, "UPLOADS", [(method, pattern, limit and 10) for method, pattern, limit in bodies.UPLOADS]
    )
    refused = httpx.post(f"{api_url}/files", headers=headers, **asked)  # type: ignore[arg-type]
    assert refused.status_code == 413


def test_every_route_that_is_sent_files_has_a_limit_of_its_own() -> None:
    assert bodies.max_body_bytes("POST", "/v1/files") == (2 << 30) + bodies.MULTIPART_BYTES
    assert bodies.max_body_bytes("PUT", "/v1/base_models/tiny/files/model.safetensors") is None
    assert bodies.max_body_bytes("POST", "/v1/base_models") == bodies.MAX_JSON_BYTES


@pytest.fixture
def timed_url(app: FastAPI, run_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The API as its process serves it, but less patient."""
    monkeypatch.setattr(client_timeouts, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(uvicorn, "Config", partial(uvicorn.Config, http=TimedProtocol))
    return run_server(app)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nX-Slow: "],
    ids=["nothing", "half a head", "half a second head"],
)
def test_a_connection_that_sends_no_whole_head_in_time_is_closed(timed_url: str, sent: bytes) -> None:
    with connected(timed_url) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == sent.count(b"\r\n\r\n")


def test_a_connection_that_takes_nothing_of_a_long_answer_is_closed_and_its_stream_ends(
    app: FastAPI, run_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_timeouts, "SEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(uvicorn, "Config", partial(uvicorn.Config, http=TimedProtocol))
    ended = threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * (1 << 16)
                await asyncio.sleep(0)  # as whatever an answer is made of
        finally:
            ended.set()

    app.add_api_route("/endless", lambda: StreamingResponse(endless()))
    with connected(run_server(app)) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ended.wait(20)


def test_a_connection_whose_heads_come_in_time_is_kept(timed_url: str) -> None:
    with httpx.Client(base_url=timed_url.removesuffix("/v1")) as client:
        assert [client.get("/healthz").status_code for _ in range(3)] == [200, 200, 200]
