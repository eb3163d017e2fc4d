"""What training several experts together buys: eight jobs in one process, against one after another.

Every job is whole: the base's validation, the steps with rollouts, rewards and updates, a validation, the test. Each
trains another task family of the shipped base. The process is warm, and both ways take turns in every round. Together,
each row of a forward follows its own job's expert, in as many groups as there are cores, as a worker does on a CPU; one
by one, each job has all cores. The z of both ways are compared.

The limit beside each ratio is what it would be if the jobs together took no longer than their matrix products do at
the rate of the machine's best product: no way of training them together could pass it.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import shipped
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zhub.demo.task_families import FAMILIES, sample_rows
from zhub.manifest import canonical_json
from zhub.specs import TrainSpec
from zhub_workers.compute import batches
from zhub_workers.compute import group as compute_group
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.training.state import TrainState

JOBS = 8
STEPS = 100
GROUP_SIZE = 8
BARS = {256: 1.5, 64: 3.0}
Job = tuple[Path, TrainSpec]
"""The rows of a job, and the job."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    console = Console()
    table = Table(title=f"{JOBS} jobs of {STEPS} steps on the shipped base")
    for column in (
        "rows a step",
        "one by one, s",
        "together, s",
        "jobs per hour, together / alone",
        "limit",
        "bar",
        "largest |z - z|",
    ):
        table.add_column(column, justify="right")
    results: dict[int, Any] = {}
    peak = best_product()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        adapted = shipped.load(directory / "basis")
        for family in list(FAMILIES)[:JOBS]:
            rows = sample_rows(family, 600, seed=1)
            (directory / family).write_bytes(b"\n".join(canonical_json(row) for row in rows))
        for rows_a_step, bar in BARS.items():
            jobs = [(directory / family, spec_of(rows_a_step)) for family in list(FAMILIES)[:JOBS]]
            pairs, apart = [], 0.0
            for round_ in range(rounds + 1):
                alone_s, alone = timed(adapted, jobs, together=False)
                together_s, together = timed(adapted, jobs, together=True)
                apart = max(apart, largest_difference(alone, together))
                if round_:  # the first one warms up
                    pairs.append((alone_s, together_s))
                    console.print(f"{rows_a_step} rows: {alone_s:.1f} s one by one, {together_s:.1f} s together")
            ratio = statistics.median(alone_s / together_s for alone_s, together_s in pairs)
            operations = counted(adapted, jobs)
            limit = statistics.median(alone_s for alone_s, _ in pairs) * peak / operations
            results[rows_a_step] = {"one_by_one_s": [p[0] for p in pairs], "together_s": [p[1] for p in pairs]}
            results[rows_a_step] |= {"ratio": ratio, "limit": limit, "largest_z_difference": apart}
            results[rows_a_step] |= {"operations": operations, "operations_per_s_of_best_product": peak}
            medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
            table.add_row(
                str(rows_a_step),
                *(f"{m:.1f}" for m in medians),
                f"{ratio:.2f}×",
                f"{limit:.2f}×",
                f"≥ {bar}×",
                f"{apart:.1e}",
            )
    console.print(table)
    written = {
        "name": "multi_expert_training",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "results": results,
        "bars": {
            f"jobs per hour together over alone, {rows} rows a step": {
                "value": results[rows]["ratio"],
                "bar": bar,
                "better": "higher",
            }
            for rows, bar in BARS.items()
        },
    }
    (Path(__file__).parent / "results" / "multi_expert_training.json").write_text(json.dumps(written, indent=2) + "\n")


def spec_of(rows_a_step: int) -> TrainSpec:
    asked = {
        "n_steps": STEPS,
        "batch_size": rows_a_step // GROUP_SIZE,
        "group_size": GROUP_SIZE,
        "max_new_tokens": 16,
        "eval_interval": STEPS,
        "eval_samples": 60,
        "preflight_prompts": 0,
        "general_questions": 0,
    }
    return shipped.spec_of(asked, rows=600)


def timed(adapted: AdaptedModel, jobs: Sequence[Job], *, together: bool) -> tuple[float, list[dict[str, Tensor]]]:
    """Seconds until all jobs are done, and their z: with all cores for each product, or a compute stream a core."""
    cores = os.cpu_count() or 1
    models = [adapted, *(adapted.weight_sharing_view() for _ in range(cores - 1 if together else 0))]
    streams = [(model, ComputeGroup()) for model in models]
    torch.set_num_threads(1 if together else cores)
    started = time.perf_counter()
    with ThreadPoolExecutor(len(jobs) if together else 1) as threads:
        results = list(threads.map(run, itertools.cycle(streams), jobs))
    return time.perf_counter() - started, results


def run(stream: tuple[AdaptedModel, ComputeGroup], job: Job) -> dict[str, Tensor]:
    """Train one expert and return its z after the last step."""
    adapted, group = stream
    path, spec = job
    states: list[TrainState] = []
    with group.join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
        shipped.run(spec, member, path, on_checkpoint=lambda state, _metrics: states.append(state))
    return states[-1].current


def counted(adapted: AdaptedModel, jobs: Sequence[Job]) -> int:
    """Operations of the products of all jobs, one by one: merged weights need the fewest."""
    operations = 0

    def count(requests: Sequence[Any]) -> list[Any]:
        nonlocal operations
        with FlopCounterMode(display=False) as counter:
            outcomes = batches.answer(requests)
        operations += counter.get_total_flops()
        return outcomes

    with mock.patch.object(compute_group, "answer", count):
        timed(adapted, jobs, together=False)
    return operations


def best_product() -> float:
    """Operations a second of the best of some large products, float32, on all of this process's threads."""
    size = 1024
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def largest_difference(alone: Sequence[Mapping[str, Tensor]], together: Sequence[Mapping[str, Tensor]]) -> float:
    return max(
        float((one[name] - other[name]).abs().max()) for one, other in zip(alone, together, strict=True) for name in one
    )


if __name__ == "__main__":
    main()
