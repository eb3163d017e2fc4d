"""Whom `auto` asks: prompts of a task whose expert may not answer, and prompts of a task whose expert may.

On the shipped base, each family of tasks has an expert, and all are promoted but one. Before: the candidates alone,
each with the reach that its own held-out prompts need; as if that family had no expert at all. After: the expert that
is not promoted draws the line where its prompts begin. ``own``: prompts of a promoted expert's family that it answers;
after, while of each family a second expert, trained on other prompts of it, is not promoted.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shipped
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zhub.datasets.splits import Split
from zhub.demo.task_families import FAMILIES, sample_rows
from zhub_workers.model.base_model import BaseModel, render_prompt
from zhub_workers.model.routing import Centroid, make_centroid, prompt_embeddings, route

MAX_FALSE = 0.15  # of a family's prompts: sorting and reversing letters differ by one word
MAX_LOST = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100, help="of each family, to route")
    prompts = parser.parse_args().prompts
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        base = shipped.load(Path(directory)).base
    tests = {family: embeddings(base, family, "test", prompts, seed=3) for family in FAMILIES}
    experts, trials = ({family: expert(base, family, seed=seed) for family in FAMILIES} for seed in (1, 2))
    rows = [measure(family, tests[family], experts, trials) for family in FAMILIES]
    report(rows)


def measure(family: str, prompts: Tensor, experts: dict[str, Centroid], trials: dict[str, Centroid]) -> dict[str, Any]:
    """The shares of a family's prompts that are answered by an expert of another family, and by its own."""
    promoted = [centroid for name, centroid in experts.items() if name != family]
    own = list(experts).index(family)
    everyone, rest = list(experts.values()), list(trials.values())
    return {
        "family": family,
        "before": answered(prompts, promoted, []),
        "after": answered(prompts, promoted, [experts[family]]),
        "own_before": share(route(prompt, everyone).index == own for prompt in prompts),
        "own_after": share(route(prompt, everyone, rest).index == own for prompt in prompts),
    }


def answered(prompts: Tensor, candidates: list[Centroid], others: list[Centroid]) -> float:
    return share(route(prompt, candidates, others).index is not None for prompt in prompts)


def share(outcomes: Iterable[bool]) -> float:
    return statistics.fmean(outcomes)


def expert(base: BaseModel, family: str, *, seed: int) -> Centroid:
    training = embeddings(base, family, "train", 200, seed=seed)
    return make_centroid(training, embeddings(base, family, "validation", 50, seed=seed))


def embeddings(base: BaseModel, family: str, split: Split, count: int, *, seed: int) -> Tensor:
    rows = sample_rows(family, count, seed=seed, split=split)
    return prompt_embeddings(base, [render_prompt(base, row["messages"]) for row in rows])


def report(rows: list[dict[str, Any]]) -> None:
    table = Table("family", "false, before", "false, after", "own, before", "own, after")
    for row in rows:
        table.add_row(row["family"], *(f"{100 * row[k]:.0f} %" for k in ("before", "after", "own_before", "own_after")))
    Console().print(table)
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name != "family"}
    bars = {
        "share of a family's prompts that another expert answers, at the worst": (
            max(row["after"] for row in rows),
            MAX_FALSE,
        ),
        "share of own prompts lost by it": (means["own_before"] - means["own_after"], MAX_LOST),
    }
    for what, (value, bar) in bars.items():
        print(f"{what}: {value:.3f} (bar {bar:g})")
    written = {
        "name": "routing",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "results": {"families": rows, "means": means},
        "bars": {what: {"value": value, "bar": bar, "better": "lower"} for what, (value, bar) in bars.items()},
    }
    (Path(__file__).parent / "results" / "routing.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
