"""``python -m zhub.graders.grading_process``: calls functions on inputs, each of them within a time and a memory.

Started by ``zhub.graders.processes``, at the other end of standard input. A timer of the kernel ends this process in
the middle of anything, also of a regular expression, and also where nobody waits for the answer any more.
"""

import os
import resource
import signal
import socket
import sys

# What graders load when they need it is loaded before the first timer runs: it must not count against an answer.
import jsonschema  # noqa: F401
import regex  # noqa: F401
import sacrebleu.metrics.bleu  # noqa: F401

import zhub.graders  # noqa: F401
from zhub.graders.limits import ITEM_CPU_S, ITEM_WALL_S, PROCESS_MEMORY_BYTES
from zhub.graders.processes import OUT_OF_MEMORY, READY, TIMERS, Raised, receive, send


def main() -> None:
    for number in TIMERS:
        signal.signal(number, signal.SIG_DFL)
    # A thread that started this process may have blocked them.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if sys.platform == "linux":  # others do not limit it
        resource.setrlimit(resource.RLIMIT_AS, (PROCESS_MEMORY_BYTES, PROCESS_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=os.dup(0))
    connection.sendall(READY)
    try:
        while True:
            function, inputs = receive(connection)
            for value in inputs:
                _set_timers(ITEM_CPU_S, ITEM_WALL_S)
                try:
                    result = function(value)
                except MemoryError:
                    os._exit(OUT_OF_MEMORY)
                except Exception as exc:
                    result = Raised.of(exc)
                _set_timers(0, 0)
                send(connection, result)
                if isinstance(result, Raised):
                    break
    except (EOFError, ConnectionError):
        pass


def _set_timers(cpu_s: float, wall_s: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


if __name__ == "__main__":
    main()
