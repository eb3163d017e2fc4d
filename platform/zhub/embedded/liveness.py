"""Whether a child that runs also answers: probed beside the supervisor, whose thread must not wait."""

import threading
import time
from collections.abc import Callable

PROBE_EVERY_S = 5.0
FAILED_PROBES = 3  # in a row: a busy machine may delay one


class Liveness:
    """The probes of one run of a child, from when it is ready.

    ``probe`` says whether the child answers, within seconds.
    """

    def __init__(self, probe: Callable[[], bool]) -> None:
        self._probe = probe
        self._thread: threading.Thread | None = None
        self._failed = 0
        self._next_at = time.monotonic() + PROBE_EVERY_S

    def is_lost(self) -> bool:
        """Whether it has not answered for too long. Answers at once; probes go on while this is called."""
        if (self._thread is None or not self._thread.is_alive()) and time.monotonic() >= self._next_at:
            self._thread = threading.Thread(target=self._look, daemon=True, name="liveness")
            self._thread.start()
        return self._failed >= FAILED_PROBES

    def _look(self) -> None:
        self._failed = 0 if self._probe() else self._failed + 1
        self._next_at = time.monotonic() + PROBE_EVERY_S
