"""Whether the rows of a dataset fit the recipe that trains on them."""

from zhub.datasets.validated import distinct_rows
from zhub.errors import InvalidRequestError
from zhub.models import DatasetVersion
from zhub.recipes import MIN_PROMPTS, Recipe
from zhub.training.methods import GRADED


def check_rows(version: DatasetVersion, recipe: Recipe, param: str) -> None:
    """Refuse a validated file whose rows the recipe cannot train on; ``param`` is the field that names it.

    Rows must end where the recipe begins: with the user for reinforcement and few_shot, with the assistant for
    supervised. Those of dpo must be pairs.

    Raises:
        InvalidRequestError: with the first line at fault.
    """
    validation = version.validation
    assert validation is not None
    if param == "training_file" and validation["prompts"] < MIN_PROMPTS:
        raise InvalidRequestError(
            f"{param}: '{version.filename}' has {validation['prompts']} distinct prompts; "
            f"at least {MIN_PROMPTS} are needed to train, select and test.",
            param=param,
            code="dataset_too_small",
        )
    if recipe == "dpo" and validation.get("preferences", 0) < distinct_rows(version):
        raise InvalidRequestError(
            f"{param}: every row must be a pair, with 'input', 'preferred_output' and 'non_preferred_output'; "
            f"line {validation.get('first_line_without_preference', 1)} is none.",
            param=param,
            code="wrong_schema",
        )
    if recipe == "supervised" and validation["rows_with_target"] < distinct_rows(version):
        raise InvalidRequestError(
            f"{param}: supervised training needs an assistant's message at the end of every row; "
            f"line {validation['first_line_without_target']} has none.",
            param=param,
            code="wrong_schema",
        )
    if recipe in GRADED and validation["rows_with_target"]:
        raise InvalidRequestError(
            f"{param}: for {recipe} every row must end with the user's message, so that the model answers; "
            f"line {validation['first_line_with_target']} ends with the assistant's. Put the expected answer in a "
            "column.",
            param=param,
            code="wrong_schema",
        )
