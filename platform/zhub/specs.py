"""What a job is asked to do: hyper-parameters as users write them, and the specs that workers get.

A spec is complete: every ``"auto"`` is resolved, every name is a digest or a key. Workers need nothing else.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zhub.errors import InvalidRequestError
from zhub.graders import Grader

Recipe = Literal["reinforcement", "supervised"]


# Strict throughout: "8" and true are not taken for numbers.
class _Hyperparameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 32
    n_steps: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.02
    eval_interval: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 10
    eval_samples: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 200
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=8192)] = 64


class ReinforcementHyperparameters(_Hyperparameters):
    """Group-relative policy gradient.

    ``batch_size`` prompts a step, ``group_size`` samples of each at ``temperature``; ``kl_coef`` weighs
    the KL divergence to the base. ``eval_samples`` validation rows are scored every ``eval_interval`` steps.
    """

    group_size: Annotated[int, Field(strict=True, ge=2, le=256)] = 8
    temperature: Annotated[float, Field(strict=True, gt=0, le=5)] = 1.0
    kl_coef: Annotated[float, Field(strict=True, ge=0, le=10)] = 0.01


class SupervisedHyperparameters(_Hyperparameters):
    """Next-token training on the assistant's last message; ``batch_size`` rows a step."""


HYPERPARAMETERS: dict[Recipe, type[_Hyperparameters]] = {
    "reinforcement": ReinforcementHyperparameters,
    "supervised": SupervisedHyperparameters,
}

# Fields of the OpenAI dialect that resolve into ours instead of being one of ours.
FOREIGN = ("n_epochs", "learning_rate_multiplier")
MAX_FACTOR = 1_000_000  # of n_epochs and learning_rate_multiplier: what they result in has its own limits
DEFAULT_STEPS: dict[Recipe, int] = {"reinforcement": 40, "supervised": 100}


def resolve_hyperparameters(
    recipe: Recipe, asked: Mapping[str, Any], *, train_rows: int
) -> ReinforcementHyperparameters | SupervisedHyperparameters:
    """Turn what a user wrote into numbers; ``"auto"`` and missing ones get their defaults.

    ``n_epochs`` becomes ``n_steps`` (epochs × rows / batch), ``learning_rate_multiplier`` scales the default rate.

    Raises:
        InvalidRequestError: an unknown name (with the nearest known one) or a value out of range, by its ``param``.
    """
    model = HYPERPARAMETERS[recipe]
    where = f"method.{recipe}.hyperparameters"
    known = [*model.model_fields, *FOREIGN]
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise InvalidRequestError(
                f"Unknown hyperparameter '{name}' for method '{recipe}'.{hint} Known: {', '.join(sorted(known))}.",
                param=f"{where}.{name}",
                code="unknown_hyperparameter",
            )
    given = {name: value for name, value in asked.items() if value is not None and value != "auto"}
    multiplier = _number(given.pop("learning_rate_multiplier", 1.0), f"{where}.learning_rate_multiplier")
    epochs = given.pop("n_epochs", None)
    if multiplier != 1.0:
        if "learning_rate" in given:
            raise InvalidRequestError(
                "Give learning_rate or learning_rate_multiplier, not both.", param=f"{where}.learning_rate_multiplier"
            )
        given["learning_rate"] = multiplier * model.model_fields["learning_rate"].default
    if "n_steps" not in given:
        batch_size = given.get("batch_size", model.model_fields["batch_size"].default)
        given["n_steps"] = DEFAULT_STEPS[recipe]
        if epochs is not None and type(batch_size) is int and batch_size > 0:
            given["n_steps"] = max(1, math.ceil(_number(epochs, f"{where}.n_epochs") * train_rows / batch_size))
    elif epochs is not None:
        raise InvalidRequestError("Give n_steps or n_epochs, not both.", param=f"{where}.n_epochs")
    try:
        return model.model_validate(given)  # type: ignore[return-value]
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = str(problem["loc"][0])
        # What is out of range may have come from a field of the other dialect: then that one is at fault.
        field = name if name in asked else {"n_steps": "n_epochs", "learning_rate": "learning_rate_multiplier"}[name]
        raise InvalidRequestError(
            f"Hyperparameter '{name}': {problem['msg']} (got {given.get(name)!r}).", param=f"{where}.{field}"
        ) from exc


def _number(value: object, param: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_FACTOR:
        name = param.rpartition(".")[2]
        raise InvalidRequestError(
            f"'{name}' must be a number above 0 and at most {MAX_FACTOR:,}, got {value!r}.", param=param
        )
    return float(value)


class StoredFile(BaseModel):
    """A file in the object store: fetched by ``key``, refused unless its bytes have ``sha256``."""

    model_config = ConfigDict(frozen=True)
    name: str
    key: str
    sha256: str
    size_bytes: int


class BaseModelSource(BaseModel):
    """Where a base model's files come from: the object store, or the Hugging Face hub at a pinned revision."""

    model_config = ConfigDict(frozen=True)
    name: str
    files: list[StoredFile] = []
    hub_id: str | None = None
    hub_revision: str | None = None


class BasisReference(BaseModel):
    """A decomposed base: fingerprints of weights and basis, and the prefix that holds the factors."""

    model_config = ConfigDict(frozen=True)
    weights_fingerprint: str
    basis_fingerprint: str
    key_prefix: str


class ValidateSpec(BaseModel):
    """Check a dataset file's rows."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["validate"] = "validate"
    file: StoredFile


class DecomposeSpec(BaseModel):
    """Load a base model, refuse what cannot be adapted, and store its basis."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["decompose"] = "decompose"
    base: BaseModelSource


class TrainSpec(BaseModel):
    """Train one expert and measure it."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["train"] = "train"
    expert: str
    base: BaseModelSource
    basis: BasisReference
    training_file: StoredFile
    validation_file: StoredFile | None
    recipe: Recipe
    # In this order: the supervised ones refuse a name of the others, while the others would fill in what is missing.
    hyperparameters: Annotated[
        SupervisedHyperparameters | ReinforcementHyperparameters, Field(union_mode="left_to_right")
    ]
    grader: Grader | None
    seed: int
    parent_digest: str | None = None


JobSpec = Annotated[ValidateSpec | DecomposeSpec | TrainSpec, Field(discriminator="kind")]
