"""Threads that a process cannot do without."""

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger("zhub.threads")

EXIT_STATUS = 1


def start_vital(run: Callable[[], object], *, name: str, stopping: threading.Event) -> None:
    """Run ``run`` in a daemon thread. When it ends before ``stopping`` is set, log why and end the process.

    The process ends at once, as if it had been killed, so that whoever watches it starts it again: a process that goes
    on without one of its threads looks well and does half of its work.
    """

    def watched() -> None:
        try:
            run()
        except BaseException:
            log.critical("the thread %s died; the process ends", name, exc_info=True, extra={"action": "thread_died"})
            os._exit(EXIT_STATUS)
        if not stopping.is_set():
            log.critical("the thread %s ended; the process ends", name, extra={"action": "thread_died"})
            os._exit(EXIT_STATUS)

    threading.Thread(target=watched, daemon=True, name=name).start()
