"""What a training with the defaults makes of a real language model: SmolLM2-135M-Instruct, task by task.

Each task has one right answer for a prompt in plain English (``zhub.demo.language_tasks``). Base and expert answer the
same held-out test rows, and the general suite, which says what was forgotten. Hyper-parameters are the defaults of the
recipe; ``--steps``, ``--batch-size`` and the length of an answer are what two cores allow. Each run is written as soon
as it has ended, and one that is in the results already is not run again; ``--fresh`` begins anew.

The model is the directory that ``zhub base-models add smollm2 --builtin`` makes, or any other: ``--model DIR``. Writes
``results/real_base.json`` and ``docs/real-base.md``.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import shipped
import torch
from rich.console import Console

from zhub.demo.language_tasks import LANGUAGE_TASKS
from zhub.manifest import Evaluation, canonical_json, sha256_file
from zhub.recipes import Recipe
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import BASIS_FILE, decompose_base, load_basis

RESULTS = Path(__file__).parent / "results" / "real_base.json"
PAGE = Path(__file__).parents[1] / "docs" / "real-base.md"
ROWS = 400
KINDS: dict[str, tuple[dict[str, Any], Recipe]] = {
    "SVF-RL": ({"adapter": "svf"}, "reinforcement"),
    "SVF-SFT": ({"adapter": "svf"}, "supervised"),
    "LoRA-RL": ({"adapter": "lora"}, "reinforcement"),
    "LoRA-SFT": ({"adapter": "lora"}, "supervised"),
    "frames-RL": ({"adapter": "frames"}, "reinforcement"),
    "TinyLoRA-RL": ({"adapter": "core", "core_parameters": 64}, "reinforcement"),
}
GAIN, TASKS_BAR = 0.20, 2
SIGNIFICANCE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--basis", type=Path, help="where its basis is, or is made and kept")
    parser.add_argument("--tasks", nargs="+", choices=list(LANGUAGE_TASKS), default=list(LANGUAGE_TASKS))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["SVF-RL"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    runs = [] if arguments.fresh or not RESULTS.is_file() else json.loads(RESULTS.read_text())["results"]["runs"]
    settings = {"n_steps": arguments.steps, "batch_size": arguments.batch_size, "eval_interval": 10}
    with tempfile.TemporaryDirectory() as scratch:
        adapted = load(arguments.model, arguments.basis or Path(scratch) / "basis")
        for seed in range(1, arguments.seeds + 1):
            for kind in arguments.kinds:
                for task in arguments.tasks:
                    key = {"task": task, "kind": kind, "seed": seed, **settings}
                    if any(key.items() <= run.items() for run in runs):
                        continue
                    run = key | measure(adapted, task, kind, seed, settings, Path(scratch), console)
                    runs.append(run)
                    write(runs, arguments.threads)
                    console.print(line(run))
    write(runs, arguments.threads)


def load(model: Path, basis: Path) -> AdaptedModel:
    base = load_base_model(model)
    if (basis / BASIS_FILE).is_file():
        return AdaptedModel(base, load_basis(basis, sha256_file(basis / BASIS_FILE)))
    return AdaptedModel(base, load_basis(basis, decompose_base(base, basis)))


def measure(
    adapted: AdaptedModel, name: str, kind: str, seed: int, settings: dict[str, Any], scratch: Path, console: Console
) -> dict[str, Any]:
    """Train one expert and return what base and expert answered rightly."""
    task, (asked, recipe) = LANGUAGE_TASKS[name], KINDS[kind]
    rows = task.sample_rows(ROWS, seed=1)
    if recipe == "supervised":
        rows = [row | {"messages": [*row["messages"], answer(row["answer"])]} for row in rows]
    path = scratch / f"{name}.jsonl"
    path.write_bytes(b"\n".join(map(canonical_json, rows)))
    spec = shipped.spec_of(
        {**asked, **settings, "max_new_tokens": task.max_new_tokens},
        rows=ROWS,
        seed=seed,
        recipe=recipe,
        grader=task.grader,
    )
    curve: list[dict[str, float]] = []
    collapses = 0

    def on_event(_level: str, message: str, data: dict[str, Any] | None) -> None:
        nonlocal collapses
        collapses += (data or {}).get("type") == "rolled_back"
        if data is not None and data.get("type") == "metrics":
            curve.append({key: value for key, value in data.items() if key != "type"})
        console.print(f"  {kind} {name}, seed {seed}: {message}", highlight=False)

    started = time.perf_counter()
    adapter = make_adapter(adapted, spec.hyperparameters)
    with ComputeGroup().join(adapter, lambda: False) as member:
        result = shipped.run(spec, member, path, on_event=on_event)
    assert result.test is not None
    return {
        "seconds": time.perf_counter() - started,
        "parameters": sum(value.numel() for value in adapter.initial(0).values()),
        "collapses": collapses,
        "best_step": result.best_step,
        "test": comparison(result.test),
        "general": [{"suite": of.split, **comparison(of)} for of in result.general],
        "rewards": [round(point["train_reward_mean"], 4) for point in curve if "train_reward_mean" in point],
    }


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def comparison(evaluation: Evaluation) -> dict[str, Any]:
    sides = {"base": evaluation.base, "expert": evaluation.expert}
    return {"p_value": evaluation.p_value} | {
        name: {"mean": side.mean, "low": side.low, "high": side.high, "n": side.n} for name, side in sides.items()
    }


def line(run: dict[str, Any]) -> str:
    base, expert = run["test"]["base"], run["test"]["expert"]
    return f"{run['kind']} {run['task']}, seed {run['seed']}: {base['mean']:.1%} → {expert['mean']:.1%}"


def write(runs: list[dict[str, Any]], threads: int) -> None:
    """The results, and the page that people read."""
    machine = f"{platform.machine()}, {threads} of {os.cpu_count()} cores, torch {torch.__version__}"
    defaults = [run for run in runs if run["kind"] == "SVF-RL"]
    gains = {
        task: statistics.median(gain(run) for run in defaults if run["task"] == task)
        for task in {run["task"] for run in defaults}
    }
    worse = [run for run in defaults if gain(run) < 0 and run["test"]["p_value"] < SIGNIFICANCE]
    bars = {
        "tasks on which SVF-RL gains 20 points": bar(sum(g >= GAIN for g in gains.values()), TASKS_BAR, "higher"),
        "runs of SVF-RL that end below their base": bar(len(worse), 0, "lower"),
        "collapses of SVF-RL": bar(sum(run["collapses"] for run in defaults), 0, "lower"),
    }
    written = {"name": "real_base", "machine": machine, "results": {"runs": runs}, "bars": bars}
    RESULTS.write_text(json.dumps(written, indent=1) + "\n")
    PAGE.write_text(page(runs, machine))


def gain(run: dict[str, Any]) -> float:
    return float(run["test"]["expert"]["mean"] - run["test"]["base"]["mean"])


def bar(value: float, limit: float, better: str) -> dict[str, Any]:
    return {"value": value, "bar": limit, "better": better}


def page(runs: list[dict[str, Any]], machine: str) -> str:
    rows = [
        f"| {run['task']} | {run['kind']} | {run['seed']} | {shown(run['test']['base'])} | "
        f"{shown(run['test']['expert'])} | {100 * gain(run):+.1f} | {run['test']['p_value']:.2g} | {forgotten(run)} | "
        f"{run['parameters']:,} | {run['n_steps']} × {run['batch_size']} | {run['seconds']:,.0f} |"
        for run in sorted(runs, key=lambda run: (run["task"], run["kind"], run["seed"]))
    ]
    header = "task | kind | seed | base | expert | points | p | general suite | parameters | steps × prompts | seconds"
    return "\n".join(
        [
            "# Experts of a real language model",
            "",
            "Written by `benchmarks/real_base.py`, whatever it measures. Base: SmolLM2-135M-Instruct. Right answers to",
            "held-out test rows, in per cent with 95 % intervals, greedily; the general suite is what base and expert",
            "answer rightly beside the task. Hyper-parameters are the defaults, but for steps, prompts a step, and the",
            f"length of answers. Machine: {machine}.",
            "",
            f"| {header} |",
            f"|{'---|' * (header.count('|') + 1)}",
            *rows,
            "",
        ]
    )


def shown(side: dict[str, Any]) -> str:
    return f"{100 * side['mean']:.1f} ({100 * side['low']:.0f}–{100 * side['high']:.0f})"


def forgotten(run: dict[str, Any]) -> str:
    """Of the whole suite, which comes first."""
    if not run["general"]:
        return "–"
    whole = run["general"][0]
    return f"{100 * whole['base']['mean']:.1f} → {100 * whole['expert']['mean']:.1f}"


if __name__ == "__main__":
    main()
