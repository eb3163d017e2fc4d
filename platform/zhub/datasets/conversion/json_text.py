"""JSON that is not one object a line, read in pieces: an array, an object around one, or objects after each other."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from zhub.datasets.conversion.recognition import is_document
from zhub.datasets.rows import MAX_ROW_BYTES

PIECE_CHARACTERS = 1 << 16
MAX_VALUE_CHARACTERS = MAX_ROW_BYTES
NEAR_THE_END = 16  # characters: a longer word of JSON there is none


class JsonTextError(ValueError):
    """The text is not JSON, or not of a shape that holds rows; the message says why, and what to do."""


class _TooLongError(Exception):
    """A value is longer than MAX_VALUE_CHARACTERS."""


def objects(file: TextIO) -> Iterator[dict[str, Any]]:
    """Each row of a JSON document; memory is that of one row.

    Raises:
        JsonTextError: the document has no rows, several arrays of them, or is not JSON.
    """
    text = _Text(file)
    if text.peek() == "[":
        yield from _elements(text)
        return _expect_end(text)
    if text.peek() != "{":
        raise JsonTextError("it is JSON without objects: write one object for each row")
    try:
        first = text.value()
    except _TooLongError:
        yield from _wrapped(text)
        return _expect_end(text)
    if text.peek():
        yield first
        while text.peek():
            yield _row(text)
        return
    yield from _rows_of(first)


def _rows_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a document that is one object: those of its array, or itself."""
    if not is_document(value):
        return [value]
    arrays = [name for name, inner in value.items() if _is_array_of_objects(inner)]
    if not arrays:
        if len(value) > 1 and all(isinstance(inner, dict | list) for inner in value.values()):
            raise JsonTextError("it is a JSON object of columns (as pandas writes it): write it with orient='records'")
        return [value]
    if len(arrays) > 1:
        raise _several(arrays)
    rows: list[dict[str, Any]] = value[arrays[0]]
    return rows


def _wrapped(text: "_Text") -> Iterator[dict[str, Any]]:
    """The rows of the one array of objects within an object that is too long to hold."""
    arrays: list[str] = []
    text.take("{")
    while text.peek() != "}":
        name = _value(text)
        text.take(":")
        if text.peek() == "[" and text.peek(1) == "{":
            arrays.append(str(name))
            if len(arrays) > 1:
                raise _several(arrays)
            yield from _elements(text)
        else:
            _value(text)
        if text.peek() == ",":
            text.take(",")
    text.take("}")
    if not arrays:
        raise JsonTextError("it is a JSON object without an array of objects: write one object for each row")


def _elements(text: "_Text") -> Iterator[dict[str, Any]]:
    text.take("[")
    while text.peek() != "]":
        yield _row(text)
        if text.peek() != "]":
            text.take(",")
    text.take("]")


def _row(text: "_Text") -> dict[str, Any]:
    value = _value(text)
    if not isinstance(value, dict):
        raise JsonTextError(f"expected an object for each row, found {json.dumps(value)[:40]}")
    return value


def _value(text: "_Text") -> Any:
    try:
        return text.value()
    except _TooLongError as exc:
        raise JsonTextError(f"a row is longer than {MAX_VALUE_CHARACTERS:,} characters") from exc


def _expect_end(text: "_Text") -> None:
    if text.peek():
        raise JsonTextError("something follows the end of the JSON document")


def _several(names: list[str]) -> JsonTextError:
    return JsonTextError(f"it holds several arrays ({', '.join(names)}): write each into a file of its own")


def _is_array_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(element, dict) for element in value)


class _Text:
    """A position in a text of which only a piece is in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._piece = ""
        self._at = 0
        self._decoder = json.JSONDecoder(parse_constant=_refuse)

    def peek(self, following: int = 0) -> str:
        """The next character that is no blank, or the one that follows it; ``""`` at the end."""
        at = self._skip_blanks(self._at)
        self._piece, self._at = self._piece[at:], 0
        if not following:
            return self._piece[:1]
        at = self._skip_blanks(1)
        return self._piece[at : at + 1]

    def take(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise JsonTextError(f"expected {character!r}, found {found or 'the end of the file'!r}")
        self._at += 1

    def value(self) -> Any:
        """The JSON value that begins here. The position stays where it was if that is too long."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._piece, self._at)
                # A number at the end of the piece may go on in the next one.
                if end < len(self._piece) or not self._read(len(self._piece)):
                    self._at = end
                    return value
                continue
            except RecursionError as exc:
                raise JsonTextError("the JSON is nested too deeply") from exc
            except json.JSONDecodeError as exc:
                there = repr(self._piece[exc.pos : exc.pos + 20]) if exc.pos < len(self._piece) else "its end"
                problem = f"it is not JSON: {exc.msg} at {there}"
                if exc.pos < len(self._piece) - NEAR_THE_END and not exc.msg.startswith("Unterminated string"):
                    raise JsonTextError(problem) from exc
            except ValueError as exc:
                raise JsonTextError(f"it is not JSON: {exc}") from exc
            if len(self._piece) - self._at > MAX_VALUE_CHARACTERS:
                raise _TooLongError
            if not self._read(len(self._piece)):
                raise JsonTextError(problem)

    def _skip_blanks(self, at: int) -> int:
        while True:
            while at < len(self._piece) and self._piece[at] in " \t\r\n":
                at += 1
            if at < len(self._piece) or not self._read(0):
                return at

    def _read(self, characters: int) -> bool:
        """Read at least as much again as is there, so that a long value is not parsed once for each piece."""
        more = self._file.read(max(PIECE_CHARACTERS, characters))
        self._piece += more
        return bool(more)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
