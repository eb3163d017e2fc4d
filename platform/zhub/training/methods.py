"""The ``method`` of a request for fine-tuning: recipe, hyper-parameters and grader, as they were written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zhub.errors import InvalidRequestError
from zhub.recipes import RECIPES, Recipe

GRADER_PARAM = "method.reinforcement.grader"


@dataclass(frozen=True)
class Method:
    """How to train. ``grader`` is None where the recipe is not ``reinforcement``."""

    recipe: Recipe
    hyperparameters: Mapping[str, Any]
    grader: Any


def read_method(method: Mapping[str, Any] | None, hyperparameters: Mapping[str, Any] | None) -> Method:
    """The method of a request; ``hyperparameters`` are those at the top level, where a request has no ``method``.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
    """
    if method is not None and hyperparameters:
        raise InvalidRequestError(
            "Give hyperparameters inside 'method', not at the top level as well.", param="hyperparameters"
        )
    if method is None:
        method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters or {}}}
    recipe = method.get("type")
    if recipe not in RECIPES:
        raise InvalidRequestError(
            f"method.type must be one of {', '.join(RECIPES)}; got {recipe!r}.", param="method.type"
        )
    unknown = set(method) - {"type", recipe}
    body = method.get(recipe) or {}
    allowed = {"hyperparameters", "grader"} if recipe == "reinforcement" else {"hyperparameters"}
    if not isinstance(body, dict):
        raise InvalidRequestError(f"method.{recipe} must be an object.", param=f"method.{recipe}")
    unknown |= set(body) - allowed
    if unknown:
        raise InvalidRequestError(
            f"Unknown fields in method: {', '.join(sorted(unknown))}. "
            f"Known: type, {recipe} with {', '.join(sorted(allowed))}.",
            param=f"method.{min(unknown)}",
        )
    written = body.get("hyperparameters") or {}
    if not isinstance(written, dict):
        raise InvalidRequestError("hyperparameters must be an object.", param=f"method.{recipe}.hyperparameters")
    grader = body.get("grader")
    if recipe == "reinforcement" and grader is None:
        raise InvalidRequestError(
            "Reinforcement needs a grader: the function that turns an answer into a reward.", param=GRADER_PARAM
        )
    return Method(recipe, written, grader)
