"""From a request's JSON to a grader."""

import difflib
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError, WithJsonSchema

from zhub.errors import InvalidRequestError
from zhub.graders.json_schema import check_schema
from zhub.graders.templates import check_syntax
from zhub.graders.types import TYPES, Grader, JsonSchemaGrader, leaves
from zhub.pydantic_errors import Path, refusal

# In a request: whatever came, so that what is no object is refused as any other grader that is wrong.
GraderJson = Annotated[Any, WithJsonSchema({"additionalProperties": True, "type": "object"})]
_GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)


def parse_grader(given: Any, *, param: str) -> Grader:
    """Read a grader, and check all of it that can be checked without a dataset.

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
            f"There is no grader type {kind!r}.{hint} Known: {', '.join(TYPES)}.",
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
                    f"Grader '{part.name}': json_schema is no JSON schema: {exc}",
                    param=f"{part_param}.json_schema",
                    code="invalid_grader",
                ) from exc
    return grader


def _without_types(location: Path) -> Path:
    """Pydantic's path names the type of each grader, after its place: nobody writes that."""
    if location[1:2] == ("graders",):
        return [*location[1:3], *location[4:]]
    return location[1:]
