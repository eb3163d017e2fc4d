"""Hyper-parameters as users write them, turned into the numbers that a worker trains with."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from pydantic import BaseModel, ValidationError

from zhub.errors import InvalidRequestError
from zhub.pydantic_errors import refusal
from zhub.recipes import (
    HYPERPARAMETERS,
    LEARNING_RATES,
    STEP_KL,
    SVF_LEARNING_RATE,
    GradientHyperparameters,
    Hyperparameters,
    Recipe,
)
from zhub.suggestions import did_you_mean

# Fields of the OpenAI dialect that resolve into ours instead of being one of ours.
FOREIGN = ("n_epochs", "learning_rate_multiplier")
MAX_FACTOR = 1_000_000  # of n_epochs and learning_rate_multiplier: what they result in has its own limits
DEFAULT_STEPS = 100


def resolve_hyperparameters(recipe: Recipe, asked: Mapping[str, Any], *, train_rows: int) -> Hyperparameters:
    """Turn what a user wrote into numbers; ``"auto"`` and missing ones get their defaults.

    ``n_epochs`` becomes ``n_steps`` (epochs × rows / batch). ``learning_rate_multiplier`` makes steps so many times as
    long: it scales the default rate, and by its square the divergence that a step may cause.

    Raises:
        InvalidRequestError: unknown names (each with the nearest known one) and values out of range. The message has
            all of them, ``param`` is the first.
    """
    model = HYPERPARAMETERS[recipe]
    where = f"method.{recipe}.hyperparameters"
    by_gradient = issubclass(model, GradientHyperparameters)
    known = [*model.model_fields, *(FOREIGN if by_gradient else ())]
    refusals = [_unknown(name, known, recipe, where) for name in asked if name not in known]
    given = {name: value for name, value in asked.items() if name in known and value is not None and value != "auto"}
    if by_gradient:
        refusals += _resolve_lengths(given, where, _default_batch_size(model), train_rows)
    try:
        resolved = model.model_validate(given)
    except ValidationError as exc:
        refusals += [_refusal(error, where, asked) for error in exc.errors()]
    if refusals:
        raise InvalidRequestError(" ".join(map(str, refusals)), param=refusals[0].param, code=refusals[0].code)
    return resolved  # type: ignore[return-value]


def _resolve_lengths(
    given: dict[str, Any], where: str, default_batch_size: int, train_rows: int
) -> list[InvalidRequestError]:
    """Turn what says how many steps there are and how long they are into ``n_steps``, ``learning_rate``, ``step_kl``.

    ``given`` is changed. Returns what is refused.
    """
    refusals: list[InvalidRequestError] = []
    multiplier = given.pop("learning_rate_multiplier", 1.0)
    epochs = given.pop("n_epochs", None)
    for name, factor in (("learning_rate_multiplier", multiplier), ("n_epochs", 1.0 if epochs is None else epochs)):
        if not _is_factor(factor):
            what = f"'{name}' must be a number above 0 and at most {MAX_FACTOR:,}, got {factor!r}."
            refusals.append(InvalidRequestError(what, param=f"{where}.{name}"))
    if multiplier != 1.0 and "learning_rate" in given:
        what = "Give learning_rate or learning_rate_multiplier, not both."
        refusals.append(InvalidRequestError(what, param=f"{where}.learning_rate_multiplier"))
    if multiplier != 1.0 and "step_kl" in given:
        what = "Give step_kl or learning_rate_multiplier, not both: both say how long steps are."
        refusals.append(InvalidRequestError(what, param=f"{where}.learning_rate_multiplier"))
    if epochs is not None and "n_steps" in given:
        refusals.append(InvalidRequestError("Give n_steps or n_epochs, not both.", param=f"{where}.n_epochs"))
    if _is_factor(multiplier):
        rate = _default_rate(given.get("adapter"))
        given.setdefault("learning_rate", min(1.0, multiplier * rate))
        if multiplier != 1.0:
            given.setdefault("step_kl", max(multiplier**2 * STEP_KL, sys.float_info.min))  # 0 would be no bound
    given.setdefault("n_steps", _steps(epochs, given.get("batch_size", default_batch_size), train_rows))
    return refusals


def _unknown(name: str, known: Sequence[str], recipe: Recipe, where: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Unknown hyperparameter '{name}' for method '{recipe}'.{did_you_mean(name, known)} "
        f"Known: {', '.join(sorted(known))}.",
        param=f"{where}.{name}",
        code="unknown_hyperparameter",
    )


def _refusal(error: Mapping[str, Any], where: str, asked: Mapping[str, Any]) -> InvalidRequestError:
    refused = refusal([error], within=where)
    # What is out of range may have come from a field of the other dialect: then that one is at fault.
    for field, foreign in (
        ("n_steps", "n_epochs"),
        ("learning_rate", "learning_rate_multiplier"),
        ("step_kl", "learning_rate_multiplier"),
    ):
        if refused.param == f"{where}.{field}" and field not in asked:
            refused.param = f"{where}.{foreign}"
    return refused


def _steps(epochs: object, batch_size: object, train_rows: int) -> int:
    """The steps that so many epochs take; the default where a number is not one."""
    if epochs is None or not _is_factor(epochs) or type(batch_size) is not int or batch_size <= 0:
        return DEFAULT_STEPS
    return max(1, math.ceil(epochs * train_rows / batch_size))


def _default_rate(adapter: object) -> float:
    """That of the kind; that of SVF where the word is none of them, which is refused later."""
    return next((rate for kind, rate in LEARNING_RATES.items() if kind == adapter), SVF_LEARNING_RATE)


def _default_batch_size(model: type[BaseModel]) -> int:
    return int(model.model_fields["batch_size"].default)


def _is_factor(value: object) -> TypeGuard[float]:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value <= MAX_FACTOR
