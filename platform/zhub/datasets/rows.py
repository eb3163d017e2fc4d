"""Rows of a dataset: what one line must look like.

A row is one JSON object a line: ``{"messages": [{"role", "content"}, …], …columns}``. Columns beside
``messages`` become the grader's ``item``. A row of preferences has ``{"input": {"messages": […]}, "preferred_output":
[answer], "non_preferred_output": [answer]}`` instead, each answer one assistant's message. Reading streams: a file of
a million rows costs a 16-byte digest each, never its text.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from zhub.datasets.row_fields import ignored_in_message, ignored_in_messages, ignored_in_row, unreadable_content
from zhub.errors import TrainingError

MAX_ROW_BYTES = 1 << 20
PREFERENCE_COLUMNS = ("preferred_output", "non_preferred_output")
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One row: ``line`` counts from 1 in the file it came from, ``item`` holds every column but ``messages``."""

    line: int
    messages: list[dict[str, str]]
    item: dict[str, Any]
    rejected: str | None = None  # the answer that is not preferred; the preferred one is the target

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The messages before the answer: all of them, less a last one by the assistant."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages

    @property
    def target(self) -> str | None:
        """The assistant's last message, the text that supervised training learns; None for a bare prompt."""
        return self.messages[-1]["content"] if self.messages[-1]["role"] == "assistant" else None


def all_rows(file: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a file that ``validate`` found good, in their order, as often as they stand in it.

    Raises:
        TrainingError: a row that an earlier release found good, and this one refuses.
    """
    for line, raw in numbered_lines(file):
        if is_blank(raw):
            continue
        try:
            yield parse_row(line, raw)
        except RowSyntaxError as exc:
            raise TrainingError(f"line {line}: {exc}. Mend the row, and upload the file again.") from exc


def unique_rows(file: BinaryIO) -> Iterator[Row]:
    """Yield the distinct rows of a file that ``validate`` found good, in their order."""
    return distinct(all_rows(file))


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the first of equal rows, in their order."""
    seen: set[bytes] = set()
    for row in rows:
        digest = row_digest(row)
        if digest not in seen:
            seen.add(digest)
            yield row


class RowSyntaxError(ValueError):
    """One line is not a row; ``code`` says in one word why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse_row(line: int, raw: bytes) -> Row:
    """Read one line, or raise RowSyntaxError with what is wrong and how to mend it."""
    if len(raw) > MAX_ROW_BYTES:
        raise RowSyntaxError("row_too_long", f"the row is longer than {MAX_ROW_BYTES:,} bytes")
    try:
        text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as exc:
        raise RowSyntaxError("not_utf8", f"byte {exc.start} is not UTF-8; save the file as UTF-8") from exc
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as exc:
        raise RowSyntaxError("bad_json", "the JSON is nested too deeply") from exc
    except ValueError as exc:
        raise RowSyntaxError("bad_json", f"not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise RowSyntaxError("wrong_schema", f"expected a JSON object, found {_json_type(value)}")
    if b"\\u" in raw:
        _check_text(value)
    item = dict(value)
    rejected = None
    _refuse_ignored(ignored_in_row(item))
    if any(column in item for column in PREFERENCE_COLUMNS):
        messages, rejected = _preference(item)
    else:
        messages = item.pop("messages", None)
    if not isinstance(messages, list) or not messages:
        raise RowSyntaxError("wrong_schema", "'messages' must be a list with at least one message")
    for index, message in enumerate(messages):
        _check_message(index, message)
    _refuse_ignored(ignored_in_messages(messages))
    if messages[-1]["role"] in ("system", "developer") or (len(messages) == 1 and messages[0]["role"] == "assistant"):
        raise RowSyntaxError("wrong_schema", "'messages' must hold a user's message before the answer")
    return Row(line, [{"role": m["role"], "content": m["content"]} for m in messages], item, rejected)


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines. Of an over-long one only the start is kept, so memory stays bounded."""
    line = 0
    while raw := file.readline(MAX_ROW_BYTES + 2):
        line += 1
        rest = raw
        while len(rest) == MAX_ROW_BYTES + 2 and not rest.endswith(b"\n"):
            rest = file.readline(MAX_ROW_BYTES + 2)
        yield line, raw.rstrip(b"\r\n") if rest is raw else raw


def _preference(item: dict[str, Any]) -> tuple[Any, str]:
    """Take a row of preferences apart: the prompt with the preferred answer, and the text of the other."""
    prompt = item.pop("input", None)
    messages = prompt.get("messages") if isinstance(prompt, dict) else None
    if not isinstance(messages, list) or not messages:
        raise RowSyntaxError("wrong_schema", "'input.messages' must be a list with at least one message")
    _refuse_ignored(ignored_in_row(prompt))
    if isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        raise RowSyntaxError("wrong_schema", "'input.messages' must end before the answer, with a user's message")
    answers: list[str] = []
    for column in PREFERENCE_COLUMNS:
        given = item.pop(column, None)
        one = given[0] if isinstance(given, list) and len(given) == 1 else None
        if not isinstance(one, dict) or one.get("role") != "assistant" or not isinstance(one.get("content"), str):
            raise RowSyntaxError("wrong_schema", f"'{column}' must be a list with one message of the assistant's")
        _refuse_ignored(ignored_in_message(one, f"{column}[0]"))
        answers.append(one["content"])
    if answers[0] == answers[1]:
        raise RowSyntaxError("wrong_schema", "the preferred and the non-preferred output are the same text")
    return [*messages, {"role": "assistant", "content": answers[0]}], answers[1]


def _refuse_ignored(problem: str | None) -> None:
    if problem is not None:
        raise RowSyntaxError("unsupported_field", problem)


def _check_message(index: int, message: object) -> None:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise RowSyntaxError("wrong_schema", f"{where} must be an object, found {_json_type(message)}")
    if message.get("role") not in ROLES:
        raise RowSyntaxError("wrong_schema", f"{where}.role must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str):
        if content is None:
            _refuse_ignored(ignored_in_message(message, where))
        what = unreadable_content(content) or f"must be a string, found {_json_type(content)}"
        raise RowSyntaxError("wrong_schema", f"{where}.content {what}")


def _check_text(value: dict[str, Any]) -> None:
    """JSON's escapes can write what no text holds; tokenizers and the database would stumble over it later."""
    if any("\0" in column for column in value):
        raise RowSyntaxError("bad_text", "the name of a column holds the character NUL (\\u0000)")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise RowSyntaxError("bad_text", "half of a surrogate pair (\\ud800 to \\udfff) stands alone") from exc


def is_blank(raw: bytes) -> bool:
    return len(raw) <= MAX_ROW_BYTES and not raw.strip()


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is out of range")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def row_digest(row: Row) -> bytes:
    value: dict[str, Any] = {"messages": row.messages, "item": row.item}
    return value_digest(value if row.rejected is None else {**value, "rejected": row.rejected})


def value_digest(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
