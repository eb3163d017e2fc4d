"""How a server process ends: at SIGTERM or SIGINT it finishes what it has begun, and ends anyway if that takes long."""

import logging
import os
import signal
import threading
import time
from types import FrameType

log = logging.getLogger("zhub.stopping")

GRACE_S = 8.0  # orchestrators kill a process ten seconds after they have asked it to stop


def stop_event() -> threading.Event:
    """An event that is set at SIGTERM and SIGINT. The process ends ``GRACE_S`` seconds later at the latest.

    Only from the main thread. What a process was doing then is lost, as if it had been killed: nothing durable.
    """
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    end_after(stopping, GRACE_S)
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
