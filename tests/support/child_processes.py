"""Child processes: waiting for what they do, and whether they live."""

import time
from collections.abc import Callable

import psutil

from zhub.embedded.processes import Supervisor


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Wait until the condition holds; fail after ``timeout_s``."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "timed out"
        time.sleep(0.02)


def tick_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    """Let the supervisor look after its children until the condition holds."""

    def met() -> bool:
        supervisor.tick()
        return condition()

    wait_until(met)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_ended(processes: set[psutil.Process]) -> None:
    wait_until(lambda: not any(is_alive(process) for process in processes))
