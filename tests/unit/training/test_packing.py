"""Which training jobs may share a worker."""

from typing import Any

import pytest

from zhub.recipes import Recipe
from zhub.specs import BaseModelSource, BasisReference, StoredFile, TrainSpec
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub.training.packing import MAX_PACKED_ROWS, pack_key


def spec(recipe: Recipe = "reinforcement", basis: str = "b", template: str = "t", **asked: Any) -> TrainSpec:
    file = StoredFile(name="chat_template.jinja", key="k", sha256=64 * template, size_bytes=1)
    return TrainSpec(
        expert="e",
        base=BaseModelSource(name="tiny", files=[file]),
        basis=BasisReference(weights_fingerprint="w", basis_fingerprint=basis, key_prefix="k"),
        training_file=StoredFile(name="rows", key="k", sha256="0" * 64, size_bytes=1),
        validation_file=None,
        recipe=recipe,
        hyperparameters=resolve_hyperparameters(recipe, asked, train_rows=100),
        grader=None,
        seed=1,
    )


def test_small_jobs_on_one_basis_may_share_whatever_their_recipe() -> None:
    keys = {pack_key(spec()), pack_key(spec("supervised")), pack_key(spec("dpo", targets="mlp"))}
    assert len(keys) == 1 and None not in keys


def test_jobs_on_different_bases_may_not_share() -> None:
    assert pack_key(spec()) != pack_key(spec(basis="another"))


def test_jobs_on_one_basis_whose_models_have_other_files_may_not_share() -> None:
    assert pack_key(spec()) != pack_key(spec(template="u"))


def test_a_lora_shares_with_none() -> None:
    assert pack_key(spec(adapter="lora")) is None


@pytest.mark.parametrize(
    ("recipe", "largest"),
    [
        ("reinforcement", {"batch_size": MAX_PACKED_ROWS // 4, "group_size": 4}),
        ("supervised", {"batch_size": MAX_PACKED_ROWS}),
        ("dpo", {"batch_size": MAX_PACKED_ROWS // 2}),
    ],
)
def test_a_job_with_more_answers_a_step_than_gain_by_it_shares_with_none(recipe: Recipe, largest: Any) -> None:
    larger = largest | {"batch_size": largest["batch_size"] + 1}
    assert pack_key(spec(recipe, **largest)) is not None
    assert pack_key(spec(recipe, **larger)) is None
