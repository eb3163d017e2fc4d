"""Ends a process that was told to stop and did not: run as a program by ``zhub.process.shutdown``, one for a process.

The process's own threads and signal handlers need the interpreter, which a single call into C can hold for hours. The
numbers of its signals come through standard input, written by the C handler that needs no interpreter; the input ends
with the process. Only the standard library is loaded here.
"""

import os
import select
import signal
import sys
import time

ASKED_TO_STOP = (signal.SIGTERM, signal.SIGINT)
SIGNALS = 0  # standard input


def main(pid: int, grace_s: float) -> None:
    for number in (*ASKED_TO_STOP, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while not any(number in ASKED_TO_STOP for number in _received()):
        pass
    give_up = time.monotonic() + grace_s
    while (left := give_up - time.monotonic()) > 0:
        if select.select([SIGNALS], [], [], left)[0]:
            _received()
    # It still holds the other end of the pipe, so this is no other process of the same id.
    os.kill(pid, signal.SIGKILL)


def _received() -> bytes:
    """The numbers of the next signals. Ends this process when the other has ended."""
    numbers = os.read(SIGNALS, 64)
    if not numbers:
        sys.exit()
    return numbers


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
