"""What happened to a job, as its readers get it: in one order, without a gap and without a repeat."""

import random
import threading
import uuid
from collections.abc import Callable

import pytest
from job_moves import admit, claimed, heartbeat, messages, pause, stopped
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from zhub.database.sessions import system_session
from zhub.errors import NotFoundError
from zhub.queue import job_events
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


class Reader:
    """Reads on from where it was, as a stream does."""

    def __init__(self, engine: Engine, job_id: uuid.UUID) -> None:
        self.engine, self.job_id = engine, job_id
        self.cursor = job_events.START

    def __call__(self) -> list[str]:
        with system_session(self.engine) as session:
            events, self.is_all = job_events.list_final(session, self.job_id, after=self.cursor, limit=100)
            if events:
                self.cursor = (events[-1].xid, events[-1].position)
            return [event.message for event in events]


@pytest.mark.parametrize("first_to_commit", ["older", "younger"])
@pytest.mark.parametrize("first_to_write", ["older", "younger"])
def test_a_reader_misses_and_repeats_nothing_of_two_interleaved_transactions(
    system_engine: Engine, caller: Caller, job_id: uuid.UUID, first_to_write: str, first_to_commit: str
) -> None:
    read = Reader(system_engine, job_id)
    assert read() == ["Enqueued."]
    with Session(system_engine) as older, Session(system_engine) as younger:
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
    with Session(system_engine) as older, Session(system_engine) as younger:
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
