"""How a server process ends: at SIGTERM or SIGINT it finishes what it has begun, and ends anyway if that takes long."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

log = logging.getLogger("zhub.stopping")

GRACE_S = 8.0  # orchestrators kill a process ten seconds after they have asked it to stop
OUTSIDE_S = 1.0  # more, for a process that cannot end itself


def stop_event(interrupted: threading.Event | None = None) -> threading.Event:
    """An event that is set at SIGTERM and SIGINT. The process ends ``GRACE_S`` seconds later at the latest.

    ``interrupted`` is set before it at SIGINT, for a process to which that means something else.
    Only from the main thread. What a process was doing then is lost, as if it had been killed: nothing durable.
    """
    stopping = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if interrupted is not None and number == signal.SIGINT:
            interrupted.set()
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    end_after(stopping, GRACE_S)
    end_from_outside(GRACE_S)
    return stopping


def end_after(stopping: threading.Event, grace_s: float) -> None:
    """End this process by force when it is still there ``grace_s`` seconds after ``stopping`` was set."""

    def watch() -> None:
        stopping.wait()
        time.sleep(grace_s)
        log.warning("not stopped after %.0f s; the process ends", grace_s, extra={"action": "forced_exit"})
        # A database or a cluster that is frozen answers no call, and no exit handler may wait for it either.
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="stop-watch").start()


def end_from_outside(grace_s: float) -> None:
    """Have this process killed ``OUTSIDE_S`` seconds after ``end_after`` would have ended it.

    While a call into C holds the interpreter, such as a regular expression that backtracks, no handler of a signal and
    no thread of this process runs. Only from the main thread, after event loops have set wake-ups of their own.
    """
    signals, written = os.pipe()
    os.set_blocking(written, False)
    program = str(Path(__file__).with_name("stop_watch.py"))
    subprocess.Popen(
        [sys.executable, "-I", "-S", program, str(os.getpid()), str(grace_s + OUTSIDE_S)],
        stdin=signals,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(signals)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
