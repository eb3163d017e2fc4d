"""Schemas that no answer could fit are refused with what is wrong with them, in bounded time."""

import json
from typing import Any

import pytest

from zhub.errors import InvalidRequestError
from zhub_workers.serving.json_schemas import check_schema


def within(schema: Any, levels: int) -> Any:
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(levels: int) -> dict[str, Any]:
    """Each definition holds the one before twice: short to write, and its shortest answer is of 2^levels parts."""
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, levels):
        part = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {"type": "object", "properties": {"a": part, "b": part}, "required": ["a", "b"]}
    return {"$defs": definitions, "$ref": f"#/$defs/d{levels - 1}"}


SELF = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
WITHOUT_AN_ANSWER: dict[str, Any] = {
    "an object that must hold itself": SELF,
    "a list that must": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "two that must hold each other": {
        "$defs": {"a": {"type": "array", "prefixItems": [{"$ref": "#/$defs/b"}], "minItems": 1},
                  "b": {"allOf": [{"$ref": "#/$defs/a"}]}},
        "$ref": "#/$defs/a",
    },
    "a reference to itself": {"$ref": "#"},
    "a required property that is nothing": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "a required one that may not be": {"type": "object", "required": ["a"], "additionalProperties": False},
    "no value": {"enum": []},
    "no way": {"anyOf": [SELF | {"properties": {"next": False}}]},
    "doubling": doubling(40),
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "a long string": {"type": "string", "minLength": 10**300},
}  # fmt: skip
WITH_AN_ANSWER: dict[str, Any] = {
    "anything": {},
    "an optional next": SELF | {"required": []},
    "a next or null": {
        "type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]
    },
    "an empty list": {"type": "array", "items": {"$ref": "#"}},
    "a kind beside the endless one": SELF | {"type": ["object", "null"]},
    "of a pattern": {
        "type": "object", "required": ["ab"], "patternProperties": {"^a": {}}, "additionalProperties": False
    },
    "a chain of definitions": {
        "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(30)} | {"d30": {"type": "null"}},
        "$ref": "#/$defs/d0",
    },
    "odd values": {"type": 3, "enum": None, "items": 4, "required": "x", "properties": [], "minItems": "y", "allOf": 1},
    "an escaped name": {"$defs": {"a/b": {"type": "null"}}, "$ref": "#/$defs/a~1b"},
    "some doubling": doubling(8),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_AN_ANSWER)
def test_a_schema_without_a_finite_answer_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="no finite answer") as caught:
        check_schema(json.dumps(WITHOUT_AN_ANSWER[name]), "tools")
    assert caught.value.param == "tools"


@pytest.mark.parametrize("name", WITH_AN_ANSWER)
def test_a_schema_with_one_is_let_through(name: str) -> None:
    assert check_schema(json.dumps(WITH_AN_ANSWER[name]), "tools") == WITH_AN_ANSWER[name]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not JSON"),
        ("[" * 5000, "not JSON"),
        ("[]", "must be a JSON object"),
        (json.dumps({"enum": ["x" * 100_000]}), "100,0.. characters"),
        (json.dumps(within({}, 70)), "deeper than 64 levels"),
        (json.dumps({"properties": {f"p{n}": {} for n in range(2000)}}), "more than 2,000 schemas"),
    ],
)
def test_a_schema_beyond_the_bounds_is_refused_by_its_numbers(text: str, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        check_schema(text, "tools")
