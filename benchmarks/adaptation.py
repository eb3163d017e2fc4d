"""What adapts best to a task that no expert was trained on: compositions of families, and harder variants.

The project has an expert of each of ``--families``. Of every new task there are a hundred rows, of which a few-shot
search sees ten, and twenty for validation and test; accuracy is that of 300 other prompts. Compared are the base, the
expert that is best on the shots, who is chosen for each prompt by its likeness to those of the experts (``centroid``),
by the base when asked (``prompt``) and by a classifier, equal parts of all experts, equal parts of LoRAs that were
trained on the same rows, the search in its forms, the expert that is best on the *test* prompts, which nobody knows
beforehand, and one that was shown the right answers to 800 rows of the task. Where chance has a part there are several
seeds, and an interval is that of the mean over them.

Writes ``results/adaptation.json``, and its section of ``docs/results.md``.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import shipped
import torch
import trained_classifier
import unseen_tasks
from experts import PAGE, interval, rewards_of, with_answers
from rich.console import Console
from routing import by_classifier
from torch import Tensor

from zhub.answering import ExpertReference
from zhub.demo.task_families import FAMILIES, Family, sample_rows
from zhub.evaluation.statistics import accuracy
from zhub.generation import GenerationRequest
from zhub.manifest import canonical_json
from zhub.recipes import Recipe
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import SvfAdapter, adapter_of, adapter_settings, make_adapter
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.routing import prompt_embeddings, route
from zhub_workers.serving.strategies import Priors, choose_by_prompt
from zhub_workers.training.train import TrainResult, train
from zhub_workers.training.warm_start import Start

RESULTS = Path(__file__).parent / "results" / "adaptation.json"
HEADING = "## Tasks that no expert was trained on"
ROWS, TRAINED_ROWS, TEST_ROWS = 100, 800, 300
SHORT = {"max_new_tokens": 16, "general_questions": 0}
TRAINING = {"n_steps": 40} | SHORT
SEARCHES: dict[str, dict[str, Any]] = {
    "few-shot search": {},
    "few-shot search, by layer": {"granularity": "layer"},
    "gradient alone": {"start": "gradient", "n_steps": 0},
}
WON, BAR = "share of tasks where the search is level with the best single expert, or ahead", 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=["sorting", "reversal", "initials"])
    parser.add_argument("--tasks", nargs="+", choices=list(unseen_tasks.TASKS), default=list(unseen_tasks.TASKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), arguments.families)
        measured = {}
        for task in arguments.tasks:
            measured[task] = bench.measure(unseen_tasks.TASKS[task], arguments.seeds)
            console.print(task, measured[task])
    level = statistics.fmean(is_level(of) for of in measured.values())
    machine = f"{platform.machine()}, 1 of {os.cpu_count()} cores, torch {torch.__version__}"
    written = {
        "name": "adaptation",
        "machine": machine,
        "results": {"seeds": arguments.seeds, "experts": arguments.families, "tasks": measured},
        "bars": {WON: {"value": level, "bar": BAR, "better": "higher"}},
    }
    RESULTS.write_text(json.dumps(written, indent=2) + "\n")
    kept, _, _ = PAGE.read_text().partition(HEADING)
    PAGE.write_text(kept.rstrip() + "\n\n" + section(measured, arguments.families, arguments.seeds))


class Bench:
    """The shipped base, what is trained and searched on it, and the answers of what comes of that."""

    def __init__(self, directory: Path, families: Sequence[str]) -> None:
        self._directory = directory
        self._adapted: AdaptedModel = shipped.load(directory / "basis")
        self._families = list(families)
        trained = {family: self._training_rows(family) for family in families}
        svf = {family: self._made("reinforcement", TRAINING, rows, 1) for family, rows in trained.items()}
        self._experts = [Start(family, family, of.artifact, of.centroid) for family, of in svf.items()]
        loras = [self._made("reinforcement", TRAINING | {"adapter": "lora"}, rows, 1) for rows in trained.values()]
        self._loras = [result.artifact for result in loras]
        others = [family for family in FAMILIES if family not in families][:2]
        self._classifier = trained_classifier.train(directory, families, others)
        self._priors: Priors = {}

    def measure(self, task: Family, seeds: int) -> dict[str, Any]:
        """The accuracy of each way on the task's test prompts, with its interval."""
        rows = unseen_tasks.sample(task, TEST_ROWS, seed=2, split="test")
        tested = self._file("test", rows)
        base = self._rewards({}, tested)
        alone = {expert.name: self._rewards(expert.z, tested) for expert in self._experts}
        ways: dict[str, list[list[float]]] = {
            "base": [base],
            "equal parts": [self._rewards(self._equal_parts(), tested)],
            "equal parts of LoRAs": [self._rewards_of_loras(tested)],
        }
        for way, choose in (("centroid", self._nearest), ("prompt", self._said), ("classifier", self._classified)):
            chosen = (alone.get(name or "", base)[at] for at, name in enumerate(map(choose, rows)))
            ways[way] = [list(chosen)]
        ways |= {way: [] for way in ("best expert on the shots", *SEARCHES)}
        for seed in range(1, seeds + 1):
            shots = self._file(f"rows-{seed}", unseen_tasks.sample(task, ROWS, seed=seed + 10, split="train"))
            held = self._file(f"held-{seed}", unseen_tasks.sample(task, 20, seed=seed + 10, split="validation"))
            for way, asked in SEARCHES.items():
                result = self._made("few_shot", asked | SHORT, shots, seed, held=held)
                ways[way].append(self._rewards(result.artifact, tested))
            ways["best expert on the shots"].append(alone.get(self._best_on_shots(shots, seed, held), base))
        ways["best expert, known afterwards"] = [max(alone.values(), key=statistics.fmean)]
        shown = with_answers(unseen_tasks.sample(task, TRAINED_ROWS, seed=1))
        taught = self._made("supervised", TRAINING, self._file("shown", shown), 1)
        ways["shown 800 right answers"] = [self._rewards(taught.artifact, tested)]
        return {way: _summary(rewards) for way, rewards in ways.items()}

    def _made(
        self,
        recipe: Recipe,
        asked: Mapping[str, Any],
        rows: Path,
        seed: int,
        held: Path | None = None,
        on_event: Callable[[str, str, Any], None] = lambda *_: None,
    ) -> TrainResult:
        grader = None if recipe == "supervised" else shipped.GRADER
        spec = shipped.spec_of(asked, rows=ROWS, seed=seed, recipe=recipe, grader=grader)
        with ComputeGroup().join(make_adapter(self._adapted, spec.hyperparameters), lambda: False) as member:
            return train(
                spec,
                member=member,
                grading=Grading(spec.grader),
                training_path=rows,
                validation_path=held,
                on_event=on_event,
                on_checkpoint=lambda *_: None,
                starts=self._experts if recipe == "few_shot" else (),
            )

    def _best_on_shots(self, rows: Path, seed: int, held: Path) -> str:
        """The name of the expert that answers the shots best alone; the base's where none beats it."""
        told: list[str] = []
        asked = {"n_steps": 0} | SHORT
        self._made("few_shot", asked, rows, seed, held=held, on_event=lambda _, message, __: told.append(message))
        (listed,) = [message for message in told if message.startswith("Rewards on the")]
        rewards = dict(part.rsplit(" ", 1) for part in listed.partition(": ")[2].rstrip(".").split(", "))
        del rewards["equal parts"]
        best: str = max(rewards, key=lambda name: float(rewards[name]))
        return best

    def _nearest(self, row: Mapping[str, Any]) -> str | None:
        ids = render_prompt(self._adapted.base, row["messages"])
        centroids = [expert.centroid for expert in self._experts if expert.centroid is not None]
        index = route(prompt_embeddings(self._adapted.base, [ids])[0], centroids).index
        return None if index is None else self._families[index]

    def _said(self, row: Mapping[str, Any]) -> str | None:
        request = GenerationRequest.model_construct(
            messages=row["messages"], prompt=None, candidates=self._classifier.candidates, router="prompt"
        )
        return self._family_of(choose_by_prompt(self._adapted.base, request, self._priors)[0])

    def _classified(self, row: dict[str, Any]) -> str | None:
        return self._family_of(by_classifier(self._classifier, row))

    def _family_of(self, chosen: Sequence[ExpertReference]) -> str | None:
        return self._families[self._classifier.candidates.index(chosen[0])] if chosen else None

    def _equal_parts(self) -> dict[str, Tensor]:
        names = sorted({name for expert in self._experts for name in expert.z})
        return {name: torch.stack([expert.z[name] for expert in self._experts]).mean(0) for name in names}

    def _rewards(self, z: Mapping[str, Tensor], tested: Path) -> list[float]:
        adapter = SvfAdapter(self._adapted, list(self._adapted.layers), sigmoid=False)
        with ComputeGroup().join(adapter, lambda: False) as member:
            return rewards_of(member, adapter.imported(z) if z else None, tested)

    def _rewards_of_loras(self, tested: Path) -> list[float]:
        """Of the mean of their changes: one LoRA that has the matrices of all, side by side."""
        count = len(self._loras)
        of_one = resolve_hyperparameters("reinforcement", {"adapter": "lora"}, train_rows=ROWS)
        settings = adapter_settings(of_one)
        tensors = {
            name: torch.cat([lora[name] for lora in self._loras], 0) if name.endswith("lora_A")
            else torch.cat([lora[name] / count for lora in self._loras], 1)
            for name in self._loras[0]
        }  # fmt: skip
        # Alpha over the rank stays what it was in each.
        wide = {"rank": settings["rank"] * count, "alpha": settings["alpha"] * count}
        adapter = adapter_of(self._adapted, ExpertFile("lora", tensors, wide))
        with ComputeGroup().join(adapter, lambda: False) as member:
            return rewards_of(member, adapter.imported(tensors), tested)

    def _training_rows(self, family: str) -> Path:
        return self._file(family, sample_rows(family, TRAINED_ROWS, seed=1))

    def _file(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        path = self._directory / f"{name}.jsonl"
        path.write_bytes(b"\n".join(map(canonical_json, rows)))
        return path


def _summary(rewards: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and interval over test prompts of the mean over seeds."""
    means = [statistics.fmean(of_row) for of_row in zip(*rewards, strict=True)]
    found = accuracy(means)
    return {"accuracy": found.mean, "low": found.low, "high": found.high, "seeds": len(rewards)}


def is_level(ways: Mapping[str, Any]) -> bool:
    return bool(ways["few-shot search"]["high"] >= ways["best expert on the shots"]["low"])


def section(measured: Mapping[str, Any], families: Sequence[str], seeds: int) -> str:
    ways = list(next(iter(measured.values())))
    lines = [
        HEADING,
        "",
        f"`benchmarks/adaptation.py`: the project has experts of {', '.join(families)}, each trained",
        f"with 800 rows, and ten shots of a new task. Accuracy on {TEST_ROWS} prompts that nothing was chosen by; ways",
        f"that depend on the shots are the mean of {seeds} seeds, with the interval of that mean over the prompts.",
        "",
        f"| | {' | '.join(measured)} |",
        f"|---|{'---:|' * len(measured)}",
    ]
    for way in ways:
        cells = [f"{of[way]['accuracy']:.1%} ({interval(of[way])})" for of in measured.values()]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines += ["", *(f"- **{name}.** {unseen_tasks.TASKS[name].description}" for name in measured), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
