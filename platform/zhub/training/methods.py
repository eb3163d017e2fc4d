"""The ``method`` of a request for fine-tuning: recipe, hyper-parameters and grader, as they were written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zhub.errors import InvalidRequestError
from zhub.recipes import RECIPES, Recipe

GRADED: tuple[Recipe, ...] = ("reinforcement", "few_shot")
"""The recipes that go by rewards: a grader comes with them, and rows end with the user's message."""


@dataclass(frozen=True)
class Method:
    """How to train. ``grader`` is None where the recipe is none of ``GRADED``; ``experts`` are those that it mixes."""

    recipe: Recipe
    hyperparameters: Mapping[str, Any]
    grader: Any
    experts: Sequence[str] = ()

    @property
    def grader_param(self) -> str:
        return f"method.{self.recipe}.grader"


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
    allowed = {"hyperparameters"} | ({"grader"} if recipe in GRADED else set())
    allowed |= {"experts"} if recipe == "few_shot" else set()
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
    if recipe in GRADED and grader is None:
        raise InvalidRequestError(
            f"The method '{recipe}' needs a grader: the function that turns an answer into a reward.",
            param=f"method.{recipe}.grader",
        )
    return Method(recipe, written, grader, _experts(body) if recipe == "few_shot" else ())


def _experts(body: Mapping[str, Any]) -> Sequence[str]:
    experts = body.get("experts")
    if not isinstance(experts, list) or not experts or not all(isinstance(name, str) for name in experts):
        raise InvalidRequestError(
            "The method 'few_shot' mixes experts: give the names of versions, or of a release, as "
            '["main.sorting@prod", "main.reversal@v2"].',
            param="method.few_shot.experts",
        )
    return experts
