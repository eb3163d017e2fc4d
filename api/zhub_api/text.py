"""The texts of requests, checked once before any route sees them: each is Unicode, and a name is one line.

JSON can write half of a surrogate pair ("\\ud800"), which no other part can store, send or print.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile

from zhub.errors import InvalidRequestError
from zhub.process.logs import escaped

# What is shown beside other names, in logs and in lists.
NAMES = {
    "alias", "cluster", "compare_with", "cron", "dataset", "dedup_key", "depends_on", "event_type", "event_types",
    "expected", "file", "filename", "hub_id", "hub_revision", "model", "name", "on_regression", "successor", "suffix",
    "timezone", "training_file", "url", "validation_file", "version",
}  # fmt: skip
# Within these, a field of such a name is a user's own.
OPEN_OBJECTS = {"item", "json_schema", "metadata", "messages"}
WRITING = ("POST", "PUT", "PATCH")

Path = tuple[str, ...]


async def check_texts(request: Request) -> None:
    """Refuse a request with a text that is not Unicode, or with control characters in a name.

    Raises:
        InvalidRequestError: names the field.
    """
    # Read by FastAPI before this, where the route has such a body; what a route streams by itself is bytes.
    for body in (getattr(request, "_json", None), getattr(request, "_form", None)):
        for path, text in _texts(body):
            _check_unicode(path, text)
            if _is_name(path):
                _check_name(path, text)
    for name, text in (*request.path_params.items(), *request.query_params.multi_items()):
        _check_unicode((name,), text)
    if request.method in WRITING:
        for name, text in request.path_params.items():
            _check_name((name,), text)


CheckedTexts = Depends(check_texts)


def _texts(body: Any) -> Iterator[tuple[Path, str]]:
    """Every text of a body and the path to it, in order; keys of objects too."""
    waiting: list[tuple[Path, Any]] = [((), body)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, UploadFile):
            yield (*path, "filename"), value.filename or ""
        elif isinstance(value, Mapping):
            parts = value.multi_items() if isinstance(value, FormData) else value.items()
            yield from ((path, key) for key in value if _is_half_anywhere(key))
            waiting += reversed([((*path, key), part) for key, part in parts])
        elif isinstance(value, list):
            waiting += reversed([((*path, str(index)), part) for index, part in enumerate(value)])


def _is_name(path: Path) -> bool:
    fields = [part for part in path if not part.isdigit()]
    return bool(fields) and fields[-1] in NAMES and OPEN_OBJECTS.isdisjoint(fields)


def _check_unicode(path: Path, text: str) -> None:
    if _is_half_anywhere(text):
        param = escaped(".".join(path)) or None
        where = f"{param}: " if param else ""
        raise InvalidRequestError(
            f"{where}half of a surrogate pair (\\ud800 to \\udfff) stands alone, which is no character.", param=param
        )


def _check_name(path: Path, text: str) -> None:
    if any(map(_is_control, text)):
        param = escaped(".".join(path))
        shown = escaped(text[:60])
        raise InvalidRequestError(f"{param}: a name has no control characters (got '{shown}').", param=param)


def _is_half_anywhere(text: str) -> bool:
    # Encoding is what finds them fastest.
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Zl", "Zp")
