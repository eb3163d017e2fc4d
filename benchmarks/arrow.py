"""Whether experts can be chosen token by token from what passes through the weights, as Arrow does it, made for z.

At each matrix and token the change of expert k has the energy ``Σ_i (s_i Δ_k,i v_iᵀ x)²``; ``Vᵀ x`` is there already
where rows follow multipliers. Arrow (arXiv:2405.11157) follows the expert with the highest. Here ``Δ_k`` is scaled to
equal length in each matrix, without which the expert that changes most is always chosen.

Four families on the shipped base, an expert trained on each, and held-out rows of all of them: how often the energies
summed over a prompt find its family, beside centroids; and how many answers are right that follow the highest energy at
each matrix and token, beside those of the expert that centroids choose.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import shipped
import torch
from rich.console import Console
from rich.table import Table
from routing import expert as centroid_of
from torch import Tensor

from zhub.demo.task_families import FAMILIES, sample_rows
from zhub.evaluation.statistics import accuracy
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import BaseModel, render_prompt
from zhub_workers.model.rollout import generate
from zhub_workers.model.routing import prompt_embeddings, route

NAMES = list(FAMILIES)[:4]
TRAINING_ROWS, HELD_OUT_ROWS = 400, 25  # of each family
ANSWER_TOKENS = 16
SETTINGS = {"n_steps": 60, "eval_interval": 20, "general_questions": 0, "max_new_tokens": ANSWER_TOKENS}


class Arrow:
    """The changes ``s Δ`` of K experts by matrix, ``(K, r)``, and which of them each token follows."""

    def __init__(self, adapted: AdaptedModel, zs: list[Mapping[str, Tensor]]) -> None:
        self._adapted = adapted
        self._changes = {
            name: torch.stack([adapted.singular_values(name) * (z[name] - 1) for z in zs]) for name in sorted(zs[0])
        }
        self.totals = torch.zeros(len(zs))

    @contextmanager
    def following(self, *, change: bool) -> Iterator[None]:
        """Each token follows the expert of the highest energy at each matrix; or the base, and energies are summed."""
        try:
            for name, changes in self._changes.items():
                vars(self._adapted.layers[name])["forward"] = self._forward(name, changes, change)
            yield
        finally:
            for name in self._changes:
                vars(self._adapted.layers[name]).pop("forward", None)

    def _forward(self, name: str, changes: Tensor, change: bool) -> Callable[[Tensor], Tensor]:
        layer = self._adapted.linear_layer(name)
        u, _, vh = self._adapted.basis.factors[name]
        lengths = changes.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        weights = (changes / lengths).square()

        def forward(x: Tensor) -> Tensor:
            y: Tensor = type(layer).forward(layer, x)
            along = x @ vh.T
            energies = along.square() @ weights.T
            if not change:
                self.totals += energies.sum(tuple(range(energies.dim() - 1)))
                return y
            return y + (changes[energies.argmax(-1)] * along) @ u.T

        return forward

    def of_prompt(self, base: BaseModel, ids: list[int]) -> int:
        """The expert with the highest energy over the whole prompt."""
        self.totals.zero_()
        with torch.no_grad(), self.following(change=False):
            base.model(torch.tensor([ids]))
        return int(self.totals.argmax())


def main() -> None:
    torch.set_num_threads(1)
    rows = [
        (own, row) for own, name in enumerate(NAMES) for row in sample_rows(name, HELD_OUT_ROWS, seed=3, split="test")
    ]
    with tempfile.TemporaryDirectory() as directory:
        adapted = shipped.load(Path(directory))
        zs = [train(adapted, name, Path(directory)) for name in NAMES]
        found, right = measure(adapted, zs, rows)
    report(found, right)


def train(adapted: AdaptedModel, name: str, directory: Path) -> Mapping[str, Tensor]:
    path = directory / f"{name}.jsonl"
    rows = sample_rows(name, TRAINING_ROWS, seed=1, split="train")
    path.write_text("".join(f"{json.dumps(with_answer(row))}\n" for row in rows))
    spec = shipped.spec_of(SETTINGS, rows=TRAINING_ROWS, recipe="supervised", grader=None)
    began = time.monotonic()
    with ComputeGroup(None).join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
        z = shipped.run(spec, member, path).artifact
    print(f"{name} trained in {time.monotonic() - began:.0f} s", flush=True)
    return z


def with_answer(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*row["messages"], {"role": "assistant", "content": row["answer"]}]}


def measure(
    adapted: AdaptedModel, zs: list[Mapping[str, Tensor]], rows: list[tuple[int, dict[str, Any]]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """For each way of choosing: whether it finds a prompt's family, and whether the answer is right."""
    base, arrow = adapted.base, Arrow(adapted, zs)
    centroids = [centroid_of(base, name, seed=1) for name in NAMES]
    found: dict[str, list[float]] = {"centroid": [], "arrow, of the prompt": []}
    right: dict[str, list[float]] = {
        "base": [], "own expert": [], "centroid": [], "arrow, of the prompt": [], "arrow, of each token": []
    }  # fmt: skip
    for own, row in rows:
        ids = render_prompt(base, row["messages"])
        by_centroid, by_arrow = route(prompt_embeddings(base, [ids])[0], centroids).index, arrow.of_prompt(base, ids)
        found["centroid"].append(float(by_centroid == own))
        found["arrow, of the prompt"].append(float(by_arrow == own))
        followed = {"base": None, "own expert": own, "centroid": by_centroid, "arrow, of the prompt": by_arrow}
        for name, index in followed.items():
            with adapted.merged({} if index is None else zs[index]):
                right[name].append(is_right(base, ids, row))
        with arrow.following(change=True):
            right["arrow, of each token"].append(is_right(base, ids, row))
    return found, right


@torch.no_grad()
def is_right(base: BaseModel, ids: list[int], row: dict[str, Any]) -> float:
    (answer,) = generate(base, [ids], max_new_tokens=ANSWER_TOKENS, temperature=0.0, seeds=[0])
    return float(answer.text.strip() == row["answer"])


def report(found: dict[str, list[float]], right: dict[str, list[float]]) -> None:
    results = {
        "right choices": {name: accuracy(outcomes).model_dump() for name, outcomes in found.items()},
        "right answers": {name: accuracy(outcomes).model_dump() for name, outcomes in right.items()},
    }
    for what, measured in results.items():
        table = Table("by", f"{what} [95 %]")
        for name, row in measured.items():
            table.add_row(name, f"{100 * row['mean']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]")
        Console().print(table)
    answers = results["right answers"]
    value = answers["arrow, of each token"]["mean"] / max(answers["centroid"]["mean"], 1e-9)
    bars = {
        "right answers of routing by token over those of centroids": {"value": value, "bar": 1.0, "better": "higher"}
    }
    written = {
        "name": "arrow",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "results": results,
        "bars": bars,
    }
    (Path(__file__).parent / "results" / "arrow.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
