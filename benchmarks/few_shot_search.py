"""Few-shot search with all mixtures of a population in one batch, against one mixture after the other.

A step of the paper's search: 32 mixtures answer 10 shots. It takes 50 such steps, which cost the same, so one is
measured. Two rivals recompose the base's weights for each mixture, by this project's own recomposition: one answers its
ten shots in a batch then, the other one shot after the other, without any batch. Both are measured on ``--mixtures`` of
the 32. On the shipped base whole searches are made both ways with the same seeds, and must find the same weights.
Everything is the time of one processor, the forms in turn; experts are random multipliers, the shots of a family that
the shipped base was made for.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lanes
import shipped
import torch
import transformers
from rich.console import Console

from zhub.demo.task_families import sample_rows
from zhub.manifest import Mixture, canonical_json
from zhub.recipes import FewShotHyperparameters
from zhub_workers.compute.group import ComputeGroup, Member
from zhub_workers.compute.requests import Each, Generate
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import SvfAdapter, make_adapter
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.mixing import Mixer
from zhub_workers.model.rollout import Completion
from zhub_workers.training import cem
from zhub_workers.training.few_shot import FewShotSearch
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.train import base_state, read_rows
from zhub_workers.training.warm_start import Start

EXPERTS = 3
ROWS = 60
PAPER = FewShotHyperparameters()
BARS = {
    "one batch over one mixture after another": (5.0, "higher"),
    "one batch over one answer after another": (5.0, "higher"),
    "share of answers that are the same": (1.0, "higher"),
    "share of searches that find the same": (1.0, "higher"),
}
# Graded, and without bounds that many weights lie on: rewards never become all alike, which would end a search.
SIMILAR = {
    "type": "text_similarity",
    "name": "like the answer",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}
WIDE = {"min_weight": -4.0, "max_weight": 4.0, "deviation": 1.0, "granularity": "layer"}


class OneByOne:
    """A member that answers each mixture's shots by itself, with weights made for it."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def run(self, request: Any) -> Any:
        if isinstance(request, Each) and isinstance(request.requests[0], Generate):
            return [self._member.run(one) for one in request.requests]
        return self._member.run(request)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixtures", type=int, default=4, help="that the rivals are measured on")
    parser.add_argument("--searches", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="of a whole search; 50 are the paper's")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--model", type=Path, help="a real base, as save_pretrained() writes it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for index, (name, directory) in enumerate(lanes.bases(root, arguments.model).items()):
            adapted = lanes.with_basis(lanes.load(directory), root / f"basis-{index}")
            # Of a real base a step takes minutes.
            rounds = 1 if directory == arguments.model else arguments.rounds
            results[name] = one_step(adapted, arguments, rounds)
            if name == shipped.NAME:
                results[name] |= searches(adapted, root, arguments)
            Console().print(name, results[name])
    title = f"A step of a few-shot search, one processor: {PAPER.population} mixtures answer {PAPER.shots} shots"
    lanes.report(title, results, BARS, Path(__file__).parent / "results" / "few_shot_search.json")


def one_step(adapted: AdaptedModel, arguments: argparse.Namespace, rounds: int) -> dict[str, float]:
    prompts = [render_prompt(adapted.base, row["messages"]) for row in sample_rows("sorting", PAPER.shots, seed=1)]
    mixer = Mixer([lanes.random_z(adapted, seed) for seed in range(EXPERTS)], PAPER.granularity, "cpu")
    over_mixtures, over_answers, seconds, same = [], [], [], []
    adapter = SvfAdapter(adapted, list(adapted.layers), sigmoid=False)
    with ComputeGroup().join(adapter, lambda: False) as member:
        for seed in range(rounds):
            drawn = cem.draw(
                torch.full(mixer.shape, 1 / EXPERTS, dtype=torch.float64),
                torch.full(mixer.shape, PAPER.deviation, dtype=torch.float64),
                PAPER.population,
                torch.Generator().manual_seed(seed),
                low=PAPER.min_weight,
                high=PAPER.max_weight,
            )
            asked = [Generate(mixer.values(weights), prompts, arguments.max_new_tokens) for weights in drawn]
            measured = asked[: arguments.mixtures]
            scale = len(asked) / len(measured)
            together, batch_s = timed(lambda: member.run(Each(asked)))  # noqa: B023  # called at once
            alone, mixtures_s = timed(lambda: [member.run(one) for one in measured])  # noqa: B023
            _, answers_s = timed(lambda: [answered_singly(member, one) for one in measured])  # noqa: B023
            over_mixtures.append(scale * mixtures_s / batch_s)
            over_answers.append(scale * answers_s / batch_s)
            seconds.append(batch_s)
            pairs = zip(together, alone, strict=False)
            same += [a.token_ids == b.token_ids for one, other in pairs for a, b in zip(one, other, strict=True)]
    return {
        "one batch over one mixture after another": statistics.median(over_mixtures),
        "one batch over one answer after another": statistics.median(over_answers),
        "share of answers that are the same": sum(same) / len(same),
        "seconds of a step": statistics.median(seconds),
    }


def answered_singly(member: Member, asked: Generate) -> list[list[Completion]]:
    """Each shot by itself; the weights are made once."""
    with member.adapter.merged(asked.values or {}):
        return [member.run(Generate(None, [prompt], asked.max_new_tokens)) for prompt in asked.prompts]


def searches(adapted: AdaptedModel, root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Whole searches, both ways."""
    path = root / "rows.jsonl"
    path.write_bytes(b"\n".join(canonical_json(row) for row in sample_rows("sorting", ROWS, seed=1)))
    starts = [Start(f"e{seed}", str(seed), lanes.random_z(adapted, seed), None) for seed in range(EXPERTS)]
    same = []
    for seed in range(arguments.searches):
        asked = {"n_steps": arguments.steps, "max_new_tokens": arguments.max_new_tokens, "eval_samples": 2, **WIDE}
        spec = shipped.spec_of(asked, rows=ROWS, seed=seed, recipe="few_shot", grader=SIMILAR)
        found: list[Mixture] = []
        with ComputeGroup().join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
            members: Sequence[Any] = (member, OneByOne(member))
            for searcher in members:
                found.append(searched(TrainingJob(spec, searcher, Grading(spec.grader), lambda *_: None), path, starts))
        same.append(found[0] == found[1])
    return {"share of searches that find the same": sum(same) / len(same)}


def searched(job: TrainingJob, path: Path, starts: Sequence[Start]) -> Mixture:
    """The best mixture on the shots."""
    rows = read_rows(job, path, None)
    state = base_state(job, job.score(None, rows["validation"]))
    search = FewShotSearch(job, state, lambda *_: None, starts, rows)
    search.run()
    state.search["best"] = state.search["leader"]
    return search.mixture()


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return run(), time.process_time() - began


if __name__ == "__main__":
    main()
