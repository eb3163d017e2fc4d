"""A guard for all tests: while a session is open, nothing is waited for but the database.

A transaction holds row locks and a connection of a small pool. A store, a subprocess, or another service that hangs
must never hang those as well. SQLAlchemy says when a session begins and ends; everything else that can wait, or
computes for long, is asked on its way in.
"""

import functools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction

from zhub.evaluation import comparison
from zhub.graders.processes import Processes
from zhub.process.buckets import RedisBuckets
from zhub.process.wakeup import RedisWakeup
from zhub.sandbox import Sandbox
from zhub.storage.directory import DirectoryStore
from zhub.storage.s3 import S3Store
from zhub.webhooks.safe_http import Outbound

STORE = ("put", "put_absent", "open", "size", "keys", "listing", "delete")
WAITS: list[tuple[Any, tuple[str, ...]]] = [
    (DirectoryStore, STORE),
    (S3Store, STORE),
    (Processes, ("map",)),
    (Sandbox, ("run_many",)),
    (Outbound, ("post",)),
    (httpx.Client, ("send",)),
    (httpx.AsyncClient, ("send",)),
    (RedisWakeup, ("notify", "wait", "hear")),
    (RedisBuckets, ("take",)),
    (subprocess.Popen, ("__init__",)),
    (comparison, ("paired_bootstrap",)),
]

# Of this thread, task or greenlet.
_open: ContextVar[frozenset[int]] = ContextVar("open_sessions", default=frozenset())


class WaitedInSessionError(AssertionError):
    """Something other than the database was waited for while a session was open."""


@contextmanager
def guarded() -> Iterator[None]:
    """Watch over sessions and waits of this process."""
    event.listen(Session, "after_begin", _note_begin)
    event.listen(Session, "after_transaction_end", _note_end)
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in WAITS:
            for name in names:
                patch.setattr(owner, name, _checked(getattr(owner, name), f"{owner.__name__}.{name}"))
        yield
    event.remove(Session, "after_begin", _note_begin)
    event.remove(Session, "after_transaction_end", _note_end)


def _note_begin(session: Session, _transaction: SessionTransaction, _connection: Connection) -> None:
    _open.set(_open.get() | {id(session)})


def _note_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        _open.set(_open.get() - {id(session)})


def _checked(wait: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(wait)
    def call(*arguments: Any, **options: Any) -> Any:
        if _open.get():
            raise WaitedInSessionError(f"{name} was called while a session was open: call it before or after")
        return wait(*arguments, **options)

    return call
