"""What data parallelism costs: one job alone, and the same job with its rows divided between two processes.

Each process computes on one core, so twice as fast is the limit. What travels between the two is weighed as Ray would
pickle it, against the dense gradient that data parallelism over weights would exchange. The shard is a real Ray actor.
"""

import argparse
import json
import os
import pickle
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import shipped
import torch
from rich.console import Console
from rich.table import Table

from zhub.demo.task_families import sample_rows
from zhub.manifest import canonical_json, sha256_file
from zhub.specs import BaseModelSource, BasisReference, StoredFile, TrainSpec
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.attempts.attempt import AttemptKey
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.cluster.ray_cluster import connect
from zhub_workers.compute.group import ComputeGroup, Member
from zhub_workers.compute.requests import Request
from zhub_workers.compute.sharded import Ask, ShardedMember
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import load_base_model, weights_fingerprint
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.worker.ray_shards import RayShards

FAMILY = "sorting"
ROWS = 600
STEPS = 8
BATCH_SIZE, GROUP_SIZE = 64, 8
EFFICIENCY_BAR, BYTES_BAR = 0.8, 0.05


class Weighed:
    """Shards whose questions and answers are weighed."""

    def __init__(self, shards: RayShards) -> None:
        self._shards = shards
        self.sent = 0
        self.received = 0

    def ready(self) -> Sequence[Ask]:
        return [self._weighed(ask) for ask in self._shards.ready()]

    def pulse(self) -> int:
        return self._shards.pulse()

    def _weighed(self, ask: Ask) -> Ask:
        def weighed(request: Request[Any]) -> "Future[Any]":
            self.sent += len(pickle.dumps(request))
            future = ask(request)
            future.add_done_callback(self._receive)
            return future

        return weighed

    def _receive(self, future: "Future[Any]") -> None:
        self.received += len(pickle.dumps(future.result()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    console = Console()
    connect(None)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        spec, adapted, store = prepare(root)
        adapter = make_adapter(adapted, spec.hyperparameters)
        shards = RayShards(
            1,
            AttemptKey(uuid.uuid4(), 1),
            spec,
            store,
            root / "cache",
            device="cpu",
            flavour=Flavour(),
            check=lambda: None,
            on_change=console.print,
        )
        times: dict[int, list[float]] = {1: [], 2: []}
        z: dict[int, dict[str, torch.Tensor]] = {}
        with shards, ComputeGroup().join(adapter, lambda: False) as local:
            while not shards.ready():
                time.sleep(0.2)
            weighed = Weighed(shards)
            for _ in range(rounds):
                for processes, member in ((1, local), (2, ShardedMember(local, weighed))):
                    seconds, z[processes] = steps(spec, member, root / "rows.jsonl")
                    times[processes].append(statistics.median(seconds))
                    console.print(f"{processes} processes: {times[processes][-1]:.3f} s a step")
    all_steps = rounds * STEPS
    speedup = statistics.median(alone / shared for alone, shared in zip(times[1], times[2], strict=True))
    matrices = [adapted.base.model.get_parameter(f"{name}.weight") for name in adapted.layers]
    dense = 4 * sum(matrix.numel() for matrix in matrices)  # float32
    travelled = (weighed.sent + weighed.received) / all_steps
    difference = max(float((z[1][key] - z[2][key]).abs().max()) for key in z[1])
    table = Table(title=f"{BATCH_SIZE * GROUP_SIZE} answers a step, shipped base, one core a process")
    for column in ("processes", "s a step", "speed-up", "of the limit", "KB a step", "of a dense gradient"):
        table.add_column(column, justify="right")
    table.add_row("1", f"{statistics.median(times[1]):.3f}", "", "", "", "")
    table.add_row(
        "2",
        f"{statistics.median(times[2]):.3f}",
        f"{speedup:.2f}×",
        f"{speedup / 2:.0%}",
        f"{travelled / 1000:.0f}",
        f"{travelled / dense:.1%}",
    )
    console.print(table)
    console.print(f"largest difference of a z after {STEPS} steps: {difference:.1e}")
    written = {
        "name": "data_parallel",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "results": {
            "seconds_a_step": times,
            "bytes_a_step": {"sent": weighed.sent / all_steps, "received": weighed.received / all_steps},
            "dense_gradient_bytes": dense,
            "largest_z_difference": difference,
        },
        "bars": {
            "speed-up by two processes over the limit of two": {
                "value": speedup / 2,
                "bar": EFFICIENCY_BAR,
                "better": "higher",
            },
            "bytes a step over a dense gradient's": {
                "value": travelled / dense,
                "bar": BYTES_BAR,
                "better": "lower",
            },
        },
    }
    (Path(__file__).parent / "results" / "data_parallel.json").write_text(json.dumps(written, indent=2) + "\n")


def prepare(root: Path) -> tuple[TrainSpec, AdaptedModel, str]:
    """The job, the base it trains on, and the URL of a store that holds what a shard needs of both."""
    store = DirectoryStore(root / "store")
    files = []
    for path in shipped.DIRECTORY.iterdir():
        put_path(store, f"base/{path.name}", path)
        size = path.stat().st_size
        files.append(StoredFile(name=path.name, key=f"base/{path.name}", sha256=sha256_file(path), size_bytes=size))
    base = load_base_model(shipped.DIRECTORY)
    fingerprint = decompose_base(base, root / "basis")
    for path in (root / "basis").iterdir():
        put_path(store, f"basis/{path.name}", path)
    rows = sample_rows(FAMILY, ROWS, seed=1)
    (root / "rows.jsonl").write_bytes(b"\n".join(map(canonical_json, rows)))
    asked = {
        "n_steps": STEPS,
        "eval_interval": STEPS,
        "eval_samples": 1,
        "batch_size": BATCH_SIZE,
        "group_size": GROUP_SIZE,
        "max_new_tokens": 16,
        "preflight_prompts": 0,
    }
    basis = BasisReference(
        weights_fingerprint=weights_fingerprint(base.model), basis_fingerprint=fingerprint, key_prefix="basis"
    )
    spec = shipped.spec_of(asked, rows=ROWS, base=BaseModelSource(name=shipped.NAME, files=files), basis=basis)
    return spec, AdaptedModel(base, load_basis(root / "basis", fingerprint)), store.root.as_uri()


def steps(spec: TrainSpec, member: Member, path: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train; return the seconds of every step but the last, which also scores, and the z after it."""
    seconds: list[float] = []
    last: dict[str, torch.Tensor] = {}

    def on_event(_level: str, _message: str, data: dict[str, Any] | None) -> None:
        if data is not None and "seconds" in data:
            seconds.append(data["seconds"])

    shipped.run(spec, member, path, on_event=on_event, on_checkpoint=lambda state, _metrics: last.update(state.current))
    return seconds[:-1], last


if __name__ == "__main__":
    main()
