"""The default length of a step against a grid of fixed learning rates, on bases of several families and sizes.

Each base is trained on the same tasks with the defaults, whose steps are bounded by what they do (``step_kl``), and
with four fixed rates without that bound. What counts is the gain of the last validation score over the base's, so that
an expert that was good and then was destroyed has no merit; the share is the default's mean gain over that of the rate
that is best for this base. The small bases are made by ``tools/make_base_model.py`` and kept in ``--bases``; a real one
comes with ``--model DIR``, and is trained on tasks in plain English with fewer answers a step.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import shipped
import torch
from rich.console import Console
from rich.table import Table

from zhub.demo.language_tasks import LANGUAGE_TASKS
from zhub.demo.task_families import sample_rows
from zhub.manifest import canonical_json
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import decompose_base, load_basis

TOOL = Path(__file__).parents[1] / "tools" / "make_base_model.py"
MADE = ("gpt2", "qwen3", "gemma3", "mixtral")
FAMILIES = ("sorting", "choice")
GRID = (0.001, 0.005, 0.02, 0.1)
ROWS = 800
REAL_ROWS = 300
SHARE_BAR = 0.9
SMALL = {"n_steps": 30, "max_new_tokens": 10}
REAL = {"n_steps": 12, "batch_size": 8}


@dataclass(frozen=True)
class Task:
    """Rows, what grades their answers, and what the base's size allows."""

    name: str
    path: Path
    rows: int
    grader: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """``rate`` None is the default. ``curve`` are the validation scores, the base's first."""

    task: str
    seed: int
    rate: float | None
    curve: list[float]
    collapses: int

    @property
    def gain(self) -> float:
        return self.curve[-1] - self.curve[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=Path, help="where the small bases are, or are made and kept")
    parser.add_argument("--model", type=Path, help="a real base, as a directory")
    parser.add_argument("--model-tasks", nargs="+", choices=list(LANGUAGE_TASKS), default=["kinds"])
    parser.add_argument("--made", nargs="*", choices=MADE, default=list(MADE))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    measured: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        bases = arguments.bases or scratch / "bases"
        small = [made_task(family, scratch) for family in FAMILIES]
        for name in ("llama", *arguments.made):
            directory = shipped.DIRECTORY if name == "llama" else made_base(name, bases)
            measured[name] = grid(name, directory, small, arguments.seeds, scratch, console)
        if arguments.model is not None:
            real = [real_task(name, scratch) for name in arguments.model_tasks]
            measured[arguments.model.name] = grid(arguments.model.name, arguments.model, real, 1, scratch, console)
    write(measured, arguments.threads, console)


def made_base(architecture: str, bases: Path) -> Path:
    """The directory of a small base, which is made if it is not there."""
    directory = bases / architecture
    if not (directory / "model.safetensors").is_file():
        asked = ["--architecture", architecture, "--families", *FAMILIES, "initials", "--steps", "600"]
        argv = [
            sys.executable,
            str(TOOL),
            "make",
            "--directory",
            str(directory),
            *asked,
            "--batch-size",
            "64",
            "--rows",
            "100",
        ]
        subprocess.run(argv, check=True)
    return directory


def made_task(family: str, scratch: Path) -> Task:
    path = scratch / f"{family}.jsonl"
    path.write_bytes(b"\n".join(canonical_json(row) for row in sample_rows(family, ROWS, seed=1)))
    return Task(family, path, ROWS, shipped.GRADER, SMALL)


def real_task(name: str, scratch: Path) -> Task:
    task, path = LANGUAGE_TASKS[name], scratch / f"{name}.jsonl"
    path.write_bytes(b"\n".join(canonical_json(row) for row in task.sample_rows(REAL_ROWS, seed=1)))
    return Task(name, path, REAL_ROWS, task.grader, {**REAL, "max_new_tokens": task.max_new_tokens})


def grid(name: str, directory: Path, tasks: Sequence[Task], seeds: int, scratch: Path, console: Console) -> list[Run]:
    """Every task, seed and rate on one base."""
    base, basis = load_base_model(directory), scratch / f"basis-{name}"
    adapted = AdaptedModel(base, load_basis(basis, decompose_base(base, basis)))
    runs = []
    for task in tasks:
        for seed in range(1, seeds + 1):
            for rate in (None, *GRID):
                runs.append(train(adapted, task, seed, rate))
                label = "default" if rate is None else f"rate {rate:g}"
                scores = f"{runs[-1].curve[0]:.3f} → {runs[-1].curve[-1]:.3f}"
                console.print(f"{name} {task.name}, seed {seed}, {label}: {scores}", highlight=False)
    return runs


def train(adapted: AdaptedModel, task: Task, seed: int, rate: float | None) -> Run:
    fixed = {} if rate is None else {"learning_rate": rate, "step_kl": 0.0}
    asked = {"eval_interval": 10, "general_questions": 0, **task.settings, **fixed}
    spec = shipped.spec_of(asked, rows=task.rows, seed=seed, grader=task.grader)
    curve: list[float] = []
    collapses = 0

    def on_event(_level: str, _message: str, data: dict[str, Any] | None) -> None:
        nonlocal collapses
        collapses += (data or {}).get("type") == "rolled_back"
        if data is not None and "valid_reward_mean" in data:
            curve.append(data["valid_reward_mean"])

    with ComputeGroup().join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
        shipped.run(spec, member, task.path, on_event=on_event)
    return Run(task.name, seed, rate, curve, collapses)


def write(measured: dict[str, list[Run]], threads: int, console: Console) -> None:
    table = Table(title="Gain of the last validation score over the base's, mean over tasks and seeds")
    for column in ("base", "default", *(f"{rate:g}" for rate in GRID), "share of the best rate's", "collapses"):
        table.add_column(column, justify="right")
    bars: dict[str, dict[str, Any]] = {}
    results = {}
    for name, runs in measured.items():
        gains = {rate: fmean(run.gain for run in runs if run.rate == rate) for rate in (None, *GRID)}
        best = max(gains[rate] for rate in GRID)
        share = gains[None] / best if best > 0 else 1.0
        defaults = [run for run in runs if run.rate is None]
        collapses = sum(run.collapses for run in defaults)
        table.add_row(name, *(f"{gain:+.3f}" for gain in gains.values()), f"{share:.2f}", str(collapses))
        results[name] = [vars(run) for run in runs]
        bars[f"{name}: share of the best rate's gain"] = {"value": share, "bar": SHARE_BAR, "better": "higher"}
        below = sum(run.gain < 0 for run in defaults)
        bars[f"{name}: runs of the default that end below the base"] = {"value": below, "bar": 0, "better": "lower"}
        bars[f"{name}: collapses of the default"] = {"value": collapses, "bar": 0, "better": "lower"}
    console.print(table)
    for what, bar in bars.items():
        met = bar["value"] >= bar["bar"] if bar["better"] == "higher" else bar["value"] <= bar["bar"]
        console.print(f"{what}: {bar['value']:.3g}, bar {bar['bar']:g}: {'met' if met else 'MISSED'}")
    machine = f"{platform.machine()}, {threads} of {os.cpu_count()} cores, torch {torch.__version__}"
    written = {"name": "defaults", "machine": machine, "results": results, "bars": bars}
    (Path(__file__).parent / "results" / "defaults.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
