"""From a request's JSON to a grader."""

import difflib
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError, WithJsonSchema

from zhub.errors import InvalidRequestError
from zhub.graders.json_schema import check_schema
from zhub.graders.templates import check_syntax
from zhub.graders.types import TYPES, Grader, JsonSchemaGrader, leaves

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
        problem = exc.errors()[0]
        # The discriminator's value is part of pydantic's path and of nobody else's.
        path = [str(part) for part in problem["loc"] if part not in TYPES]
        message = problem["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(
            f"Grader: {'.'.join(path) or kind}: {message}.", param=".".join([param, *path]), code="invalid_grader"
        ) from exc
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
