"""What the platform adds to training: a job's time from request to published version, over that of its bare loop.

Bare loop: ``train()``'s steps alone (rollouts, rewards, gradient, update) in this process, with the base loaded and
no evaluation, store or queue. Job: POST to ``succeeded`` through the embedded stack with Ray and its worker warm:
queue, fetching, validation during training, the test of base and expert, writing and publishing.
Run after run in turn on the same machine, so that the ratio holds when the machine's speed drifts.
"""

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import shipped
import torch
from rich.console import Console
from rich.table import Table

from zhub.client import Client
from zhub.client.credentials import read_credentials
from zhub.demo.task_families import sample_rows
from zhub.manifest import canonical_json
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapters import make_adapter

STEPS = 40
BAR = 1.5
FAMILY = "sorting"
HYPERPARAMETERS = {"n_steps": STEPS, "max_new_tokens": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    console = Console()
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "rows.jsonl"
        rows.write_bytes(b"\n".join(canonical_json(row) for row in sample_rows(FAMILY, 1500, seed=1)))
        bare = BareLoop(Path(directory), rows)
        data_dir = Path(directory) / "stack"
        stack = start(data_dir)
        try:
            credentials = read_credentials(data_dir)
            assert credentials is not None
            with Client(credentials.base_url, credentials.api_key) as client:
                client.base_models.wait_ready("zhub-tiny")
                file = client.files.wait_processed(client.files.upload(rows).id)
                console.print("warming up")
                job_seconds(client, file.id, seed=0)
                bare.seconds(seed=0)
                pairs = []
                for run in range(1, runs + 1):
                    job = job_seconds(client, file.id, seed=run)
                    loop = bare.seconds(seed=run)
                    pairs.append((job, loop))
                    console.print(f"run {run}: job {job:.1f} s, bare loop {loop:.1f} s")
        finally:
            stack.send_signal(signal.SIGTERM)
            stack.wait(60)
    report(console, pairs)


class BareLoop:
    """The steps of training alone, in this process."""

    def __init__(self, directory: Path, rows: Path) -> None:
        torch.set_num_threads(1)  # what Ray gives a worker that asks for no CPUs
        self._rows = rows
        self._adapted = shipped.load(directory / "basis")

    def seconds(self, seed: int) -> float:
        """The time of all steps, taken from those without a validation in them."""
        asked = HYPERPARAMETERS | {"eval_interval": 10 * STEPS, "eval_samples": 1}
        spec = shipped.spec_of(asked, rows=1500, seed=seed)
        seconds: list[float] = []

        def on_event(_level: str, _message: str, data: dict[str, Any] | None) -> None:
            if data is not None and "seconds" in data:
                seconds.append(data["seconds"])

        with ComputeGroup().join(make_adapter(self._adapted, spec.hyperparameters), lambda: False) as member:
            shipped.run(spec, member, self._rows, on_event=on_event)
        return sum(seconds[:-1]) * STEPS / (STEPS - 1)  # the last step also validates


def start(data_dir: Path) -> subprocess.Popen[bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stack = subprocess.Popen(
        [sys.executable, "-m", "zhub.embedded", "--data-dir", str(data_dir), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (data_dir / "run" / "agent.ready").exists():
        if stack.poll() is not None:
            raise SystemExit("the stack did not start; see its logs")
        time.sleep(0.2)
    return stack


def job_seconds(client: Client, file_id: str, seed: int) -> float:
    """From the request to the job's end, as its user sees it."""
    started = time.perf_counter()
    job = client.jobs.create(
        model="zhub-tiny",
        training_file=file_id,
        suffix="overhead",
        seed=seed,
        method={
            "type": "reinforcement",
            "reinforcement": {"grader": shipped.GRADER, "hyperparameters": HYPERPARAMETERS},
        },
    )
    while (job := client.jobs.get(job.id)).status in ("queued", "running"):
        time.sleep(0.05)
    assert job.status == "succeeded", job
    return time.perf_counter() - started


def report(console: Console, pairs: list[tuple[float, float]]) -> None:
    ratio = statistics.median(job / loop for job, loop in pairs)
    table = Table(title=f"A job of {STEPS} steps on the shipped base, over its bare training loop")
    for column in ("run", "job, s", "bare loop, s", "ratio"):
        table.add_column(column, justify="right")
    for run, (job, loop) in enumerate(pairs, 1):
        table.add_row(str(run), f"{job:.2f}", f"{loop:.2f}", f"{job / loop:.2f}")
    table.add_row("median", "", "", f"{ratio:.2f}", style="bold")
    console.print(table)
    console.print(f"bar: at most {BAR}; {'met' if ratio <= BAR else 'MISSED'}")
    result = {
        "name": "overhead",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "results": {"job_s": [job for job, _ in pairs], "bare_loop_s": [loop for _, loop in pairs]},
        "bars": {"job over bare loop": {"value": ratio, "bar": BAR, "better": "lower"}},
    }
    path = Path(__file__).parent / "results" / "overhead.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
