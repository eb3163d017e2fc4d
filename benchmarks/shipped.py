"""The shipped base and jobs on it, for the benchmarks that train."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zhub.recipes import Recipe
from zhub.specs import BaseModelSource, BasisReference, StoredFile, TrainSpec
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub_workers.compute.group import Member
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.training.state import TrainState
from zhub_workers.training.train import TrainResult, train
from zhub_workers.training.warm_start import Start

DIRECTORY = Path(__file__).parents[1] / "workers" / "zhub_workers" / "shipped_base"
NAME = "zhub-tiny"
GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
NOWHERE = BasisReference(weights_fingerprint="", basis_fingerprint="", key_prefix="")


def load(directory: Path) -> AdaptedModel:
    """The base on a basis that is made in ``directory``."""
    base = load_base_model(DIRECTORY)
    return AdaptedModel(base, load_basis(directory, decompose_base(base, directory)))


def spec_of(
    asked: Mapping[str, Any],
    *,
    rows: int,
    seed: int = 1,
    recipe: Recipe = "reinforcement",
    base: BaseModelSource | None = None,
    basis: BasisReference = NOWHERE,
    grader: Mapping[str, Any] | None = GRADER,
) -> TrainSpec:
    """A job with these hyper-parameters on so many rows; its base and basis lie nowhere unless they are given."""
    return TrainSpec.model_validate(
        {
            "expert": "bench",
            "base": base or BaseModelSource(name=NAME),
            "basis": basis,
            "training_file": StoredFile(name="rows", key="", sha256="", size_bytes=0),
            "validation_file": None,
            "recipe": recipe,
            "hyperparameters": resolve_hyperparameters(recipe, asked, train_rows=rows),
            "grader": grader,
            "seed": seed,
        }
    )


def run(
    spec: TrainSpec,
    member: Member,
    path: Path,
    *,
    on_event: Callable[[str, str, dict[str, Any] | None], None] = lambda _level, _message, _data: None,
    on_checkpoint: Callable[[TrainState, Mapping[str, float]], None] = lambda _state, _metrics: None,
    starts: Sequence[Start] = (),
) -> TrainResult:
    """Train on the rows at ``path``, without queue or store."""
    return train(
        spec,
        member=member,
        grading=Grading(spec.grader),
        training_path=path,
        validation_path=None,
        on_event=on_event,
        on_checkpoint=on_checkpoint,
        starts=starts,
    )
