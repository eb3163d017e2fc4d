"""Whom `auto` asks: prompts of a task whose expert may not answer, and prompts of a task whose expert may.

On the shipped base, each family of tasks has an expert, and all are promoted but one. Before: the candidates alone,
each with the reach that its own held-out prompts need; as if that family had no expert at all. After: the expert that
is not promoted draws the line where its prompts begin. ``own``: prompts of a promoted expert's family that it answers;
after, while of each family a second expert, trained on other prompts of it, is not promoted.

And how often each strategy finds the family of a prompt: `centroid`, `prompt`, which asks the base with constrained
decoding, and `classifier`, which asks an expert that was trained to answer; with the time of each over that of an
answer of 128 tokens, on prompts of so few families that their descriptions have room in the base's context. ``--base``
asks another base in `prompt`: the shipped one was never taught to follow instructions.

``abstained``: how many prompts of other families the classifier leaves to the base: of two that it was shown as those
of none of its experts, on prompts that were held out, and of the rest, which it never saw.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import shipped
import torch
import trained_classifier
from rich.console import Console
from rich.table import Table
from torch import Tensor
from trained_classifier import Trained

from zhub.answering import ExpertReference
from zhub.datasets.splits import Split
from zhub.demo.task_families import FAMILIES, sample_rows
from zhub.evaluation.statistics import accuracy
from zhub.generation import GenerationRequest
from zhub_workers.model.base_model import BaseModel, load_base_model, render_prompt
from zhub_workers.model.rollout import generate
from zhub_workers.model.routing import Centroid, make_centroid, prompt_embeddings, route
from zhub_workers.serving.strategies import Priors, choose_by_classifier, choose_by_prompt

MAX_FALSE = 0.15  # of a family's prompts: sorting and reversing letters differ by one word
MAX_LOST = 0.05
ANSWER_TOKENS = 128  # of the answer that times are compared with, whatever the base would end it with
MAX_CENTROID_TIME = 0.03
MAX_PROMPT_TIME = 0.25
MAX_CLASSIFIER_TIME = 0.25  # the paper's took 19 % of the second pass on HumanEval, 13 % on MATH
MAX_CLASSIFIER_ERRORS = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100, help="of each family, to route")
    parser.add_argument("--asked", type=int, default=10, help="of each family, to choose an expert for")
    parser.add_argument("--families", type=int, default=4, help="to choose among by either strategy")
    parser.add_argument("--base", type=Path, default=shipped.DIRECTORY, help="to choose by; a directory")
    arguments = parser.parse_args()
    prompts = arguments.prompts
    torch.set_num_threads(1)
    base = load_base_model(shipped.DIRECTORY)
    tests = {family: embeddings(base, family, "test", prompts, seed=3) for family in FAMILIES}
    experts, trials = ({family: expert(base, family, seed=seed) for family in FAMILIES} for seed in (1, 2))
    rows = [measure(family, tests[family], experts, trials) for family in FAMILIES]
    chooser = base if arguments.base == shipped.DIRECTORY else load_base_model(arguments.base)
    families = list(FAMILIES)
    own, shown, unseen = (families[part] for part in parts_of(arguments.families))
    with tempfile.TemporaryDirectory() as directory:
        classifier = trained_classifier.train(Path(directory), own, shown)
        chosen = strategies(chooser, base, classifier, own, arguments.asked)
        abstained = {
            "of families shown as other": abstentions(classifier, shown, arguments.asked),
            "of families never seen": abstentions(classifier, unseen, arguments.asked),
        }
    report(rows, chosen, abstained, arguments.base.name)


def parts_of(count: int) -> tuple[slice, slice, slice]:
    """Of the families, those to choose among, two others that the classifier is shown, and the rest."""
    return slice(0, count), slice(count, count + 2), slice(count + 2, None)


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


def abstentions(trained: Trained, families: list[str], asked: int) -> dict[str, Any]:
    """The share of prompts of these families that the classifier leaves to the base."""
    rows = [row for family in families for row in sample_rows(family, asked, seed=3, split="test")]
    return accuracy([float(not by_classifier(trained, row)) for row in rows]).model_dump()


def by_classifier(trained: Trained, row: dict[str, Any]) -> list[ExpertReference]:
    request = GenerationRequest.model_construct(
        messages=row["messages"], prompt=None, candidates=trained.candidates, router="classifier"
    )
    return choose_by_classifier(trained.adapted, request, trained.classifier, trained.held)[0]


def strategies(
    base: BaseModel, shipped_base: BaseModel, trained: Trained, families: list[str], asked: int
) -> dict[str, dict[str, Any]]:
    """The share of prompts for which each strategy chooses the right expert, and its time over that of the answer.

    The classifier's is over the time of an answer of the shipped base, which it belongs to.
    """
    centroids = [expert(base, family, seed=1) for family in families]
    references = trained.candidates
    endless, own_endless = (replace(one, stop_ids=frozenset()) for one in (base, shipped_base))
    right: dict[str, list[bool]] = {"centroid": [], "prompt": [], "classifier": []}
    seconds: dict[str, list[float]] = {"centroid": [], "prompt": [], "classifier": [], "answer": [], "own answer": []}
    priors: Priors = {}
    for own, family in enumerate(families):
        for row in sample_rows(family, asked, seed=3, split="test"):
            ids = render_prompt(base, row["messages"])
            request = GenerationRequest.model_construct(
                messages=row["messages"], prompt=None, candidates=references, router="prompt"
            )
            with timed(seconds["centroid"]):
                by_centroid = route(prompt_embeddings(base, [ids])[0], centroids).index
            with timed(seconds["prompt"]):
                by_prompt, _reason = choose_by_prompt(base, request, priors)
            with timed(seconds["answer"]):
                generate(endless, [ids], max_new_tokens=ANSWER_TOKENS, temperature=0.0, seeds=[0])
            with timed(seconds["classifier"]):
                classified = by_classifier(trained, row)
            own_ids = render_prompt(shipped_base, row["messages"])
            with timed(seconds["own answer"]):
                generate(own_endless, [own_ids], max_new_tokens=ANSWER_TOKENS, temperature=0.0, seeds=[0])
            right["centroid"].append(by_centroid == own)
            right["prompt"].append(by_prompt == [references[own]])
            right["classifier"].append(classified == [references[own]])
    answers = {"centroid": "answer", "prompt": "answer", "classifier": "own answer"}
    return {
        name: accuracy([float(outcome) for outcome in outcomes]).model_dump()
        | {"time": statistics.median(a / b for a, b in zip(seconds[name], seconds[answers[name]], strict=True))}
        for name, outcomes in right.items()
    }


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


def share(outcomes: Iterable[bool]) -> float:
    return statistics.fmean(outcomes)


def expert(base: BaseModel, family: str, *, seed: int) -> Centroid:
    training = embeddings(base, family, "train", 200, seed=seed)
    return make_centroid(training, embeddings(base, family, "validation", 50, seed=seed))


def embeddings(base: BaseModel, family: str, split: Split, count: int, *, seed: int) -> Tensor:
    rows = sample_rows(family, count, seed=seed, split=split)
    return prompt_embeddings(base, [render_prompt(base, row["messages"]) for row in rows])


def report(
    rows: list[dict[str, Any]], chosen: dict[str, dict[str, Any]], abstained: dict[str, dict[str, Any]], chooser: str
) -> None:
    table = Table("family", "false, before", "false, after", "own, before", "own, after")
    for row in rows:
        table.add_row(row["family"], *(f"{100 * row[k]:.0f} %" for k in ("before", "after", "own_before", "own_after")))
    Console().print(table)
    choices = Table("strategy", f"right choices on {chooser} [95 %]", "time ÷ answer")
    for name, row in chosen.items():
        interval = f"{100 * row['mean']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}], n = {row['n']}"
        choices.add_row(name, interval, f"{row['time']:.2f}")
    Console().print(choices)
    for what, row in abstained.items():
        print(
            f"classifier abstained, {what}: {100 * row['mean']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        )
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name != "family"}
    bars = {
        "share of a family's prompts that another expert answers, at the worst": (
            max(row["after"] for row in rows),
            MAX_FALSE,
        ),
        "time of centroid over the answer's": (chosen["centroid"]["time"], MAX_CENTROID_TIME),
        "time of prompt over the answer's": (chosen["prompt"]["time"], MAX_PROMPT_TIME),
        "time of classifier over the answer's": (chosen["classifier"]["time"], MAX_CLASSIFIER_TIME),
        "share of prompts for which classifier is wrong": (1 - chosen["classifier"]["mean"], MAX_CLASSIFIER_ERRORS),
        "share of own prompts lost by it": (means["own_before"] - means["own_after"], MAX_LOST),
    }
    for what, (value, bar) in bars.items():
        print(f"{what}: {value:.3f} (bar {bar:g})")
    written = {
        "name": "routing",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "results": {
            "families": rows,
            "means": means,
            "strategies": chosen,
            "abstained": abstained,
            "chooser": chooser,
        },
        "bars": {what: {"value": value, "bar": bar, "better": "lower"} for what, (value, bar) in bars.items()},
    }
    (Path(__file__).parent / "results" / "routing.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
