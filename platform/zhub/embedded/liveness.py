"""Whether a child that runs also answers: probed beside the supervisor, whose thread must not wait."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

PROBE_EVERY_S = 5.0
FAILED_PROBES = 3  # in a row: a busy machine may delay one


class Liveness:
    """The probes of one run of a child, from its start.

    ``probe`` says whether the child answers, within seconds; one that raises is one that failed. Only a child that has
    answered before can be lost: until then it is starting.
    """

    def __init__(self, probe: Callable[[], bool]) -> None:
        self._probe = probe
        self._thread: threading.Thread | None = None
        self._answered = False
        self._failed = 0
        self._next_at = time.monotonic() + PROBE_EVERY_S

    def note_answer(self) -> None:
        """The child has answered somebody else: what it did not answer before belongs to its start."""
        self._answered, self._failed = True, 0

    def is_lost(self) -> bool:
        """Whether it has not answered for too long. Answers at once; probes go on while this is called."""
        if (self._thread is None or not self._thread.is_alive()) and time.monotonic() >= self._next_at:
            self._thread = threading.Thread(target=self._look, daemon=True, name="liveness")
            self._thread.start()
        return self._answered and self._failed >= FAILED_PROBES

    def _look(self) -> None:
        answers = False
        with suppress(Exception):
            answers = self._probe()
        self._answered = self._answered or answers
        self._failed = 0 if answers else self._failed + 1
        self._next_at = time.monotonic() + PROBE_EVERY_S
