"""Whether an answer can be held to a JSON schema: bounds on its size, and on the shortest answer that fits it.

Schemas are written by users. What compiles them has limits of its own, but says nothing of one that no finite answer
fits, such as an object that must hold another of its own kind.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zhub.errors import InvalidRequestError

MAX_CHARACTERS = 100_000
MAX_DEPTH = 64
MAX_SCHEMAS = 2_000  # within each other: the compiler takes the square of their number, 0.4 s at this one
MAX_PASSES = 50  # a definition that leads through more definitions than this to its end is refused
MAX_SHORTEST = 100_000  # characters
# Between the parts of JSON: a model that has nothing to say would else write spaces until it is cut off.
WHITESPACE = r"[ \n\t]{1,40}"

Length = float  # of the shortest JSON that fits a schema, in characters; infinite where there is none
SIMPLE = {"null": 4, "boolean": 4, "number": 1, "integer": 1, "string": 2}
KINDS = [*SIMPLE, "array", "object"]


def check_schema(text: str, param: str) -> dict[str, Any]:
    """Return a schema, from its text, that a finite answer can fit.

    Raises:
        InvalidRequestError: with ``param``: it is no schema, is too large, or has no answer of a finite length.
    """
    if len(text) > MAX_CHARACTERS:
        raise _refused(f"The schema has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are read", param)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _refused(f"The schema is not JSON: {exc}", param) from exc
    if not isinstance(schema, dict):
        raise _refused("The schema must be a JSON object", param)
    schemas = _Schemas(schema, param)
    shortest = schemas.shortest()
    if shortest > MAX_SHORTEST:
        raise _refused(
            f"The schema has no finite answer: the shortest JSON that fits it would have more than {MAX_SHORTEST:,} "
            "characters. Look for an object that must hold itself (leave it out of 'required', or allow null), and for "
            "large minItems and minLength",
            param,
        )
    return schema


def with_options(schema: Mapping[str, Any], *, lenient: bool = False) -> dict[str, Any]:
    """A schema as the compiler of grammars wants it. ``lenient``: what it cannot hold an answer to is passed over."""
    return {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": lenient}}


class _Schemas:
    """Every schema within a schema, and the length of the shortest JSON that fits each, as far as it is known."""

    def __init__(self, root: dict[str, Any], param: str) -> None:
        self.root = root
        self.param = param
        self.lengths: dict[int, Length] = {}
        self.all: list[dict[str, Any]] = []
        self._collect(root, 0)

    def _collect(self, schema: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _refused(f"The schema is nested deeper than {MAX_DEPTH} levels", self.param)
        if not isinstance(schema, dict):
            return
        if len(self.all) == MAX_SCHEMAS:
            raise _refused(f"The schema has more than {MAX_SCHEMAS:,} schemas within it", self.param)
        self.lengths[id(schema)] = math.inf
        self.all.append(schema)
        for child in _children(schema):
            self._collect(child, depth + 1)

    def shortest(self) -> Length:
        """The least fixed point, from above: each pass can only make a length shorter."""
        for _ in range(MAX_PASSES):
            changed = False
            # The inner ones first, so that most schemas take two passes.
            for schema in reversed(self.all):
                length = self._length(schema)
                # What is far beyond an answer is no answer, and each pass could make it no more than double.
                if length > MAX_SHORTEST:
                    length = math.inf
                changed |= length < self.lengths[id(schema)]
                self.lengths[id(schema)] = min(length, self.lengths[id(schema)])
            if not changed:
                break
        return self.lengths[id(self.root)]

    def _of(self, schema: Any) -> Length:
        if schema is False:
            return math.inf
        return self.lengths[id(schema)] if isinstance(schema, dict) else 1.0

    def _length(self, schema: dict[str, Any]) -> Length:
        """A lower bound: what a schema asks for in several ways is at least as long as for each of them."""
        bounds = [self._own_length(schema)]
        if isinstance(reference := schema.get("$ref"), str):
            bounds.append(self._of(self._target(reference)))
        if isinstance(every := schema.get("allOf"), list):
            bounds.append(max(map(self._of, every), default=0.0))
        for name in ("anyOf", "oneOf"):
            if isinstance(some := schema.get(name), list):
                bounds.append(min(map(self._of, some), default=math.inf))
        return max(bounds)

    def _own_length(self, schema: Mapping[str, Any]) -> Length:
        if "const" in schema:
            return float(_written(schema["const"]))
        if isinstance(values := schema.get("enum"), list):
            return float(min((_written(value) for value in values), default=math.inf))
        types = schema.get("type")
        kinds = types if isinstance(types, list) else [types] if isinstance(types, str) else KINDS
        return min((self._length_as(kind, schema) for kind in kinds), default=0.0)

    def _length_as(self, kind: Any, schema: Mapping[str, Any]) -> Length:
        match kind:
            case "object":
                return self._length_of_object(schema)
            case "array":
                first = _list(schema.get("prefixItems"))
                count = _count(schema.get("minItems"))
                items = [self._of(item) for item in first[:count]]
                rest = max(count - len(first), 0)
                return 2.0 + sum(items) + max(count - 1, 0) + (rest * self._of(schema.get("items")) if rest else 0.0)
            case "string":
                return 2.0 + _count(schema.get("minLength"))
        return float(SIMPLE.get(kind, 0)) if isinstance(kind, str) else 0.0

    def _length_of_object(self, schema: Mapping[str, Any]) -> Length:
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        names = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        others = True if schema.get("patternProperties") else schema.get("additionalProperties")
        values = (self._of(known.get(name, others)) for name in names)
        keys = sum(_written(name) + 1 for name in names)
        more = max(_count(schema.get("minProperties")) - len(names), 0)
        return 2.0 + sum(values) + keys + max(len(names) - 1, 0) + 4 * more

    def _target(self, reference: str) -> Any:
        """What a reference points to; the compiler refuses one that it does not find."""
        target: Any = self.root
        for part in filter(None, reference.removeprefix("#").split("/")):
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                target = target[int(part)]
            elif isinstance(target, dict):
                target = target.get(part, True)
            else:
                return True
        return target if id(target) in self.lengths else True


def _children(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas in the keywords of a schema; not what ``const`` or ``enum`` hold, which are values."""
    for name, value in schema.items():
        match name:
            case "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas":
                yield from value.values() if isinstance(value, dict) else ()
            case "allOf" | "anyOf" | "oneOf" | "prefixItems":
                yield from _list(value)
            case "items" | "additionalProperties" | "contains" | "not" | "if" | "then" | "else" | "propertyNames":
                yield value


def _written(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _count(value: Any) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(min(value, MAX_SHORTEST + 1)) if is_number and value > 0 else 0


def _refused(message: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message}.", param=param)
