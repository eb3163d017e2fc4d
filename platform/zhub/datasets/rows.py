"""Rows of a dataset: what one line must look like, and which split it belongs to.

A row is one JSON object a line: ``{"messages": [{"role", "content"}, …], …columns}``. Columns beside
``messages`` become the grader's ``item``. A row of preferences has ``{"input": {"messages": […]}, "preferred_output":
[answer], "non_preferred_output": [answer]}`` instead, each answer one assistant's message. Reading streams: a file of
a million rows costs a 16-byte digest each, never its text.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from zhub.errors import RowProblem

Split = Literal["train", "validation", "test"]

MAX_ROWS = 1_000_000
MAX_ROW_BYTES = 1 << 20
MAX_COLUMNS = 1000
MAX_PROBLEMS = 100  # reported with their lines; the rest is counted
MAX_DUPLICATE_SHARE = 0.10  # above this a file is taken for an export gone wrong
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


@dataclass
class Validation:
    """What one pass over a file found. ``ok`` decides between ``processed`` and ``error``."""

    rows: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    problem_count: int = 0
    duplicates: list[RowProblem] = field(default_factory=list)
    duplicate_count: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    rows_with_target: int = 0
    first_line_with_target: int | None = None
    first_line_without_target: int | None = None
    preferences: int = 0
    first_line_without_preference: int | None = None
    prompts: int = 0

    @property
    def ok(self) -> bool:
        return self.problem_count == 0

    def add_problem(self, line: int, code: str, message: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(RowProblem(line, code, message))


def validate(file: BinaryIO) -> Validation:
    """Check every line of a JSONL file and say what is wrong with which.

    Equal rows are reported and later trained on once; when they are more than a tenth of the file
    they are an error. Never raises for bad content, and holds one line in memory at a time.
    """
    found = Validation()
    seen_rows: dict[bytes, int] = {}
    seen_prompts: set[bytes] = set()
    for line, raw in _lines(file):
        if _is_blank(raw):
            continue
        if found.rows == MAX_ROWS:
            found.add_problem(line, "too_many_rows", f"a dataset has at most {MAX_ROWS:,} rows; split the file")
            break
        found.rows += 1
        try:
            row = parse_row(line, raw)
        except RowSyntaxError as exc:
            found.add_problem(line, exc.code, str(exc))
            continue
        digest = _row_digest(row)
        first = seen_rows.setdefault(digest, line)
        if first != line:
            found.duplicate_count += 1
            if len(found.duplicates) < MAX_PROBLEMS:
                found.duplicates.append(RowProblem(line, "duplicate", f"the same row as line {first}"))
            continue
        seen_prompts.add(_digest(row.prompt))
        for column in row.item:
            if column not in found.columns and len(found.columns) == MAX_COLUMNS:
                found.add_problem(line, "too_many_columns", f"a dataset has at most {MAX_COLUMNS:,} different columns")
                break
            found.columns[column] = found.columns.get(column, 0) + 1
        if row.target is not None:
            found.rows_with_target += 1
            found.first_line_with_target = found.first_line_with_target or line
        else:
            found.first_line_without_target = found.first_line_without_target or line
        if row.rejected is not None:
            found.preferences += 1
        else:
            found.first_line_without_preference = found.first_line_without_preference or line
    found.prompts = len(seen_prompts)
    if found.rows == 0:
        found.add_problem(1, "empty", "the file has no rows; put one JSON object on each line")
    elif found.duplicate_count > MAX_DUPLICATE_SHARE * found.rows:
        found.problem_count += found.duplicate_count
        found.problems = (found.problems + found.duplicates)[:MAX_PROBLEMS]
    return found


def unique_rows(file: BinaryIO) -> Iterator[Row]:
    """Yield the distinct rows of a file that ``validate`` found good, in their order."""
    seen: set[bytes] = set()
    for line, raw in _lines(file):
        if _is_blank(raw):
            continue
        row = parse_row(line, raw)
        digest = _row_digest(row)
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
    if any(column in item for column in PREFERENCE_COLUMNS):
        messages, rejected = _preference(item)
    else:
        messages = item.pop("messages", None)
    if not isinstance(messages, list) or not messages:
        raise RowSyntaxError("wrong_schema", "'messages' must be a list with at least one message")
    for index, message in enumerate(messages):
        _check_message(index, message)
    if messages[-1]["role"] in ("system", "developer") or (len(messages) == 1 and messages[0]["role"] == "assistant"):
        raise RowSyntaxError("wrong_schema", "'messages' must hold a user's message before the answer")
    return Row(line, [{"role": m["role"], "content": m["content"]} for m in messages], item, rejected)


def split_of(prompt: list[dict[str, str]]) -> Split:
    """Return the split that a prompt belongs to: 10 % test, 10 % validation, by a hash of its text.

    The same prompt falls in the same split in every file and every version of it, so a row that was
    once held out is never trained on later.
    """
    position = prompt_position(prompt)
    return "test" if position < 0.1 else "validation" if position < 0.2 else "train"


def prompt_position(prompt: list[dict[str, str]]) -> float:
    """Return a number in [0, 1) that depends on nothing but the prompt's messages."""
    return int.from_bytes(_digest(prompt)[:8], "big") / 2**64


def split_rows(rows: Iterable[Row]) -> dict[Split, list[Row]]:
    """Sort rows into splits by ``split_of``; no prompt is ever in two of them.

    A small dataset whose test or validation split would come out empty gives it the prompt that is
    nearest to the threshold instead, so that every expert is measured on something it never saw.
    """
    rows = list(rows)
    splits: dict[Split, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[split_of(row.prompt)].append(row)
    for name in ("test", "validation"):
        if not splits[name] and splits["train"]:
            nearest = min(prompt_position(row.prompt) for row in splits["train"])
            moved = [row for row in splits["train"] if prompt_position(row.prompt) == nearest]
            splits[name] = moved
            splits["train"] = [row for row in splits["train"] if prompt_position(row.prompt) != nearest]
    return splits


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
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
    if isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        raise RowSyntaxError("wrong_schema", "'input.messages' must end before the answer, with a user's message")
    answers: list[str] = []
    for column in PREFERENCE_COLUMNS:
        given = item.pop(column, None)
        one = given[0] if isinstance(given, list) and len(given) == 1 else None
        if not isinstance(one, dict) or one.get("role") != "assistant" or not isinstance(one.get("content"), str):
            raise RowSyntaxError("wrong_schema", f"'{column}' must be a list with one message of the assistant's")
        answers.append(one["content"])
    if answers[0] == answers[1]:
        raise RowSyntaxError("wrong_schema", "the preferred and the non-preferred output are the same text")
    return [*messages, {"role": "assistant", "content": answers[0]}], answers[1]


def _check_message(index: int, message: object) -> None:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise RowSyntaxError("wrong_schema", f"{where} must be an object, found {_json_type(message)}")
    if message.get("role") not in ROLES:
        raise RowSyntaxError("wrong_schema", f"{where}.role must be one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), str):
        raise RowSyntaxError(
            "wrong_schema", f"{where}.content must be a string, found {_json_type(message.get('content'))}"
        )


def _check_text(value: dict[str, Any]) -> None:
    """JSON's escapes can write what no text holds; tokenizers and the database would stumble over it later."""
    if any("\0" in column for column in value):
        raise RowSyntaxError("bad_text", "the name of a column holds the character NUL (\\u0000)")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise RowSyntaxError("bad_text", "half of a surrogate pair (\\ud800 to \\udfff) stands alone") from exc


def _is_blank(raw: bytes) -> bool:
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


def _row_digest(row: Row) -> bytes:
    value: dict[str, Any] = {"messages": row.messages, "item": row.item}
    return _digest(value if row.rejected is None else {**value, "rejected": row.rejected})


def _digest(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
