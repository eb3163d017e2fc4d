"""Answers by experts of other organisations, ended within ``BOUND_S`` of the end of the right to use them.

Whoever answers by one tells this watch, which asks the database each second, of all of them together. No process keeps
a right in memory: a request looks it up, and a replica, whatever it holds, answers what the API asks it.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine

from zhub.answering import SharedExpert
from zhub.database.sessions import tenant_session
from zhub.errors import GrantEndedError
from zhub.registry import sharing
from zhub.tenancy.keys import Caller

log = logging.getLogger("zhub.api")

POLL_S = 1.0
BOUND_S = 5.0
"""No answer goes on this long after its right was last confirmed: also where the database does not answer."""
LOOK_S = 0.25  # between two looks of an answer that waits for its next line


@dataclass(eq=False)
class Watched:
    """An answer under way, and what it needs. ``confirmed_at`` is of ``time.monotonic``."""

    org_id: uuid.UUID
    project_id: uuid.UUID
    shared: Sequence[SharedExpert]
    confirmed_at: float = field(default_factory=time.monotonic)
    ended: str | None = None
    """The expert that may not be used any more."""

    def check(self) -> None:
        """Raise GrantEndedError where the right has ended, or was not confirmed in time."""
        if self.ended is not None:
            raise GrantEndedError(self.ended)
        if time.monotonic() - self.confirmed_at > BOUND_S:
            raise GrantEndedError(self.shared[0].name)


class GrantWatch:
    """Confirms the rights of the answers under way. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._confirming = threading.Lock()
        self._watched: set[Watched] = set()

    @contextmanager
    def watching(self, caller: Caller, shared: Sequence[SharedExpert]) -> Iterator[Watched]:
        """Watch what an answer needs, for as long as it is under way."""
        watched = Watched(caller.org_id, caller.project_id, shared)
        with self._lock:
            self._watched.add(watched)
        try:
            yield watched
        finally:
            with self._lock:
                self._watched.discard(watched)

    def confirm(self) -> None:
        """Ask the database once about each project that answers by an expert of others."""
        with self._lock:
            watched = list(self._watched)
        for org_id, project_id in {(one.org_id, one.project_id) for one in watched}:
            of_project = [one for one in watched if one.project_id == project_id]
            asked_at = time.monotonic()
            ids = {expert.version_id for one in of_project for expert in one.shared}
            try:
                with tenant_session(self._engine, org_id) as session:
                    usable = sharing.usable(session, project_id, list(ids))
            except Exception:
                log.warning("rights are not confirmed", exc_info=True, extra={"action": "rights_unconfirmed"})
                continue
            for one in of_project:
                lost = next((expert.name for expert in one.shared if expert.version_id not in usable), None)
                one.ended = lost or one.ended
                if lost is None:
                    one.confirmed_at = asked_at

    def run(self, stopping: threading.Event) -> None:
        """Confirm each second until ``stopping`` is set."""
        while not stopping.wait(POLL_S):
            with self._confirming:
                if not stopping.is_set():
                    self.confirm()

    def wait_idle(self) -> None:
        """Return once the database is not asked any more; to be called after ``stopping`` of ``run`` is set."""
        with self._confirming:
            return


async def while_usable(lines: AsyncIterator[str], watched: Watched) -> AsyncGenerator[str]:
    """The lines as they come, as long as the right to them lasts; also while none comes. Raises GrantEndedError."""
    coming: asyncio.Future[str | None] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(_next(lines))
            while not coming.done():
                await asyncio.wait({coming}, timeout=LOOK_S)
                watched.check()
            if (line := coming.result()) is None:
                return
            yield line
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def _next(lines: AsyncIterator[str]) -> str | None:
    return await anext(lines, None)
