"""SIGTERM to the real processes: they finish what they have begun, and end within a bound whatever is frozen."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session
from zhub.embedded.postgres import Cluster, Urls
from zhub.process.config import Settings
from zhub.queue import leadership

BOUND_S = 20.0  # the promise is ten seconds; the rest is for a machine that is busy
# Runs a module that ends by force sooner than in production, and tells for less long what it has read of the queue.
HASTY = """
import runpy, sys
from zhub.admission import metrics
from zhub.process import shutdown
assert shutdown.GRACE_S < 10
shutdown.GRACE_S, metrics.FRESH_S = 1.0, 0.5
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
# A regular expression that backtracks for years: it holds the interpreter's lock all the time.
FREEZE = "import re; re.match('(a+)+$', 'a' * 64 + 'b')"
# Runs a module and freezes the process as soon as a file is there.
FREEZING = """
import sys, threading, time
from pathlib import Path

def freeze():
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    exec(sys.argv[3])

threading.Thread(target=freeze, daemon=True).start()
"""


@dataclass
class Process:
    """One of zhub's own, with what it says."""

    popen: "subprocess.Popen[bytes]"
    log: Path

    def said(self, action: str) -> bool:
        return any(json.loads(line).get("action") == action for line in self.log.read_text().splitlines())

    def stop(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def status(self) -> int:
        return self.popen.wait(BOUND_S)


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a module as a process, ``HASTY`` or not, with these settings beside the test's own.

    A hasty one freezes as soon as the file ``freeze_at`` is there.
    """
    started: list[Process] = []

    def run(module: str, *, hasty: bool = False, freeze_at: Path | None = None, **changed: Any) -> Process:
        log = tmp_path / f"{module}.{len(started)}.log"
        values = settings.model_dump() | {"log_format": "json", **changed}
        values["secret_key"] = settings.secret_key.get_secret_value()
        env = {f"ZHUB_{name.upper()}": str(value) for name, value in values.items() if value is not None}
        program = ["-c", HASTY if freeze_at is None else FREEZING + HASTY] if hasty else ["-m"]
        freezing = [] if freeze_at is None else [str(freeze_at), FREEZE]
        with log.open("wb") as output:
            arguments = [sys.executable, *program, module, *freezing]
            popen = subprocess.Popen(arguments, env=os.environ | env, stderr=output)
        started.append(Process(popen, log))
        return started[-1]

    yield run
    for process in started:
        process.popen.kill()
        process.popen.wait()


@contextmanager
def frozen(cluster: Cluster) -> Iterator[None]:
    """The database server stops in the middle of whatever it does: it answers nothing and closes nothing."""
    postmaster = psutil.Process(int((cluster.files / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children()]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            if process.is_running():
                process.resume()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


# The scheduler


def test_a_scheduler_that_is_told_to_stop_resigns(
    start: Callable[..., Process], database: Urls, system_engine: Engine, until: Callable[..., Any]
) -> None:
    scheduler = start("zhub.scheduler", database_url=database.system)
    until(lambda: scheduler.said("leading"))
    scheduler.stop()
    assert (scheduler.status(), scheduler.said("stopped")) == (0, True)
    with system_session(system_engine) as session:
        assert leadership.elect(session, uuid.UUID(int=2), lease_s=60) == 2


def test_a_scheduler_ends_while_its_database_is_away(
    start: Callable[..., Process], database: Urls, proxy: Any, until: Callable[..., Any]
) -> None:
    scheduler = start("zhub.scheduler", database_url=proxy.url(database.system))
    until(lambda: scheduler.said("leading"))
    proxy.cut()
    until(lambda: scheduler.said("database_away"))
    scheduler.stop()
    assert scheduler.status() == 0


def test_a_scheduler_ends_while_its_database_is_frozen(
    start: Callable[..., Process], database: Urls, postgres: Cluster, until: Callable[..., Any]
) -> None:
    port = free_port()
    scheduler = start("zhub.scheduler", hasty=True, database_url=database.system, metrics_port=port)
    until(lambda: scheduler.said("leading"))
    until(lambda: "zhub_queue_oldest_seconds 0.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text)
    with frozen(postgres):

        def up() -> float:
            exposition = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
            samples = {f.name: f.samples[0].value for f in text_string_to_metric_families(exposition) if f.samples}
            return samples["zhub_database_up"]

        # What was read a moment ago is told for a moment.
        until(lambda: up() == 0)
        scheduler.stop()
        assert (scheduler.status(), scheduler.said("forced_exit")) == (1, True)


def test_a_scheduler_says_that_its_metrics_port_is_taken(start: Callable[..., Process], database: Urls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        scheduler = start("zhub.scheduler", database_url=database.system, metrics_port=port)
        assert scheduler.status() == 1
    assert f"Metrics cannot be served at 127.0.0.1:{port}: Address already in use" in scheduler.log.read_text()


# The API


@pytest.fixture
def start_api(start: Callable[..., Process], until: Callable[..., Any]) -> Callable[..., tuple[Process, str]]:
    def run(**changed: Any) -> tuple[Process, str]:
        port = free_port()
        process = start("zhub_api", port=port, **changed)
        until(lambda: answers(f"http://127.0.0.1:{port}/healthz"))
        return process, f"http://127.0.0.1:{port}"

    return run


@dataclass
class Request:
    """A request from a thread, whose answer may take long."""

    url: str
    key: str

    def __post_init__(self) -> None:
        self.status: int | None = None
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            headers = {"Authorization": f"Bearer {self.key}"}
            self.status = httpx.get(self.url, headers=headers, timeout=60).status_code
        except httpx.HTTPError:
            self.status = 0

    def answer(self) -> int | None:
        self._thread.join(60)
        return self.status


def in_flight(url: str) -> float:
    """Beside the one that asks."""
    exposition = httpx.get(f"{url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(exposition)}
    return families["zhub_http_requests_in_flight"].samples[0].value - 1


def test_an_api_that_is_told_to_stop_answers_what_it_has_begun(
    start_api: Callable[..., tuple[Process, str]],
    system_engine: Engine,
    make_key: Callable[..., str],
    until: Callable[..., Any],
) -> None:
    key = make_key()
    api, url = start_api()
    with system_engine.begin() as connection:
        connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        request = Request(f"{url}/v1/fine_tuning/jobs", key)
        until(lambda: in_flight(url) == 1)
        api.stop()
        until(lambda: not answers(f"{url}/healthz"))
        assert request.status is None
    assert (request.answer(), api.status()) == (200, 0)


def test_an_api_ends_while_a_request_waits_for_a_frozen_database(
    start_api: Callable[..., tuple[Process, str]],
    postgres: Cluster,
    make_key: Callable[..., str],
    until: Callable[..., Any],
) -> None:
    key = make_key()
    api, url = start_api(hasty=True)
    with frozen(postgres):
        request = Request(f"{url}/v1/models", key)
        until(lambda: in_flight(url) == 1)
        ready = httpx.get(f"{url}/readyz", timeout=30)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "unavailable")
        assert answers(f"{url}/healthz")
        api.stop()
        assert api.status() in (0, 1)
    request.answer()


def test_an_api_with_a_time_to_drain_says_so_and_goes_on_answering_until_then(
    start_api: Callable[..., tuple[Process, str]], until: Callable[..., Any]
) -> None:
    api, url = start_api(drain_s=300)
    assert answers(f"{url}/readyz")
    api.stop()
    until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
    assert httpx.get(f"{url}/readyz").json()["error"]["code"] == "draining"
    assert answers(f"{url}/healthz")
    api.stop()  # asked again, it waits no longer
    assert api.status() == 0


def test_an_api_whose_interpreter_is_held_fails_its_probe_and_ends_when_it_is_told_to(
    start_api: Callable[..., tuple[Process, str]], tmp_path: Path, until: Callable[..., Any]
) -> None:
    freeze_at = tmp_path / "freeze"
    api, url = start_api(hasty=True, freeze_at=freeze_at)
    freeze_at.touch()
    until(lambda: not answers(f"{url}/healthz"))
    api.stop()
    assert api.status() == -signal.SIGKILL


def test_a_scheduler_whose_interpreter_is_held_ends_when_it_is_told_to(
    start: Callable[..., Process], database: Urls, tmp_path: Path, until: Callable[..., Any]
) -> None:
    freeze_at = tmp_path / "freeze"
    port = free_port()
    scheduler = start(
        "zhub.scheduler", hasty=True, freeze_at=freeze_at, database_url=database.system, metrics_port=port
    )
    until(lambda: scheduler.said("leading"))
    freeze_at.touch()
    until(lambda: not answers(f"http://127.0.0.1:{port}/metrics"))
    scheduler.stop()
    assert scheduler.status() == -signal.SIGKILL


def test_what_watches_over_a_process_ends_with_it(
    start: Callable[..., Process], database: Urls, until: Callable[..., Any]
) -> None:
    scheduler = start("zhub.scheduler", database_url=database.system)
    until(lambda: scheduler.said("leading"))
    (watch,) = psutil.Process(scheduler.popen.pid).children()
    assert "stop_watch.py" in " ".join(watch.cmdline())
    scheduler.popen.kill()
    scheduler.popen.wait()
    until(lambda: not watch.is_running() or watch.status() == psutil.STATUS_ZOMBIE)
