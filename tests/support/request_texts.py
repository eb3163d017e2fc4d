"""Every place for a text in the API's requests, from its OpenAPI document."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple


class TextField(NamedTuple):
    """A field of a JSON body: ``path`` has an index where a list is."""

    method: str
    route: str
    path: tuple[str | int, ...]

    def body(self, text: str) -> Any:
        """A body with this text in this field and nothing else."""
        value: Any = text
        for part in reversed(self.path):
            value = [value] if part == 0 else {part: value}
        return value


def text_fields(document: dict[str, Any]) -> list[TextField]:
    schemas = document["components"]["schemas"]
    found = []
    for route, methods in document["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                paths = dict.fromkeys(_paths(content["application/json"]["schema"], schemas, ()))
                found += [TextField(method, route, path) for path in paths]
    return found


def parameters(document: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Method, route, where and name of every parameter in a path or a query."""
    return [
        (method, route, parameter["in"], parameter["name"])
        for route, methods in document["paths"].items()
        for method, operation in methods.items()
        for parameter in operation.get("parameters", [])
        if parameter["in"] in ("path", "query")
    ]


def filled(route: str, **given: str) -> str:
    """A route with its parameters filled in."""
    return re.sub(r"{(\w+)}", lambda match: given.get(match[1], "x"), route)


def _paths(schema: Any, schemas: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    for other in [*schema.get("anyOf", []), *schema.get("oneOf", []), *schema.get("allOf", [])]:
        yield from _paths(other, schemas, path)
    if schema.get("type") == "string":
        yield path
    elif schema.get("type") == "array":
        yield from _paths(schema.get("items", {}), schemas, (*path, 0))
    for name, part in schema.get("properties", {}).items():
        yield from _paths(part, schemas, (*path, name))
    if (rest := schema.get("additionalProperties")) not in (None, False):
        yield from _paths({"type": "string"} if rest is True else rest, schemas, (*path, "any"))
