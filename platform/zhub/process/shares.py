"""Places that organisations share, so that none of them holds all."""

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from zhub.errors import TooManyAtOnceError, UnavailableError


class Shares:
    """``places`` in all, of which one organisation may hold ``per_org`` at a time. Nobody waits. Thread-safe.

    ``what`` names in the plural what a place is for.
    """

    def __init__(self, what: str, *, places: int, per_org: int) -> None:
        self._what = what
        self._places = places
        self._per_org = per_org
        self._held: Counter[uuid.UUID] = Counter()
        self._lock = threading.Lock()

    def take(self, org_id: uuid.UUID) -> None:
        """Take a place; ``give_back`` it.

        Raises:
            TooManyAtOnceError: the organisation holds as many as it may.
            UnavailableError: others hold all.
        """
        with self._lock:
            if self._held[org_id] >= self._per_org:
                raise TooManyAtOnceError(self._what, self._per_org)
            if self._held.total() >= self._places:
                raise UnavailableError(
                    f"This process serves {self._places} {self._what} at a time, which is as many as it does. Try "
                    "again in a moment."
                )
            self._held[org_id] += 1

    def give_back(self, org_id: uuid.UUID) -> None:
        with self._lock:
            self._held[org_id] -= 1
            if not self._held[org_id]:
                del self._held[org_id]

    @contextmanager
    def place(self, org_id: uuid.UUID) -> Iterator[None]:
        """A place for as long as the block lasts. Raises as ``take`` does."""
        self.take(org_id)
        try:
            yield
        finally:
            self.give_back(org_id)

    @property
    def held(self) -> int:
        with self._lock:
            return self._held.total()
