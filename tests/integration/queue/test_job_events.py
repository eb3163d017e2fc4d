"""What happened to a job, as its readers get it: without a gap and without a repeat, in pages, streams and series."""

import contextlib
import json
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from job_moves import admit, claimed, heartbeat, messages, pause, stopped
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.errors import NotFoundError
from zhub.ids import public_id
from zhub.process.config import Settings
from zhub.process.wakeup import PollingWakeup, job_topic
from zhub.queue import job_events
from zhub.queue.job_events import Event
from zhub.tenancy.keys import Caller
from zhub_api.app import create_app
from zhub_api.routes import job_events as routes

MakeJob = Callable[..., uuid.UUID]
Until = Callable[..., Any]
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


# The order


class Reader:
    """Reads on from where it was, as a stream does."""

    def __init__(self, engine: Engine, job_id: uuid.UUID) -> None:
        self.engine, self.job_id = engine, job_id
        self.cursor = job_events.START

    def __call__(self) -> list[str]:
        with system_session(self.engine) as session:
            found, self.is_all = job_events.list_settled(session, self.job_id, after=self.cursor, limit=100)
            if found:
                self.cursor = (found[-1].xid, found[-1].position)
            return [event.message for event in found]


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@pytest.mark.parametrize("first_to_commit", ["older", "younger"])
@pytest.mark.parametrize("first_to_write", ["older", "younger"])
def test_a_reader_misses_and_repeats_nothing_of_two_interleaved_transactions(
    system_engine: Engine, caller: Caller, job_id: uuid.UUID, first_to_write: str, first_to_commit: str
) -> None:
    read = Reader(system_engine, job_id)
    assert read() == ["Enqueued."]
    with transaction(system_engine) as older, transaction(system_engine) as younger:
        for session in (older, younger):
            session.execute(text("SELECT pg_current_xact_id()"))
        by_name = {"older": older, "younger": younger}
        other = {"older": "younger", "younger": "older"}
        for name in (first_to_write, other[first_to_write]):
            job_events.add(by_name[name], caller.org_id, job_id, name)
        seen = read()
        by_name[first_to_commit].commit()
        seen += read()
        # What is told while the older one is open is held back with it, and not mistaken for the end.
        assert seen == (["older"] if first_to_commit == "older" else [])
        assert read.is_all is (first_to_commit == "older")
        by_name[other[first_to_commit]].commit()
        seen += read()
    assert seen == ["older", "younger"] and read.is_all


def test_many_writers_at_once_cost_a_reader_nothing(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> None:
    read = Reader(system_engine, job_id)
    writing = threading.Event()
    writing.set()

    def write(writer: int) -> None:
        for number in range(25):
            with system_session(system_engine) as session:
                job_events.add(session, caller.org_id, job_id, f"{writer}.{number}")
                session.execute(text("SELECT pg_sleep(:s)"), {"s": random.random() / 200})
                job_events.add(session, caller.org_id, job_id, f"{writer}.{number}'")

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in writers:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in writers):
        seen += read()
    seen += read()
    expected = {f"{writer}.{number}{end}" for writer in range(4) for number in range(25) for end in ("", "'")}
    assert sorted(seen) == sorted({"Enqueued.", *expected})


def test_pages_and_streams_have_one_order(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> None:
    with transaction(system_engine) as older, transaction(system_engine) as younger:
        older.execute(text("SELECT pg_current_xact_id()"))
        job_events.add(younger, caller.org_id, job_id, "younger")
        younger.commit()
        job_events.add(older, caller.org_id, job_id, "older")
        older.commit()
    with system_session(system_engine) as session:
        newest, _ = job_events.list_newest(session, job_id, before=None, limit=10)
    assert [event.message for event in newest][::-1] == Reader(system_engine, job_id)()


def test_a_cursor_of_another_job_is_none(
    system_engine: Engine, make_job: MakeJob, caller: Caller, job_id: uuid.UUID
) -> None:
    other = make_job(caller)
    with system_session(system_engine) as session:
        (event,) = job_events.list_newest(session, other, before=None, limit=1)[0]
        with pytest.raises(NotFoundError):
            job_events.cursor_of(session, job_id, event.id)


# The stream


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
    enqueued, one = (event_id for _, event_id, _ in whole.messages[:2])
    in_header = {"headers": {"last-event-id": one}}
    # A browser that connects again repeats its first address, and says in the header where it has come to.
    options: dict[str, dict[str, Any]] = {
        "Last-Event-ID": in_header,
        "after": {"after": one},
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
    with transaction(system_engine) as older:
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
    until: Until, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(routes, "MAX_STREAMS", 1)
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


# Series


@pytest.fixture
def measure(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> Callable[..., None]:
    """Report metrics of an attempt: values by step."""

    def report(fence: int, **series: dict[int, float]) -> None:
        steps = sorted({step for values in series.values() for step in values})
        found = [
            Event(seq, "info", "metrics", "m", {"step": step} | {n: v[step] for n, v in series.items() if step in v})
            for seq, step in enumerate(steps, start=1)
        ]
        with system_session(system_engine) as session:
            job_events.store(session, caller.org_id, job_id, fence, found)

    return report


def series_of(engine: Engine, job_id: uuid.UUID, points: int) -> dict[str, dict[int, float]]:
    with system_session(engine) as session:
        found = job_events.metric_series(session, job_id, points=points)
    return {one.name: {point["step"]: point["value"] for point in one.points} for one in found}


def test_a_short_series_is_whole(system_engine: Engine, job_id: uuid.UUID, measure: Callable[..., None]) -> None:
    loss, reward = {1: 2.0, 2: 1.5, 3: 1.75}, {2: 0.5}
    measure(1, train_loss=loss, valid_reward_mean=reward)
    assert series_of(system_engine, job_id, 4) == {"train_loss": loss, "valid_reward_mean": reward}


@pytest.mark.parametrize("points", [4, 5, 10, 99, 100, 998, 1000])
def test_a_long_series_keeps_its_ends_and_the_extremes_of_each_stretch(
    system_engine: Engine, job_id: uuid.UUID, measure: Callable[..., None], points: int
) -> None:
    rng = random.Random(points)
    loss = {step: rng.random() for step in range(1, 1000)}
    measure(1, train_loss=loss)
    (found,) = series_of(system_engine, job_id, points).values()
    # Slowly, from the words: the ends, and of each stretch in between the lowest and the highest.
    expected = dict(loss)
    if len(loss) > points:
        inner = [(step, value) for step, value in loss.items() if step not in (1, 999)]
        stretches: dict[int, list[tuple[int, float]]] = {}
        for place, point in enumerate(inner):
            stretches.setdefault(place * ((points - 2) // 2) // len(inner), []).append(point)
        kept = [pick(stretch, key=lambda point: point[1]) for stretch in stretches.values() for pick in (min, max)]
        expected = dict([(1, loss[1]), *kept, (999, loss[999])])
    assert found == expected and len(found) <= points
    assert (min(found.values()), max(found.values())) == (min(loss.values()), max(loss.values()))


def test_what_an_attempt_measured_after_the_step_that_the_next_went_on_from_is_left_out(
    system_engine: Engine, job_id: uuid.UUID, measure: Callable[..., None]
) -> None:
    # Every attempt measures the base first, as step 0.
    measure(1, train_loss={step: 1.0 for step in range(1, 31)}, valid_reward_mean={0: 0.25, 10: 0.5, 30: 0.75})
    measure(2, train_loss={step: 2.0 for step in range(21, 24)}, valid_reward_mean={0: 0.25})
    assert series_of(system_engine, job_id, 100) == {
        "train_loss": {step: 1.0 for step in range(1, 21)} | {step: 2.0 for step in range(21, 24)},
        "valid_reward_mean": {0: 0.25, 10: 0.5},
    }


def test_what_is_no_number_is_no_metric(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> None:
    data = {"type": "metrics", "step": 1, "train_loss": 0.5, "note": "x", "flag": True, "list": [1]}
    with system_session(system_engine) as session:
        job_events.add(session, caller.org_id, job_id, "metrics by another name", data=data)
        job_events.add(session, caller.org_id, job_id, "no step", data={"type": "metrics", "train_loss": 9.0})
        job_events.add(session, caller.org_id, job_id, "no metrics", data={"step": 2, "train_loss": 9.0})
    assert series_of(system_engine, job_id, 4) == {"train_loss": {1: 0.5}}


def test_the_route_says_how_many_points_there_were(
    api_url: str, make_key: Callable[..., str], job_id: uuid.UUID, measure: Callable[..., None]
) -> None:
    measure(1, train_loss={step: float(step) for step in range(1, 101)})
    where = f"{api_url}/fine_tuning/jobs/{public_id('fine-tuning job', job_id)}/metrics"
    headers = {"authorization": f"Bearer {make_key()}"}
    answer = httpx.get(where, params={"points": 10}, headers=headers).json()
    (series,) = answer["series"]
    assert (series["name"], series["count"], len(series["points"])) == ("train_loss", 100, 10)
    too_few = httpx.get(where, params={"points": 3}, headers=headers)
    assert (too_few.status_code, too_few.json()["error"]["param"]) == (400, "points")


def test_every_move_of_a_job_is_told_once(
    system_engine: Engine,
    api_engine: Engine,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    caller: Caller,
) -> None:
    make_agent()
    job_id = make_job(caller)
    admit(system_engine)
    fence = claimed(system_engine).fence
    for _ in range(2):
        heartbeat(system_engine, job_id, fence)
    pause(api_engine, caller, job_id)
    for _ in range(2):
        heartbeat(system_engine, job_id, fence)
    stopped(system_engine, job_id, fence)
    assert messages(system_engine, job_id) == [
        "Enqueued.",
        "The job is admitted.",
        "Attempt 1 started.",
        "The job is running.",
        "Pause requested.",
        "The job is stopping.",
        "The job is paused.",
    ]
