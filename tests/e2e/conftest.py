"""One embedded stack for all end-to-end tests: real PostgreSQL, Valkey, Ray and Serve, and the openai client."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import psutil
import pytest
from folder_lifetime import shared_in_folder
from suites import GRADER

START_TIMEOUT_S = 240


def until(what: str, question: Callable[[], Any], timeout_s: float) -> Any:
    """Ask again and again until there is an answer; fail with ``what`` when the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = question()
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout_s} s for {what}")


@dataclass
class RunningStack:
    """A stack as its user sees it, and its processes as its enemy does."""

    data_dir: Path
    process: subprocess.Popen[bytes]
    client: openai.OpenAI

    def pid_of(self, words: str) -> int | None:
        """The process below the supervisor whose command line contains ``words``."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if words in " ".join(child.cmdline()):
                    return child.pid
            except psutil.Error:
                continue
        return None

    def kill(self, words: str) -> None:
        """``kill -9`` one part of the stack."""
        pid = until(f"a process like '{words}'", lambda: self.pid_of(words), 60)
        os.kill(pid, signal.SIGKILL)

    def log(self, name: str) -> str:
        return (self.data_dir / "logs" / f"{name}.log").read_text()


def start_stack(data_dir: Path) -> RunningStack:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data_dir.mkdir(parents=True, exist_ok=True)
    log = (data_dir / "up.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "zhub.embedded", "--data-dir", str(data_dir), "--port", str(port)],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log.close()
    credentials = data_dir / "credentials.json"

    def ready() -> bool:
        assert process.poll() is None, (data_dir / "up.log").read_text()
        return credentials.exists() and (data_dir / "run" / "agent.ready").exists()

    until("the stack to serve", ready, START_TIMEOUT_S)
    client = openai.OpenAI(**json.loads(credentials.read_text()), max_retries=5)
    return RunningStack(data_dir, process, client)


def stop_stack(stack: RunningStack) -> None:
    stack.process.send_signal(signal.SIGTERM)
    stack.process.wait(60)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, traces: Any) -> Iterator[RunningStack]:
    """The stack, with its shipped base decomposed, until the last test of this folder."""
    yield from shared_in_folder(__file__, _running_stack(tmp_path_factory.mktemp("stack"), traces.url))


@contextmanager
def _running_stack(data_dir: Path, traces_url: str) -> Iterator[RunningStack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", traces_url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        patch.setenv("ZHUB_LOG_FORMAT", "json")
        running = start_stack(data_dir)
    try:
        until("the shipped base", lambda: "zhub-tiny" in [m.id for m in running.client.models.list().data], 120)
        yield running
    finally:
        stop_stack(running)


@pytest.fixture(scope="session")
def e2e() -> Any:
    """The functions of this file; tests are not packages, so they cannot import it."""
    return SimpleNamespace(
        until=until,
        upload=upload,
        train=train,
        wait_for_job=wait_for_job,
        wait_for_step=wait_for_step,
        start_stack=start_stack,
        stop_stack=stop_stack,
    )


def upload(client: openai.OpenAI, rows: list[dict[str, Any]], name: str) -> str:
    """Upload rows as a JSONL file, wait until it is processed, and return its id."""
    content = "\n".join(json.dumps(row) for row in rows).encode()
    file = client.files.create(file=(f"{name}.jsonl", content), purpose="fine-tune")
    file = client.files.wait_for_processing(file.id, poll_interval=0.2, max_wait_seconds=120)
    assert file.status == "processed", file.status_details
    return file.id


def train(
    client: openai.OpenAI,
    rows: list[dict[str, Any]],
    name: str,
    *,
    model: str = "zhub-tiny",
    grader: Any = GRADER,
    **hyperparameters: Any,
) -> Any:
    """Upload rows and create a job that trains an expert of this name on them, with answers of up to 16 tokens."""
    settings = {"grader": grader, "hyperparameters": {"max_new_tokens": 16} | hyperparameters}
    method: Any = {"type": "reinforcement", "reinforcement": settings}
    return client.fine_tuning.jobs.create(
        model=model, training_file=upload(client, rows, name), suffix=name, seed=1, method=method
    )


def wait_for_job(client: openai.OpenAI, job_id: str, timeout_s: float = 240) -> Any:
    """The job once it has ended."""

    def ended() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return until(f"job {job_id} to end", ended, timeout_s)


def wait_for_step(client: openai.OpenAI, job_id: str, timeout_s: float = 120) -> None:
    """Return once the job has reported a training step."""

    def stepped() -> bool:
        events = client.fine_tuning.jobs.list_events(job_id, limit=50).data
        return any(event.type == "metrics" and (event.data or {}).get("step", 0) >= 1 for event in events)  # type: ignore[attr-defined]

    until(f"job {job_id} to take a step", stepped, timeout_s)
