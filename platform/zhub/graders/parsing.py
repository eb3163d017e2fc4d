"""Parse a request's JSON into a grader."""

import difflib
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError, WithJsonSchema

from zhub.errors import InvalidRequestError
from zhub.graders.json_schema import check_schema
from zhub.graders.templates import check_syntax
from zhub.graders.types import TYPES, Grader, JsonSchemaGrader, leaves
from zhub.pydantic_errors import Path, refusal

# The type of a grader in a request. Any value passes, so that `parse_grader` refuses all bad ones by its messages.
GraderJson = Annotated[Any, WithJsonSchema({"additionalProperties": True, "type": "object"})]
_GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)


def parse_grader(given: Any, *, param: str) -> Grader:
    """Parse a grader, and check all that can be checked without a dataset and a base model.

    Raises:
        InvalidRequestError: with the path of the field at fault.
    """
    if not isinstance(given, dict):
        raise InvalidRequestError(
            f"A grader is an object with a 'type': {', '.join(TYPES)}.", param=param, code="invalid_grader"
        )
    kind = given.get("type")
    if kind not in TYPES:
        near = difflib.get_close_matches(str(kind), TYPES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise InvalidRequestError(
            f"There is no grader type {repr(kind)[:60]}.{hint} Known: {', '.join(TYPES)}.",
            param=f"{param}.type",
            code="invalid_grader",
        )
    try:
        grader = _GRADER.validate_python(given)
    except ValidationError as exc:
        raise refusal(exc.errors(), within=param, subject="Grader", path=_without_types, code="invalid_grader") from exc
    check_syntax(grader, param=param)
    for part_param, part in leaves(grader, param):
        if isinstance(part, JsonSchemaGrader):
            try:
                check_schema(part.json_schema)
            except ValueError as exc:
                raise InvalidRequestError(
                    f"Grader '{part.name}': json_schema is not a valid JSON schema: {exc}",
                    param=f"{part_param}.json_schema",
                    code="invalid_grader",
                ) from exc
    return grader


def _without_types(location: Path) -> Path:
    """Drop the types of graders that pydantic adds to the path of a union: they are not in the user's JSON."""
    if location[1:2] == ("graders",):
        return [*location[1:3], *location[4:]]
    return location[1:]
