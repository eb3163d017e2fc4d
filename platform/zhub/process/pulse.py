"""Whether a process goes on: its loops beat, and a file says until when they vouch for it.

A process whose interpreter is held, that is stopped, or one of whose loops hangs, lets the file's time pass. Whoever
watches the process compares that time with the clock and starts the process again; see ``is_alive``.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

BEAT_WITHIN_S = 60.0  # of a loop whose every statement and every call to a worker ends sooner

Beat = Callable[[], object]
"""What a loop calls in each of its rounds: it goes on."""


def no_beat() -> None:
    """The beat of a loop that nobody watches."""


class Pulse:
    """The beats of a process's loops. Thread-safe.

    ``alive_file`` gets the time until which all loops vouch as its time of modification; None: nobody watches.
    """

    def __init__(self, alive_file: Path | None) -> None:
        self._alive_file = alive_file
        self._due: dict[str, float] = {}

    def beat(self, loop: str, *, within_s: float) -> None:
        """Note that a loop goes on, and that it beats again within this time."""
        self._due[loop] = time.monotonic() + within_s
        if self._alive_file is None:
            return
        until = time.time() + min(list(self._due.values())) - time.monotonic()
        # A disk that is full or away must not end the process; whoever watches it sees that the file is old.
        with contextlib.suppress(OSError):
            if not self._alive_file.exists():
                self._alive_file.touch()
            os.utime(self._alive_file, (until, until))


def is_alive(alive_file: Path) -> bool:
    """Whether the process that writes this file vouches for itself now. Asked on the process's own machine."""
    try:
        return alive_file.stat().st_mtime > time.time()
    except OSError:
        return False
