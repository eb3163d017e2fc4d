"""What a warm start buys: a new dataset for which the project has experts, trained from the base and from the nearest.

The project has an expert of every task family of the shipped base. Then come datasets that none of them has seen:
``again`` are fresh prompts of a family, as a team's next version of a dataset is; ``foreign`` is a family whose own
expert is hidden, so that only those of other tasks are there. Each is trained from the base and with ``warm_start``
``nearest``, same seeds, and measured on test prompts that neither saw. What the choice of the start costs counts.

What is compared is steps until nine tenths of what the cold start gains on validation rows: its best score itself is
the largest of many noisy ones.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shipped
import torch
from rich.console import Console
from rich.table import Table

from zhub.demo.task_families import FAMILIES, sample_rows
from zhub.manifest import canonical_json
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.training.train import TrainResult
from zhub_workers.training.warm_start import Start

STEPS, INTERVAL = 40, 4
GAIN = 0.9
BAR = 2.0  # steps from the base over steps from the nearest expert, on fresh prompts of a family
FOREIGN_BAR = -0.05  # test accuracy with warm_start less that without, where no expert is of the family


@dataclass(frozen=True)
class Run:
    """One training: validation rewards by step, step 0 being what it began from."""

    result: TrainResult
    curve: dict[int, float]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    measured: dict[str, dict[str, Any]] = {"again": {}, "foreign": {}}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        adapted = shipped.load(directory / "basis")
        experts: dict[str, Start] = {}
        for family in FAMILIES:
            first = run(adapted, write(directory, family, dataset=1), seed=0)
            assert first.result.centroid is not None
            experts[family] = Start(family, family, first.result.artifact, first.result.centroid)
            console.print(f"expert of {family}: validation {max(first.curve.values()):.3f}")
        for family in arguments.families:
            fresh = write(directory, family, dataset=2)
            others = [start for name, start in experts.items() if name != family]
            cold = [run(adapted, fresh, seed=seed) for seed in range(1, arguments.seeds + 1)]
            for kind, starts in (("again", list(experts.values())), ("foreign", others)):
                warm = [run(adapted, fresh, seed=seed, starts=starts) for seed in range(1, arguments.seeds + 1)]
                measured[kind][family] = compared(cold, warm)
                console.print(f"{kind} {family}: {measured[kind][family]['began_from']}")
    for kind, families in measured.items():
        console.print(table_of(kind, families))
    faster = statistics.median(of["ratio"] for of in measured["again"].values())
    lost = min(of["warm_test"] - of["cold_test"] for of in measured["foreign"].values())
    written = {
        "name": "warm_start",
        "machine": f"{platform.machine()}, {arguments.threads} of {os.cpu_count()} cores, torch {torch.__version__}",
        "results": {"seeds": arguments.seeds, "steps": STEPS, **measured},
        "bars": {
            "steps to nine tenths of the cold start's gain, cold over warm, fresh prompts": {
                "value": faster,
                "bar": BAR,
                "better": "higher",
            },
            "test accuracy, warm less cold, at its worst where no expert is of the family": {
                "value": lost,
                "bar": FOREIGN_BAR,
                "better": "higher",
            },
        },
    }
    for what, bar in written["bars"].items():  # type: ignore[attr-defined]
        console.print(f"{what}: {bar['value']:.2f} (bar {bar['bar']})")
    (Path(__file__).parent / "results" / "warm_start.json").write_text(json.dumps(written, indent=2) + "\n")


def write(directory: Path, family: str, *, dataset: int) -> Path:
    path = directory / f"{family}-{dataset}.jsonl"
    path.write_bytes(b"\n".join(map(canonical_json, sample_rows(family, 800, seed=dataset))))
    return path


def run(adapted: AdaptedModel, path: Path, *, seed: int, starts: list[Start] | None = None) -> Run:
    """Train with the defaults, from the base or from the nearest of ``starts``."""
    asked = {
        "n_steps": STEPS,
        "eval_interval": INTERVAL,
        "learning_rate": 0.06,
        "max_new_tokens": 16,
        "warm_start": "off" if starts is None else "nearest",
    }
    spec = shipped.spec_of(asked, rows=800, seed=seed)
    curve: dict[int, float] = {}
    scores: list[float] = []

    def on_event(_level: str, message: str, data: dict[str, Any] | None) -> None:
        if data is not None and "valid_reward_mean" in data:
            curve[data["step"]] = data["valid_reward_mean"]
        if " scores " in message:
            scores.append(float(message.split()[2]))

    began = time.perf_counter()
    with ComputeGroup().join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
        result = shipped.run(spec, member, path, on_event=on_event, starts=starts or ())
    curve[0] = max([curve[0], *scores])
    return Run(result, curve, time.perf_counter() - began)


def compared(cold: list[Run], warm: list[Run]) -> dict[str, Any]:
    """Medians over seeds; a start that is there at once counts as one step."""
    ratios, reached = [], []
    for before, after in zip(cold, warm, strict=True):
        target = before.curve[0] + GAIN * (max(before.curve.values()) - before.curve[0])
        first = min(step for step, reward in before.curve.items() if reward >= target)
        found = min((step for step, reward in after.curve.items() if reward >= target), default=None)
        reached.append(found)
        ratios.append(max(first, 1) / max(found, 1) if found is not None else first / STEPS)
    return {
        "began_from": sorted({run.result.parent_digest or "the base" for run in warm}),
        "start": statistics.median(run.curve[0] for run in warm),
        "base": statistics.median(run.curve[0] for run in cold),
        "steps_to_target": reached,
        "ratio": statistics.median(ratios),
        "cold_test": statistics.fmean(test(run) for run in cold),
        "warm_test": statistics.fmean(test(run) for run in warm),
        "seconds_ratio": statistics.median(a.seconds / b.seconds for a, b in zip(warm, cold, strict=True)),
    }


def test(run: Run) -> float:
    assert run.result.test is not None  # nobody stopped it
    return run.result.test.expert.mean


def table_of(kind: str, families: dict[str, Any]) -> Table:
    title = {"again": "Fresh prompts of a family with an expert", "foreign": "A family without an expert"}[kind]
    table = Table(title=title)
    for column in ("family", "began from", "base", "start", "× fewer steps", "test, cold", "test, warm", "× seconds"):
        table.add_column(column, justify="right")
    for family, of in families.items():
        shares = (of["base"], of["start"])
        tests = (of["cold_test"], of["warm_test"])
        table.add_row(
            family,
            ", ".join(of["began_from"]),
            *(f"{share:.1%}" for share in shares),
            f"{of['ratio']:.1f}",
            *(f"{share:.1%}" for share in tests),
            f"{of['seconds_ratio']:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
