"""Parse a request's JSON into a grader."""

from functools import partial
from typing import Annotated, Any, Protocol

from pydantic import TypeAdapter, ValidationError, WithJsonSchema

from zhub.errors import InvalidRequestError
from zhub.graders.json_schema import check_schema
from zhub.graders.limits import GRADER_CHARACTERS, SCHEMA_CHARACTERS, TooLargeError, check_size
from zhub.graders.processes import Lost, own_processes
from zhub.graders.templates import check_syntax
from zhub.graders.types import STORED, TYPES, Grader, JsonSchemaGrader, leaves
from zhub.pydantic_errors import Path, refusal
from zhub.suggestions import did_you_mean

# The type of a grader in a request. Any value passes, so that `parse_grader` refuses all bad ones by its messages.
GraderJson = Annotated[Any, WithJsonSchema({"additionalProperties": True, "type": "object"})]
MAX_SHOWN = 100  # characters
READ_APART = ("python", "json_schema", "multi")
_GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)


class GraderReader(Protocol):
    """``parse_grader`` for what a user gives, ``stored_grader`` for what that has passed."""

    def __call__(self, given: Any, *, param: str) -> Grader: ...


def parse_grader(given: Any, *, param: str) -> Grader:
    """Parse a grader, and check all that can be checked without a dataset and a base model.

    Sources and schemas are read in a process that can be ended: Python's own readers of both can take for ever. It may
    take ``ITEM_CPU_S``, so call it before a session begins.

    Raises:
        InvalidRequestError: with the path of the field at fault.
    """
    if not isinstance(given, dict):
        raise InvalidRequestError(
            f"A grader is an object with a 'type': {', '.join(TYPES)}.", param=param, code="invalid_grader"
        )
    try:
        check_size(given, most=GRADER_CHARACTERS)
    except TooLargeError as exc:
        raise InvalidRequestError(f"The grader {exc}. Shorten it.", param=param, code="invalid_grader") from exc
    kind = given.get("type")
    if kind not in TYPES:
        near = did_you_mean(str(kind), TYPES)
        raise InvalidRequestError(
            f"There is no grader type {repr(kind)[:MAX_SHOWN]}.{near} Known: {', '.join(TYPES)}.",
            param=f"{param}.type",
            code="invalid_grader",
        )
    if kind not in READ_APART:
        return _parse(given, param=param)
    parsed = own_processes().call(partial(_parse, param=param), given)
    if isinstance(parsed, Lost):
        raise InvalidRequestError(
            f"The grader could not be checked: it {parsed.reason}. Simplify it.", param=param, code="invalid_grader"
        )
    return parsed


def stored_grader(given: Any, *, param: str) -> Grader:
    """Read a grader that was checked before it was stored, by its form alone: that takes no time worth mentioning.

    Raises:
        InvalidRequestError: it was stored by a release whose graders had another form.
    """
    return _validate(given, param=param, context=STORED)


def _validate(given: Any, *, param: str, context: str | None = None) -> Grader:
    try:
        return _GRADER.validate_python(given, context=context)
    except ValidationError as exc:
        raise refusal(exc.errors(), within=param, subject="Grader", path=_without_types, code="invalid_grader") from exc


def _parse(given: dict[str, Any], *, param: str) -> Grader:
    grader = _validate(given, param=param)
    check_syntax(grader, param=param)
    for part_param, part in leaves(grader, param):
        if isinstance(part, JsonSchemaGrader):
            try:
                check_size(part.json_schema, most=SCHEMA_CHARACTERS)
                check_schema(part.json_schema)
            except TooLargeError as exc:
                raise InvalidRequestError(
                    f"Grader '{part.name}': json_schema {exc}. Shorten it.",
                    param=f"{part_param}.json_schema",
                    code="invalid_grader",
                ) from exc
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
