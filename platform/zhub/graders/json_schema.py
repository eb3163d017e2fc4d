"""Answers that are JSON of a given schema (draft 2020-12), and how many of their fields agree with the row's."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zhub.errors import RewardError, RewardTimeoutError
from zhub.graders.samples import Grade, Sample
from zhub.graders.templates import UnreadableAnswerError, fill, look_up, read_json
from zhub.graders.types import JsonSchemaGrader

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)```\s*", re.DOTALL | re.IGNORECASE)
PATTERN_TIMEOUT_S = 1.0
# A schema without references takes time in proportion to its length and the answer's; references can multiply it.
MAX_REFERENCES = 10_000


class _TooManyReferences(Exception):
    """The schema's references never come to an end. Control flow: becomes an error of the grader."""


def grade_json(grader: JsonSchemaGrader, sample: Sample) -> Grade:
    text = fill(grader.name, grader.input, sample)
    fenced = FENCED.fullmatch(text)
    answer = read_json(fenced[1] if fenced else text)
    if problem := _first_problem(grader, sample, answer):
        return Grade(0.0, detail=problem)
    if grader.reference is None:
        return Grade(1.0)
    wanted = look_up(grader.name, grader.reference, sample)
    if isinstance(wanted, str):
        try:
            wanted = read_json(wanted)
        except UnreadableAnswerError as exc:
            raise RewardError(grader.name, f"{sample.where}the reference is not JSON. Correct the row.") from exc
    if not isinstance(wanted, dict):
        raise RewardError(
            grader.name, f"{sample.where}the reference is no JSON object, so it has no fields. Correct the row."
        )
    fields = grader.fields or list(wanted)
    missing = [field for field in fields if field not in wanted]
    if missing or not fields:
        raise RewardError(grader.name, f"{sample.where}the reference lacks {', '.join(missing) or 'fields'}.")
    differing = [
        field for field in fields if not isinstance(answer, dict) or not _same(answer.get(field, ...), wanted[field])
    ]
    detail = f"differs in {', '.join(differing)}" if differing else None
    return Grade(1 - len(differing) / len(fields), detail=detail)


def check_schema(schema: dict[str, Any]) -> None:
    """Raise ValueError, with what is wrong, unless this is a valid JSON schema."""
    from jsonschema.exceptions import SchemaError

    try:
        _validator(schema).check_schema(schema)
    except SchemaError as exc:
        raise ValueError(f"{exc.json_path}: {exc.message}") from exc
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def _same(value: Any, wanted: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are the same number, and true is not a number."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_same, value, wanted))
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(_same(value[key], wanted[key]) for key in wanted)
    return bool(value == wanted)


def _first_problem(grader: JsonSchemaGrader, sample: Sample, instance: Any) -> str | None:
    from referencing.exceptions import Unresolvable

    try:
        for error in _validator(grader.json_schema).iter_errors(instance):
            return f"{error.json_path}: {error.message}"[:500]
    except TimeoutError as exc:
        raise RewardTimeoutError(
            grader.name,
            f"{sample.where}a pattern of the schema took longer than {PATTERN_TIMEOUT_S:g} s. Simplify the pattern.",
        ) from exc
    except Unresolvable as exc:
        raise RewardError(
            grader.name, f"json_schema refers to {exc.ref!r}, which is not in it. Put it under $defs; none is fetched."
        ) from exc
    except (_TooManyReferences, RecursionError) as exc:
        raise RewardError(
            grader.name, f"{sample.where}json_schema refers to itself without end. Break the circle of $ref."
        ) from exc
    return None


def _validator(schema: dict[str, Any]) -> "Validator":
    """The library's validator, but it fetches no references, and its patterns and references come to an end."""
    # Imported where they are used: they take 0.1 s, and the command line knows graders too.
    import regex
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend
    from referencing import Registry

    left = MAX_REFERENCES

    def pattern(_validator: Any, wanted: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not regex.search(wanted, instance, timeout=PATTERN_TIMEOUT_S):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, patterns: dict[str, Any], instance: Any, _schema: Any) -> Iterator[Any]:
        if isinstance(instance, dict):
            for wanted, subschema in patterns.items():
                for name, value in instance.items():
                    if regex.search(wanted, name, timeout=PATTERN_TIMEOUT_S):
                        yield from validator.descend(value, subschema, path=name, schema_path=wanted)

    def counted(keyword: str) -> Any:
        follow = Draft202012Validator.VALIDATORS[keyword]

        def count(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooManyReferences
            return follow(*arguments)

        return count

    kind: Any = extend(  # type: ignore[no-untyped-call]
        Draft202012Validator,
        {
            "pattern": pattern,
            "patternProperties": pattern_properties,
            "$ref": counted("$ref"),
            "$dynamicRef": counted("$dynamicRef"),
        },
    )
    # An empty registry: without one, the library fetches references over the network.
    validator: Validator = kind(schema, registry=Registry())
    return validator
