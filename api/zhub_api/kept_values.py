"""What is read of an organisation for every request, and asked of the database every few seconds only."""

import threading
import time
import uuid
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session

Value = TypeVar("Value")


class KeptValues(Generic[Value]):
    """A value of each organisation, which is ``read`` again once it is older than ``kept_s``. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        read: Callable[[Session, uuid.UUID], Value],
        kept_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._read = read
        self._kept_s = kept_s
        self._clock = clock
        self._lock = threading.Lock()
        self._values: dict[uuid.UUID, tuple[Value, float]] = {}

    def of(self, org_id: uuid.UUID) -> Value:
        with self._lock:
            kept = self._values.get(org_id)
        if kept is not None and self._clock() - kept[1] <= self._kept_s:
            return kept[0]
        with tenant_session(self._engine, org_id) as session:
            value = self._read(session, org_id)
        with self._lock:
            self._values[org_id] = value, self._clock()
        return value
