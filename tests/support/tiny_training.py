"""Training jobs on a tiny model that end in a second, and how to run them."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zhub.graders import StringCheckGrader
from zhub.recipes import FewShotHyperparameters, ReinforcementHyperparameters, SupervisedHyperparameters
from zhub.specs import BaseModelSource, BasisReference, StoredFile, TrainSpec
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.training.forgetting import KeptAnswers
from zhub_workers.training.state import TrainState
from zhub_workers.training.train import TrainResult, train
from zhub_workers.training.warm_start import Start

Load = Callable[[str], AdaptedModel]
Events = list[tuple[str, str, dict[str, Any] | None]]
FILE = StoredFile(name="rows.jsonl", key="k", sha256="0" * 64, size_bytes=1)
CONTAINS_E = StringCheckGrader(
    type="string_check", name="has an e", input="{{sample.output_text}}", reference="e", operation="like"
)


def reinforcement(grader: StringCheckGrader = CONTAINS_E, seed: int = 7, **asked: Any) -> TrainSpec:
    settings = {"n_steps": 12, "batch_size": 8, "group_size": 8, "max_new_tokens": 4, "learning_rate": 0.05, **asked}
    hyper = ReinforcementHyperparameters(**{"eval_interval": 4, **settings})
    return TrainSpec(
        expert="e",
        base=BaseModelSource(name="tiny"),
        basis=BasisReference(weights_fingerprint="", basis_fingerprint="", key_prefix=""),
        training_file=FILE,
        validation_file=None,
        recipe="reinforcement",
        hyperparameters=hyper,
        grader=grader,
        seed=seed,
    )


def supervised(**asked: Any) -> TrainSpec:
    settings = {"n_steps": 30, "batch_size": 16, "max_new_tokens": 4, "learning_rate": 0.1, **asked}
    hyper = SupervisedHyperparameters(**settings)
    return reinforcement().model_copy(update={"recipe": "supervised", "hyperparameters": hyper, "grader": None})


def few_shot(seed: int = 7, **asked: Any) -> TrainSpec:
    settings = {
        "n_steps": 6,
        "shots": 6,
        "population": 8,
        "elite_share": 0.25,
        "max_new_tokens": 4,
        "eval_interval": 3,
        **asked,
    }
    hyper = FewShotHyperparameters(**settings)
    return reinforcement(seed=seed).model_copy(update={"recipe": "few_shot", "hyperparameters": hyper})


def write_rows(path: Path, prompts: list[str], answer: str | None = None, **columns: Any) -> Path:
    rows = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        rows.append(json.dumps({"messages": messages, **columns}))
    path.write_text("\n".join(rows) + "\n")
    return path


PROMPTS = [f"say {letter}{number}" for letter in "abcdefgh" for number in range(10)]


def run(
    adapted: AdaptedModel,
    spec: TrainSpec,
    training: Path,
    validation: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    group: ComputeGroup | None = None,
    resumed: TrainState | None = None,
    states: list[TrainState] | None = None,
    kept_answers: KeptAnswers | None = None,
    starts: Sequence[Start] = (),
) -> tuple[TrainResult, Events]:
    events: Events = []
    adapter = make_adapter(adapted, spec.hyperparameters)
    limit = spec.hyperparameters.micro_batch_tokens
    with (group or ComputeGroup()).join(adapter, should_stop, token_limit=limit) as member:
        result = train(
            spec,
            member=member,
            grading=Grading(spec.grader),
            training_path=training,
            validation_path=validation,
            on_event=lambda level, message, data: events.append((level, message, data)),
            on_checkpoint=lambda state, _: states.append(copy.deepcopy(state)) if states is not None else None,
            starts=starts,
            resumed=resumed,
            kept_answers=kept_answers,
        )
    return result, events
