"""Hyper-parameters: from what users write to complete numbers, or a refusal by name."""

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from zhub.errors import InvalidRequestError
from zhub.recipes import (
    HYPERPARAMETERS,
    LEARNING_RATES,
    AdapterKind,
    FewShotHyperparameters,
    GradientHyperparameters,
    Recipe,
    ReinforcementHyperparameters,
    SupervisedHyperparameters,
)
from zhub.specs import JobSpec, TrainSpec
from zhub.training.hyperparameters import DEFAULT_STEPS, resolve_hyperparameters

RECIPES: list[Recipe] = ["reinforcement", "supervised", "dpo"]


def resolve(asked: dict[str, Any], recipe: Recipe = "supervised", train_rows: int = 100) -> GradientHyperparameters:
    resolved = resolve_hyperparameters(recipe, asked, train_rows=train_rows)
    assert not isinstance(resolved, FewShotHyperparameters)
    return resolved


def refusal(asked: dict[str, Any], recipe: Recipe = "supervised", train_rows: int = 100) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refused:
        resolve(asked, recipe, train_rows)
    return refused.value


def param(name: str, recipe: Recipe = "supervised") -> str:
    return f"method.{recipe}.hyperparameters.{name}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_asked_gives_the_defaults(recipe: Recipe) -> None:
    assert resolve({}, recipe) == HYPERPARAMETERS[recipe](n_steps=DEFAULT_STEPS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_auto_and_null_give_the_defaults(recipe: Recipe) -> None:
    names = [*HYPERPARAMETERS[recipe].model_fields, "n_epochs", "learning_rate_multiplier"]
    for value in ("auto", None):
        assert resolve(dict.fromkeys(names, value), recipe) == resolve({}, recipe)


def test_what_is_asked_is_taken() -> None:
    asked = {"batch_size": 4, "n_steps": 7, "learning_rate": 0.5, "eval_interval": 2, "eval_samples": 3}
    resolved = resolve(asked)
    assert {name: getattr(resolved, name) for name in asked} == asked


@given(st.integers(1, 20), st.integers(1, 5000), st.integers(1, 512))
def test_epochs_become_as_many_steps_as_see_every_row_that_often(epochs: int, rows: int, batch_size: int) -> None:
    steps = 0
    while steps * batch_size < epochs * rows:  # the slow way
        steps += 1
    if steps > 100_000:
        assert refusal({"n_epochs": epochs, "batch_size": batch_size}, train_rows=rows).param == param("n_epochs")
    else:
        assert resolve({"n_epochs": epochs, "batch_size": batch_size}, train_rows=rows).n_steps == steps


def test_epochs_count_in_batches_of_the_default_size() -> None:
    assert resolve({"n_epochs": 2}, train_rows=64).n_steps == 4


def test_part_of_an_epoch_is_at_least_a_step() -> None:
    assert resolve({"n_epochs": 0.001}, train_rows=10).n_steps == 1


@given(st.floats(0.01, 20))
def test_the_multiplier_makes_steps_so_many_times_as_long(multiplier: float) -> None:
    default, resolved = SupervisedHyperparameters(n_steps=1), resolve({"learning_rate_multiplier": multiplier})
    assert resolved.learning_rate == pytest.approx(min(1.0, default.learning_rate * multiplier))
    assert resolved.step_kl == pytest.approx(default.step_kl * multiplier**2)


def test_no_multiplier_takes_the_bound_away() -> None:
    assert resolve({"learning_rate_multiplier": 1e-200, "learning_rate": None}).step_kl > 0


def test_a_multiplier_beyond_the_bound_is_refused_by_its_name() -> None:
    assert refusal({"learning_rate_multiplier": 30}).param == param("learning_rate_multiplier")


def test_a_misspelt_name_is_refused_with_the_nearest_one() -> None:
    error = refusal({"lerning_rate": 1})
    assert (error.param, error.code) == (param("lerning_rate"), "unknown_hyperparameter")
    assert "Did you mean 'learning_rate'?" in str(error)


def test_a_name_unlike_any_other_is_refused_with_all_of_them() -> None:
    message = str(refusal({"zzz": 1}))
    assert "Did you mean" not in message and "n_epochs" in message and "batch_size" in message


def test_a_name_of_the_other_recipe_is_not_known() -> None:
    assert refusal({"kl_coef": 0.1}, "supervised").code == "unknown_hyperparameter"


@pytest.mark.parametrize(
    "both",
    [
        {"n_steps": 1, "n_epochs": 1},
        {"learning_rate": 0.1, "learning_rate_multiplier": 2},
        {"step_kl": 0.1, "learning_rate_multiplier": 2},
    ],
)
def test_two_names_for_one_thing_are_refused(both: dict[str, Any]) -> None:
    assert "not both" in str(refusal(both))


@pytest.mark.parametrize(
    "asked",
    [
        {"batch_size": 0, "n_steps": 0},
        {"lerning_rate": 1, "bach_size": 2},
        {"zzz": 1, "batch_size": True},
        {"n_epochs": 0, "learning_rate_multiplier": -1},
        {"n_epochs": 0, "batch_size": "8", "eval_interval": 0},
    ],
)
def test_everything_that_is_wrong_is_named_at_once(asked: dict[str, Any]) -> None:
    error = refusal(asked)
    assert all(name in str(error) for name in asked)
    assert error.param in {param(name) for name in asked}


NUMBERS = ["batch_size", "n_steps", "n_epochs", "learning_rate", "learning_rate_multiplier", "eval_interval"]
NOT_NUMBERS = [True, False, "8", "", [], {}, [8], math.nan, math.inf, -math.inf, 0, -1, 10**400, 1e308, 1 << 70]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda v: str(v)[:12] or "''")
def test_a_value_that_is_no_usable_number_is_refused_by_its_name(name: str, value: Any) -> None:
    assert refusal({name: value}).param == param(name)


@pytest.mark.parametrize("value", [True, "8", math.nan, 0, -8])
def test_a_bad_batch_size_is_refused_and_not_epochs_forgotten(value: Any) -> None:
    assert refusal({"n_epochs": 3, "batch_size": value}).param == param("batch_size")


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("batch_size", 1, 4096),
        ("n_steps", 1, 100_000),
        ("eval_samples", 1, 10_000),
        ("max_new_tokens", 1, 8192),
        ("group_size", 2, 256),
        ("updates_per_rollout", 1, 16),
        ("patience", 0, 1000),
    ],
)
def test_a_range_includes_its_ends_and_nothing_beyond(name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(resolve({name: value}, "reinforcement"), name) == value
    for value in (least - 1, most + 1):
        assert refusal({name: value}, "reinforcement").param == param(name, "reinforcement")


@pytest.mark.parametrize(
    ("asked", "at_fault"),
    [
        ({"algorithm": "rloo", "group_size": 1}, "group_size"),
        ({"adapter": "lora", "sparsity": 0.5}, "sparsity"),
        ({"adapter": "lora", "parameterisation": "sigmoid"}, "parameterisation"),
        ({"adapter": "frames", "sparsity": 0.5}, "sparsity"),
        ({"adapter": "core", "warm_start": "nearest"}, "warm_start"),
        ({"subspace_rank": 4}, "subspace_rank"),
        ({"adapter": "frames", "subspace_rank": 1}, "subspace_rank"),
        ({"adapter": "frames", "core_parameters": 8}, "core_parameters"),
        ({"adapter": "core", "core_parameters": 4096, "subspace_rank": 64}, "core_parameters"),
        ({"adapter": "core", "core_shared": True}, "core_shared"),
        ({"sparsity": 0.5, "parameterisation": "sigmoid"}, "sparsity"),
        ({"layers": [3, 1]}, "layers"),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_name(asked: dict[str, Any], at_fault: str) -> None:
    assert refusal(asked, "reinforcement").param == param(at_fault, "reinforcement")


def test_the_papers_algorithm_needs_no_second_sample() -> None:
    assert resolve({"algorithm": "reinforce", "group_size": 1}, "reinforcement").model_dump()["group_size"] == 1


@pytest.mark.parametrize("kind", LEARNING_RATES)
def test_a_kind_has_the_default_rate_of_the_table(kind: AdapterKind) -> None:
    assert resolve({"adapter": kind}).learning_rate == LEARNING_RATES[kind]
    halved = resolve({"adapter": kind, "learning_rate_multiplier": 0.5})
    assert halved.learning_rate == LEARNING_RATES[kind] / 2


def test_the_table_of_rates_has_every_kind() -> None:
    assert set(LEARNING_RATES) == set(get_args(AdapterKind))


def test_a_whole_number_may_stand_for_a_real_one() -> None:
    assert resolve({"temperature": 1, "kl_coef": 0}, "reinforcement").model_dump()["kl_coef"] == 0.0


def test_a_real_number_may_not_stand_for_a_whole_one() -> None:
    assert refusal({"batch_size": 2.5}).param == param("batch_size")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("auto")
names = st.sampled_from([*ReinforcementHyperparameters.model_fields, "n_epochs", "learning_rate_multiplier", "x"])


@given(st.dictionaries(names, scalars), st.integers(1, 10**6))
def test_anything_is_either_resolved_or_refused_by_the_name_of_what_was_asked(asked: dict[str, Any], rows: int) -> None:
    try:
        resolved = resolve(asked, "reinforcement", rows)
    except InvalidRequestError as exc:
        assert exc.param in {param(name, "reinforcement") for name in asked}
    else:
        numbers = [value for value in resolved.model_dump().values() if isinstance(value, int | float)]
        assert all(math.isfinite(value) for value in numbers)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_spec_comes_back_from_its_row(recipe: Recipe) -> None:
    hyperparameters = resolve({}, recipe)
    spec = TrainSpec.model_validate(
        {
            "expert": "summer",
            "base": {"name": "tiny"},
            "basis": {"weights_fingerprint": "w", "basis_fingerprint": "b", "key_prefix": "k"},
            "training_file": {"name": "f", "key": "k", "sha256": "0", "size_bytes": 1},
            "validation_file": None,
            "recipe": recipe,
            "hyperparameters": hyperparameters.model_dump(),
            "grader": None,
            "seed": 1,
        }
    )
    read: JobSpec = TypeAdapter[Any](JobSpec).validate_python(spec.model_dump(mode="json"))
    assert read == spec
