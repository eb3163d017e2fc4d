"""A scheduler that is frozen fails its probe, however it is frozen; one that works passes it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zhub.embedded.postgres import Urls
from zhub.process.config import Settings
from zhub.process.pulse import is_alive

Until = Callable[..., Any]

# A scheduler whose loops vouch for three seconds at a time, and which does what a file says once it is there.
SCHEDULER = """
import runpy, sys, threading, time
from pathlib import Path
from zhub.process import pulse
pulse.BEAT_WITHIN_S = 3.0

def freeze(order):
    while not order.exists():
        time.sleep(0.01)
    exec(order.read_text())

threading.Thread(target=freeze, args=(Path(sys.argv[1]),), daemon=True).start()
runpy.run_module("zhub.scheduler", run_name="__main__", alter_sys=True)
"""
# How a process freezes: its interpreter is held by a call into C; or one thread of it waits for ever.
HOLDS_THE_INTERPRETER = "import re; re.match('(a+)+$', 'a' * 64 + 'b')"
RELAY_HANGS = "from zhub.webhooks import deliveries; deliveries.claim = lambda *_, **__: time.sleep(600)"


@pytest.fixture
def order(tmp_path: Path) -> Path:
    return tmp_path / "order"


@pytest.fixture
def alive_file(tmp_path: Path) -> Path:
    return tmp_path / "scheduler.alive"


@pytest.fixture
def scheduler(
    settings: Settings, database: Urls, order: Path, alive_file: Path, until: Until
) -> "Iterator[subprocess.Popen[bytes]]":
    env = os.environ | {
        "ZHUB_DATABASE_URL": database.system,
        "ZHUB_STORE_URL": settings.store_url,
        "ZHUB_SECRET_KEY": settings.secret_key.get_secret_value(),
        "ZHUB_ALIVE_FILE": str(alive_file),
    }
    popen = subprocess.Popen([sys.executable, "-c", SCHEDULER, str(order)], env=env)
    until(lambda: is_alive(alive_file), timeout_s=60)
    yield popen
    popen.kill()
    popen.wait()


def test_a_scheduler_that_is_stopped_fails_its_probe_and_passes_it_when_it_goes_on(
    scheduler: "subprocess.Popen[bytes]", alive_file: Path, until: Until
) -> None:
    scheduler.send_signal(signal.SIGSTOP)
    until(lambda: not is_alive(alive_file))
    scheduler.send_signal(signal.SIGCONT)
    until(lambda: is_alive(alive_file))


@pytest.mark.parametrize("how", [HOLDS_THE_INTERPRETER, RELAY_HANGS], ids=["interpreter", "thread"])
def test_a_scheduler_of_which_something_hangs_fails_its_probe(
    scheduler: "subprocess.Popen[bytes]", order: Path, alive_file: Path, until: Until, how: str
) -> None:
    order.write_text(how)
    until(lambda: not is_alive(alive_file))
    assert scheduler.poll() is None


def test_a_scheduler_one_of_whose_threads_dies_ends(scheduler: "subprocess.Popen[bytes]", order: Path) -> None:
    # Past every handler of the loop, as a bug in the loop itself would be.
    order.write_text("from zhub.webhooks import relay; relay.asyncio.wait = relay.asyncio.sleep = None")
    assert scheduler.wait(60) == 1
