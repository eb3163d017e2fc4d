"""Data files of a test, and the rows that they become."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zhub.datasets.conversion.converting import as_rows


def rows_of(path: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows that a data file becomes."""
    with as_rows(path, **options) as rows:
        return [json.loads(line) for line in rows.path.read_bytes().splitlines()]


def rows_of_bytes(directory: Path, content: bytes, **options: Any) -> list[dict[str, Any]]:
    """The rows that these bytes become, under a name that says nothing."""
    path = directory / "file"
    path.write_bytes(content)
    return rows_of(path, **options)


def rows_of_records(directory: Path, records: Sequence[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """The rows that records become, which come as JSON."""
    return rows_of_bytes(directory, json.dumps(records).encode(), **options)


def asked(text: str, /, **columns: Any) -> dict[str, Any]:
    """A row with one message of the user's."""
    return {"messages": [{"role": "user", "content": text}], **columns}


def answered(text: str, answer: str, /, **columns: Any) -> dict[str, Any]:
    """A row with one message of the user's and the assistant's answer."""
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **columns}
