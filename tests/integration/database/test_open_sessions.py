"""The guard of all tests: what waits for anything but the database while a session is open fails."""

import io
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest
from open_sessions import WaitedInSessionError
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from zhub.database.sessions import statement_session, system_session
from zhub.graders.processes import Processes
from zhub.process.buckets import RedisBuckets
from zhub.process.wakeup import RedisWakeup
from zhub.storage.directory import DirectoryStore


def begin(session: Session) -> None:
    session.execute(text("SELECT 1"))


@pytest.mark.parametrize("what", ["store", "grader", "subprocess", "http", "wake-up", "bucket"])
def test_a_wait_within_a_session_is_refused(system_engine: Engine, store: DirectoryStore, what: str) -> None:
    waits: dict[str, Callable[[], Any]] = {
        "store": partial(store.put, "key", io.BytesIO(b"x")),
        "grader": partial(Processes(1).call, abs, -1),
        "subprocess": partial(subprocess.run, [sys.executable, "-c", ""], check=True),
        "http": partial(httpx.get, "http://127.0.0.1:9"),
        "wake-up": partial(RedisWakeup("redis://127.0.0.1:9").notify, "topic"),
        "bucket": partial(RedisBuckets("redis://127.0.0.1:9").take, "key", 1),
    }
    with system_session(system_engine) as session:
        begin(session)
        with pytest.raises(WaitedInSessionError):
            waits[what]()


def test_a_wait_before_between_and_after_sessions_is_none_of_its_business(
    system_engine: Engine, store: DirectoryStore
) -> None:
    store.put("key", io.BytesIO(b"x"))
    with system_session(system_engine) as session:
        begin(session)
        with session.begin_nested():
            begin(session)
    store.put("key", io.BytesIO(b"x"))
    with pytest.raises(ZeroDivisionError), statement_session(system_engine) as session:
        begin(session)
        raise ZeroDivisionError
    store.put("key", io.BytesIO(b"x"))
