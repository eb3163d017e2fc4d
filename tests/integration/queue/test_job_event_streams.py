"""Streams of a job's events: told as they come, resumed, limited in number, and ended with the job."""

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from zhub.embedded.postgres import Urls
from zhub.ids import public_id
from zhub.process.config import Settings
from zhub.process.shares import Shares
from zhub.process.wakeup import PollingWakeup, job_topic
from zhub_api.app import create_app
from zhub_api.routes import job_events as routes

Until = Callable[..., Any]


class Stream:
    """A stream that a client reads in a thread."""

    def __init__(self, url: str, key: str, job_id: uuid.UUID, **options: Any) -> None:
        self.messages: list[tuple[str, str, Any]] = []
        """Event, id and content of each."""
        self.comments = 0
        self.error: Exception | None = None
        self.over = threading.Event()
        self._leave = threading.Event()
        headers = {"authorization": f"Bearer {key}"} | options.pop("headers", {})
        params = {"stream": "true"} | options
        where = f"{url}/fine_tuning/jobs/{public_id('fine-tuning job', job_id)}/events"
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._read, args=(where, headers, params))
        self._thread.start()

    def _read(self, url: str, headers: dict[str, str], params: dict[str, str]) -> None:
        fields: dict[str, str] = {}
        try:
            with httpx.stream("GET", url, headers=headers, params=params, timeout=20) as response:
                self._socket = response.extensions["network_stream"].get_extra_info("socket")
                assert response.status_code == 200, response.read()
                assert response.headers["content-type"].startswith("text/event-stream")
                for line in response.iter_lines():
                    if self._leave.is_set():
                        return
                    name, _, value = line.partition(":")
                    if name:
                        fields[name] = value.removeprefix(" ")
                    elif line:
                        self.comments += 1
                    elif fields:
                        content = json.loads(fields["data"])
                        self.messages.append((fields.get("event", "message"), fields.get("id", ""), content))
                        fields = {}
        except Exception as exc:
            self.error = exc
        finally:
            self.over.set()

    @property
    def told(self) -> list[str]:
        return [content["message"] for event, _, content in self.messages if event == "message"]

    def leave(self) -> None:
        self._leave.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self._thread.join(timeout=20)


@pytest.fixture
def open_stream(make_key: Callable[..., str], api_url: str) -> Iterator[Callable[..., Stream]]:
    opened: list[Stream] = []

    def begin(job_id: uuid.UUID, *, url: str = api_url, **options: Any) -> Stream:
        opened.append(Stream(url, make_key(), job_id, **options))
        return opened[-1]

    yield begin
    for stream in opened:
        stream.leave()
    for stream in opened:
        stream.join()


def test_a_stream_tells_what_was_then_what_happens_and_ends_with_the_job(
    job_id: uuid.UUID, tell: Callable[[str], None], end: Callable[[], None], open_stream: Callable[..., Stream],
    until: Until,
) -> None:  # fmt: skip
    tell("Before.")
    stream = open_stream(job_id)
    until(lambda: stream.told == ["Enqueued.", "Before."])
    tell("Meanwhile.")
    until(lambda: len(stream.told) == 3)
    end()
    assert stream.over.wait(20) and stream.error is None
    assert stream.told == ["Enqueued.", "Before.", "Meanwhile.", "Over."]
    event, event_id, content = stream.messages[-1]
    assert (event, event_id, content["object"], content["status"]) == ("end", "", "fine_tuning.job", "cancelled")


@pytest.mark.parametrize("how", ["Last-Event-ID", "after", "both"])
def test_a_stream_goes_on_after_the_event_that_the_client_saw_last(
    job_id: uuid.UUID, tell: Callable[[str], None], end: Callable[[], None], open_stream: Callable[..., Stream],
    how: str,
) -> None:  # fmt: skip
    for message in ("One.", "Two.", "Three."):
        tell(message)
    end()
    whole = open_stream(job_id)
    assert whole.over.wait(20)
    enqueued, last_seen = (event_id for _, event_id, _ in whole.messages[:2])
    in_header = {"headers": {"last-event-id": last_seen}}
    # A browser that connects again repeats its first address, and says in the header where it has come to.
    options: dict[str, dict[str, Any]] = {
        "Last-Event-ID": in_header,
        "after": {"after": last_seen},
        "both": {"after": enqueued, **in_header},
    }
    rest = open_stream(job_id, **options[how])
    assert rest.over.wait(20)
    assert rest.told == ["Two.", "Three.", "Over."]


def test_a_stream_from_an_event_that_never_was_is_not_found(
    api_url: str, make_key: Callable[..., str], job_id: uuid.UUID
) -> None:
    where = f"{api_url}/fine_tuning/jobs/{public_id('fine-tuning job', job_id)}/events?stream=true"
    headers = {"authorization": f"Bearer {make_key()}", "last-event-id": f"ftevent-{'0' * 32}"}
    answer = httpx.get(where, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_a_stream_does_not_end_before_the_last_event_is_told(
    system_engine: Engine, job_id: uuid.UUID, end: Callable[[], None], open_stream: Callable[..., Stream], until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(routes, "POLL_S", 0.05)
    with Session(system_engine) as older:
        stream = open_stream(job_id)
        until(lambda: stream.told)
        older.execute(text("SELECT pg_current_xact_id()"))
        end()
        assert not stream.over.wait(1)
        older.rollback()
    assert stream.over.wait(20)
    assert [event for event, *_ in stream.messages] == ["message", "message", "end"]


def test_a_stream_that_has_nothing_to_tell_says_so(
    job_id: uuid.UUID, open_stream: Callable[..., Stream], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(routes, "POLL_S", 0.05)
    stream = open_stream(job_id)
    until(lambda: stream.comments >= 3)
    assert stream.told == ["Enqueued."]


def test_a_client_that_goes_away_gives_its_place_back(
    app: FastAPI, job_id: uuid.UUID, open_stream: Callable[..., Stream], until: Until
) -> None:
    stream = open_stream(job_id)
    until(lambda: stream.told)
    assert app.state.streams.count == 1
    stream.leave()
    until(lambda: app.state.streams.count == 0)
    assert app.state.streams._waiting == {}


def test_a_process_serves_so_many_streams_and_says_so_to_the_next(
    app: FastAPI, api_url: str, make_key: Callable[..., str], job_id: uuid.UUID, open_stream: Callable[..., Stream],
    until: Until,
) -> None:  # fmt: skip
    app.state.streams = routes.Streams(Shares("event streams", places=1, per_org=2))
    first = open_stream(job_id)
    until(lambda: first.told)
    where = f"{api_url}/fine_tuning/jobs/{public_id('fine-tuning job', job_id)}/events?stream=true"
    answer = httpx.get(where, headers={"authorization": f"Bearer {make_key()}"})
    assert answer.status_code == 503 and "serves 1 event streams" in answer.json()["error"]["message"]
    first.leave()
    until(lambda: app.state.streams.count == 0)
    second = open_stream(job_id)
    until(lambda: second.told)


def test_more_streams_than_threads_and_connections_leave_room_for_other_requests(
    app: FastAPI, api_url: str, make_key: Callable[..., str], job_id: uuid.UUID, open_stream: Callable[..., Stream],
    tell: Callable[[str], None], until: Until,
) -> None:  # fmt: skip
    streams = [open_stream(job_id) for _ in range(60)]
    until(lambda: all(stream.told for stream in streams))
    answer = httpx.get(f"{api_url}/fine_tuning/jobs", headers={"authorization": f"Bearer {make_key()}"}, timeout=20)
    assert answer.status_code == 200
    tell("To all.")
    until(lambda: all("To all." in stream.told for stream in streams))
    until(lambda: app.state.context.engine.pool.checkedout() == 0)


def test_a_stream_survives_a_database_that_is_away(
    serve: Callable[[Settings], str], settings: Settings, database: Urls, proxy: Any, job_id: uuid.UUID,
    tell: Callable[[str], None], open_stream: Callable[..., Stream], until: Until,
) -> None:  # fmt: skip
    url = serve(settings.model_copy(update={"database_url": proxy.url(database.api)}))
    stream = open_stream(job_id, url=url)
    until(lambda: stream.told)
    proxy.cut()
    tell("Unseen.")
    assert not stream.over.wait(2)
    proxy.mend()
    until(lambda: stream.told == ["Enqueued.", "Unseen."], timeout_s=40)


class Loudspeaker(PollingWakeup):
    """Hints within one process."""

    def __init__(self) -> None:
        super().__init__()
        self._topic: str | None = None
        self._told = threading.Event()

    def notify(self, topic: str) -> None:
        self._topic = topic
        self._told.set()

    def hear(self, prefix: str, timeout_s: float) -> str | None:
        if not self._told.wait(timeout_s):
            return None
        self._told.clear()
        return self._topic


def test_a_hint_is_told_before_the_next_look(
    settings: Settings, run_server: Callable[[FastAPI], str], job_id: uuid.UUID, tell: Callable[[str], None],
    open_stream: Callable[..., Stream], until: Until, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    speaker = Loudspeaker()
    monkeypatch.setattr("zhub_api.app.open_wakeup", lambda _url: speaker)
    app = create_app(settings)
    monkeypatch.setattr(routes, "POLL_S", 0.2)
    url = run_server(app)
    monkeypatch.setattr(routes, "POLL_S", 600.0)
    stream = open_stream(job_id, url=url)
    until(lambda: stream.told)
    tell("New.")

    def told() -> bool:
        speaker.notify(job_topic(job_id))
        time.sleep(0.05)
        return "New." in stream.told

    until(told)
