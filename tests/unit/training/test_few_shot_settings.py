"""Hyper-parameters of the few-shot search: the paper's by default, or a refusal by name."""

from typing import Any

import pytest

from zhub.errors import InvalidRequestError
from zhub.recipes import FewShotHyperparameters
from zhub.specs import BaseModelSource, BasisReference, StoredFile, TrainSpec
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub.training.packing import MAX_PACKED_ROWS, shares_a_worker


def resolve(**asked: Any) -> FewShotHyperparameters:
    resolved = resolve_hyperparameters("few_shot", asked, train_rows=100)
    assert isinstance(resolved, FewShotHyperparameters)
    return resolved


def test_the_defaults_are_the_papers() -> None:
    """32 mixtures, 50 steps, 10 shots, a fifth of them elites: 6; a deviation of 0.5, weights from 0 to 1."""
    hyper = resolve()
    assert (hyper.population, hyper.n_steps, hyper.shots, hyper.elites) == (32, 50, 10, 6)
    assert (hyper.deviation, hyper.min_weight, hyper.max_weight) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("asked", "at_fault"),
    [
        ({"max_weight": 4.1}, "max_weight"),
        ({"min_weight": -5.0}, "min_weight"),
        ({"min_weight": 0.5, "max_weight": 0.5}, "max_weight"),
        ({"population": 8, "elite_share": 0.1}, "elite_share"),
        ({"shots": 0}, "shots"),
        ({"granularity": "token"}, "granularity"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"n_epochs": 2}, "n_epochs"),
        ({"adapter": "lora"}, "adapter"),
    ],
)
def test_what_a_search_cannot_do_is_refused_by_name(asked: dict[str, Any], at_fault: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        resolve(**asked)
    assert refused.value.param == f"method.few_shot.hyperparameters.{at_fault}"


def test_a_spec_comes_back_from_its_row() -> None:
    file = StoredFile(name="f", key="k", sha256="0", size_bytes=1)
    spec = TrainSpec(
        expert="mixed",
        base=BaseModelSource(name="tiny"),
        basis=BasisReference(weights_fingerprint="w", basis_fingerprint="b", key_prefix="k"),
        training_file=file,
        validation_file=None,
        recipe="few_shot",
        hyperparameters=resolve(granularity="matrix", n_steps=0),
        grader=None,
        seed=1,
    )
    assert TrainSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_small_search_shares_a_worker() -> None:
    assert shares_a_worker(resolve(population=MAX_PACKED_ROWS // 8, shots=8))
    assert not shares_a_worker(resolve(population=MAX_PACKED_ROWS // 8 + 1, shots=8))
