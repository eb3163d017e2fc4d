"""The log of a job, as its team reads it: all attempts in order, without a gap or a repeat, and nobody else's."""

import contextlib
import io
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from zhub import scheduler
from zhub.client import Client
from zhub.database.sessions import system_session
from zhub.ids import public_id
from zhub.models import Attempt
from zhub.queue import job_logs
from zhub.queue.job_logs import Chunk, chunk_key, encode_line, list_chunks
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import attempts_prefix
from zhub.tenancy.keys import Caller
from zhub_api.routes import job_events as streams

MakeJob = Callable[..., uuid.UUID]
MakeKey = Callable[..., str]
Until = Callable[..., Any]
REQUEST = {
    "model": "tiny",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
    "seed": 1,
    "suffix": None,
    "metadata": None,
}


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "POLL_S", 0.05)


@pytest.fixture
def job_id(make_job: MakeJob, caller: Caller, system_engine: Engine) -> uuid.UUID:
    """A job that runs its second attempt."""
    made = make_job(caller, request=REQUEST)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE jobs SET fence = 2"))
    return made


@pytest.fixture
def write(store: DirectoryStore, caller: Caller, job_id: uuid.UUID) -> Callable[..., None]:
    """Store a chunk of some attempt's log."""

    def put(fence: int, number: int, *messages: str) -> None:
        lines = b"".join(encode_line(datetime.now(UTC), "info", "x", message, fence) for message in messages)
        store.put(chunk_key(attempts_prefix(caller.org_id, job_id), Chunk(fence, number)), io.BytesIO(lines))

    return put


@pytest.fixture
def two_attempts(write: Callable[..., None], store: DirectoryStore, caller: Caller, job_id: uuid.UUID) -> None:
    write(1, 0, "1.0.0", "1.0.1")
    write(1, 1, "1.1.0")
    write(2, 0, "2.0.0", "2.0.1")
    # What else an attempt leaves is no log.
    store.put(f"{attempts_prefix(caller.org_id, job_id)}/1/z.safetensors", io.BytesIO(b"z"))


@pytest.fixture
def end(system_engine: Engine) -> Callable[[], None]:
    def cancel() -> None:
        with system_session(system_engine) as session:
            session.execute(text("UPDATE jobs SET state = 'cancelled', finished_at = now()"))

    return cancel


@pytest.fixture
def ask(api_url: str, make_key: MakeKey, job_id: uuid.UUID) -> Callable[..., httpx.Response]:
    def get(*, key: str | None = None, headers: dict[str, str] | None = None, **params: Any) -> httpx.Response:
        where = f"{api_url}/fine_tuning/jobs/{public_id('fine-tuning job', job_id)}/logs"
        authorized = {"authorization": f"Bearer {key or make_key()}"} | (headers or {})
        return httpx.get(where, headers=authorized, params=params, timeout=20)

    return get


def messages(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line)["message"] for line in answer.text.splitlines()]


def streamed(answer: httpx.Response) -> list[tuple[str, str, Any]]:
    """Event, id and content of each message."""
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"])))
    return found


def said(found: list[tuple[str, str, Any]]) -> list[str]:
    return [content["message"] for event, _, content in found if event == "message"]


ALL = ["1.0.0", "1.0.1", "1.1.0", "2.0.0", "2.0.1"]


# As it is now


@pytest.mark.usefixtures("two_attempts")
@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ALL),
        ({"attempt": 1}, ALL[:3]),
        ({"attempt": 2}, ALL[3:]),
        ({"tail": 1}, ALL[-1:]),
        ({"tail": 3}, ALL[-3:]),
        ({"tail": 100}, ALL),
        ({"tail": 2, "attempt": 1}, ALL[1:3]),
    ],
    ids=str,
)
def test_the_log_is_that_of_all_attempts_in_order_or_a_part_of_it(
    ask: Callable[..., httpx.Response], params: dict[str, int], expected: list[str]
) -> None:
    assert messages(ask(**params)) == expected


def test_a_job_that_has_printed_nothing_has_an_empty_log(ask: Callable[..., httpx.Response]) -> None:
    assert messages(ask()) == messages(ask(tail=3)) == []


def test_an_attempt_that_never_was_is_not_found(ask: Callable[..., httpx.Response]) -> None:
    answer = ask(attempt=3)
    assert answer.status_code == 404 and "'3'" in answer.text and "has had 2" in answer.text


@pytest.mark.usefixtures("two_attempts")
@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("other", [("acme", "other"), ("umbrella", "main")], ids=" ".join)
def test_others_are_told_that_there_is_no_such_job(
    ask: Callable[..., httpx.Response], make_key: MakeKey, other: tuple[str, str], stream: str
) -> None:
    assert ask(key=make_key(*other), stream=stream).status_code == 404


def test_a_key_without_the_scope_reads_nothing(ask: Callable[..., httpx.Response], make_key: MakeKey) -> None:
    assert ask(key=make_key(scopes=("files:read",))).status_code == 403


@contextlib.contextmanager
def away(store: DirectoryStore, tmp_path: Path) -> Iterator[None]:
    """The store's directory is not there, as if its disk had been unmounted."""
    kept = tmp_path / "kept"
    store.root.rename(kept)
    yield
    kept.rename(store.root)


# As it grows


@pytest.mark.usefixtures("two_attempts")
def test_a_stream_of_a_job_that_has_ended_tells_all_and_ends(
    ask: Callable[..., httpx.Response], end: Callable[[], None]
) -> None:
    end()
    found = streamed(ask(stream="true"))
    assert said(found) == ALL
    event, line_id, job = found[-1]
    assert (event, line_id, job["object"], job["status"]) == ("end", "", "fine_tuning.job", "cancelled")


@pytest.mark.usefixtures("two_attempts")
@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("how", ["header", "after"])
def test_a_stream_goes_on_after_the_line_that_was_read_last(
    ask: Callable[..., httpx.Response], end: Callable[[], None], count: int, how: str
) -> None:
    end()
    ids = [line_id for event, line_id, _ in streamed(ask(stream="true")) if event == "message"]
    assert ids == ["1/0/0", "1/0/1", "1/1/0", "2/0/0", "2/0/1"]
    seen = ids[count - 1]
    rest = ask(stream="true", headers={"last-event-id": seen}) if how == "header" else ask(stream="true", after=seen)
    assert said(streamed(rest)) == ALL[count:]


@pytest.mark.usefixtures("two_attempts")
def test_a_stream_may_begin_with_the_last_lines(ask: Callable[..., httpx.Response], end: Callable[[], None]) -> None:
    end()
    assert said(streamed(ask(stream="true", tail=2))) == ALL[-2:]


@pytest.mark.usefixtures("two_attempts")
def test_a_stream_of_an_attempt_that_another_has_followed_ends(ask: Callable[..., httpx.Response]) -> None:
    found = streamed(ask(stream="true", attempt=1))
    assert said(found) == ALL[:3] and found[-1][0] == "end"


@pytest.mark.parametrize("position", ["1", "1/0", "a/b/c", "1/0/0/0", "-1/0/0", "9" * 20 + "/0/0"])
def test_a_position_that_is_none_is_refused(ask: Callable[..., httpx.Response], position: str) -> None:
    answer = ask(stream="true", after=position)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


@pytest.fixture
def follow(api_url: str, make_key: MakeKey, job_id: uuid.UUID) -> Callable[[], tuple[list[str], threading.Event]]:
    """Follow the log with zhub's own client, in a thread: what it has told, and whether it has ended."""

    def begin() -> tuple[list[str], threading.Event]:
        told, over = list[str](), threading.Event()
        client = Client(api_url.removesuffix("/v1"), make_key(), poll_s=0.01)

        def read() -> None:
            with client:
                for line in client.logs.follow(public_id("fine-tuning job", job_id)):
                    told.append(line.message)
            over.set()

        threading.Thread(target=read, daemon=True).start()
        return told, over

    return begin


def test_a_follower_sees_lines_as_they_come_and_the_next_attempt(
    write: Callable[..., None], follow: Callable[[], Any], end: Callable[[], None], until: Until, system_engine: Engine
) -> None:
    write(2, 0, "first")
    told, over = follow()
    until(lambda: told == ["first"])
    write(2, 1, "second")
    until(lambda: told == ["first", "second"])
    with system_session(system_engine) as session:
        session.execute(text("UPDATE jobs SET fence = 3"))
    write(3, 0, "third")
    until(lambda: told == ["first", "second", "third"])
    write(3, 1, "last")
    end()
    assert over.wait(20) and told == ["first", "second", "third", "last"]


def test_a_stream_that_is_cut_again_and_again_neither_repeats_nor_misses(
    write: Callable[..., None], follow: Callable[[], Any], end: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAM_S", 0.1)
    told, over = follow()
    expected = [f"{number}.{line}" for number in range(30) for line in range(3)]
    for number in range(30):
        write(2, number, *(f"{number}.{line}" for line in range(3)))
        over.wait(0.02)
    end()
    assert over.wait(20) and told == expected


@pytest.mark.usefixtures("two_attempts")
def test_a_stream_waits_for_a_store_that_is_away(
    store: DirectoryStore, tmp_path: Path, follow: Callable[[], Any],
    end: Callable[[], None], until: Until,
) -> None:  # fmt: skip
    told, over = follow()
    until(lambda: told == ALL)
    with away(store, tmp_path):
        end()
        assert not over.wait(0.5)
    assert over.wait(20) and told == ALL


# Retention


@pytest.fixture
def attempts_that_ended(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> None:
    """Attempt 1 ended 91 days ago, attempt 2 ended 89 days ago."""
    with system_session(system_engine) as session:
        for fence, days in ((1, 91), (2, 89)):
            session.add(
                Attempt(
                    org_id=caller.org_id, job_id=job_id, fence=fence, agent_id=uuid.uuid4(), outcome="failed_user",
                    ended_at=text(f"now() - interval '{days} days'"),
                )
            )  # fmt: skip


@pytest.mark.usefixtures("two_attempts", "attempts_that_ended")
def test_a_sweep_removes_the_logs_of_old_attempts_and_nothing_else(
    system_engine: Engine, store: DirectoryStore, ask: Callable[..., httpx.Response]
) -> None:
    removed, swept = job_logs.sweep(system_engine, store, kept=timedelta(days=90), after=None)
    assert removed == 2 and messages(ask()) == ALL[3:]
    assert sum(key.endswith("z.safetensors") for key in store.keys("t/")) == 1
    assert job_logs.sweep(system_engine, store, kept=timedelta(days=90), after=swept) == (0, swept)


@pytest.mark.usefixtures("two_attempts", "attempts_that_ended")
def test_the_scheduler_sweeps_logs_until_it_stops(
    system_engine: Engine, store: DirectoryStore, caller: Caller, job_id: uuid.UUID, until: Until
) -> None:
    stopping = threading.Event()
    arguments = (system_engine, store, timedelta(days=90), stopping)
    thread = threading.Thread(target=scheduler.sweep_logs, args=arguments)
    thread.start()
    try:
        until(lambda: len(list_chunks(store, attempts_prefix(caller.org_id, job_id))) == 1)
    finally:
        stopping.set()
        thread.join(timeout=15)
    assert not thread.is_alive()


class _StopsWhenItWaits(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


@pytest.mark.parametrize("how_many", ["attempts_that_ended", "job_id"])
def test_a_scheduler_with_no_more_logs_to_sweep_waits(
    system_engine: Engine, store: DirectoryStore, how_many: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(how_many)
    arguments = (system_engine, store, timedelta(days=90), stopping := _StopsWhenItWaits())
    thread = threading.Thread(target=scheduler.sweep_logs, args=arguments, daemon=True)
    thread.start()
    thread.join(timeout=15)
    waited = stopping.is_set()
    stopping.set()
    assert waited
