"""What a data file is, by the bytes at its beginning and never by its name."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TextIO

from zhub.datasets.conversion.column_names import KNOWN
from zhub.datasets.rows import MAX_ROW_BYTES

HEAD_BYTES = MAX_ROW_BYTES + 1024  # so that the first row is whole
GZIP = b"\x1f\x8b"
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MAX_PEEKED_RECORDS = 50
ROW_COLUMNS = (
    "messages",
    "conversations",
    "conversation",
    "preferred_output",
    "chosen",
)  # a list in one of them is a row

# From the longest mark to the shortest: that of UTF-32 begins like that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What zhub does not read, and what to do with it.
BINARY = {
    b"PK\x03\x04": ("a ZIP archive or an Excel workbook", "unpack it, or save the sheet as CSV"),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", "save the sheet as CSV"),
    b"ARROW1": ("an Arrow file", "save it as Parquet"),
    b"SQLite format 3\0": ("an SQLite database", "export the table as CSV"),
    b"Obj\x01": ("an Avro file", "save it as Parquet"),
    b"ORC": ("an ORC file", "save it as Parquet"),
    b"\x89HDF": ("an HDF5 file", "save the table as Parquet"),
    b"\x93NUMPY": ("a NumPy array", "save a table with named columns as Parquet"),
    b"%PDF": ("a PDF", "save its text as a table with a prompt and an answer in each row"),
    b"BZh": ("compressed by bzip2", "unpack it"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "unpack it"),
    b"version https://git-lfs": ("a pointer of Git LFS and not the file itself", "run `git lfs pull`"),
    b"<!DOCTYPE": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
}

Kind = Literal["jsonl", "json", "csv", "parquet", "gzip", "empty"]


@dataclass(frozen=True)
class Content:
    """What a file holds, and how its text is written; ``delimiter`` is that of CSV."""

    kind: Kind
    encoding: str = "utf-8"
    delimiter: str = ""

    @property
    def is_utf8(self) -> bool:
        return self.encoding in ("utf-8", "utf-8-sig")

    def __str__(self) -> str:
        names = {"jsonl": "JSON Lines", "json": "JSON", "parquet": "Parquet", "gzip": "gzip", "empty": "an empty file"}
        name = names.get(self.kind) or f"CSV separated by {DELIMITERS[self.delimiter]}"
        return name if self.is_utf8 else f"{name} in {self.encoding.upper()}"


class UnreadableContentError(ValueError):
    """The content is nothing that zhub reads; the message says what to do, and where ``is_known`` what it is."""

    def __init__(self, message: str, *, is_known: bool = False) -> None:
        super().__init__(message)
        self.is_known = is_known


def recognise(head: bytes) -> Content:
    """What a file is that begins with ``head``, its first HEAD_BYTES or all of it.

    Raises:
        UnreadableContentError: nothing that zhub reads.
    """
    if head.startswith(GZIP):
        return Content("gzip")
    if head.startswith(b"PAR1"):
        return Content("parquet")
    for magic, (what, remedy) in BINARY.items():
        if head.startswith(magic):
            raise UnreadableContentError(f"it is {what}: {remedy}", is_known=True)
    encoding = _encoding(head)
    text = _decoded(head, encoding)
    stripped = text.lstrip()
    if not stripped:
        return Content("empty")
    if stripped.startswith("{"):
        return Content("jsonl" if _is_one_object_a_line(stripped) else "json", encoding)
    if stripped.startswith("[") and stripped[1:].lstrip().startswith(("{", "]")):
        return Content("json", encoding)
    delimiter = _delimiter(text, whole=len(head) < HEAD_BYTES)
    if delimiter is None:
        raise UnreadableContentError(
            "it is text without columns: write one JSON object a line, or a table (CSV, TSV, Parquet) whose first line "
            "names its columns"
        )
    return Content("csv", encoding, delimiter)


def csv_records(text: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the line it begins in. Raises csv.Error for quotes that do not match."""
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    line = 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield line, cells
        line = reader.line_num + 1


def _encoding(head: bytes) -> str:
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    sample = head[:4096]
    if sample.count(0) > len(sample) // 4:
        # In most texts one half of each two bytes of UTF-16 is zero.
        return "utf-16-le" if sample[1::2].count(0) > sample[0::2].count(0) else "utf-16-be"
    if b"\0" in sample:
        raise UnreadableContentError("it is a binary file: save it as CSV, Parquet or JSON Lines")
    return "utf-8"


def _decoded(head: bytes, encoding: str) -> str:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError as exc:
        if not encoding.startswith("utf-8"):
            raise UnreadableContentError("it is a binary file: save it as CSV, Parquet or JSON Lines") from exc
        raise UnreadableContentError(
            f"its byte {exc.start} is not UTF-8: save it as UTF-8 (in Excel: 'CSV UTF-8')"
        ) from exc


def json_lines(text: str) -> list[dict[str, Any]]:
    """Those of the first lines that are objects by themselves."""
    return [parsed for line in _first_lines(text) if (parsed := _object(line)) is not None]


def _is_one_object_a_line(text: str) -> bool:
    """Whether the first line is an object by itself, or most lines are. A single line may also be a whole document."""
    lines = _first_lines(text)
    objects = [_object(line) for line in lines]
    if len(lines) > 1:
        return objects[0] is not None or 2 * sum(parsed is not None for parsed in objects) > len(objects)
    return objects[0] is not None and not is_document(objects[0])


def is_document(value: dict[str, Any]) -> bool:
    """Whether an object may hold rows, or columns, and is no row itself."""
    nested = any(isinstance(inner, list | dict) for inner in value.values())
    return nested and not any(name in value for name in ROW_COLUMNS)


def _first_lines(text: str) -> list[str]:
    return [line for line in text.split("\n", MAX_PEEKED_RECORDS)[:MAX_PEEKED_RECORDS] if line.strip()]


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _delimiter(text: str, *, whole: bool) -> str | None:
    """The delimiter that gives most cells in the first of two records or more, of which most have as many.

    Where the first one has a known name, it is a header, however the others look: who reads them says what is wrong.
    """
    if text.startswith("sep=") and text[4:5] in DELIMITERS:
        return text[4]
    widths = {delimiter: _width(text, delimiter, whole=whole) for delimiter in DELIMITERS}
    widest = max(widths, key=lambda delimiter: widths[delimiter])
    if widths[widest] > 1:
        return widest
    return "," if text.lstrip().partition("\n")[0].strip().strip('"').lower() in KNOWN else None


def _width(text: str, delimiter: str, *, whole: bool) -> int:
    """How many cells the header has; 0 unless most records have as many, or where there are fewer than two records."""
    records: list[list[str]] = []
    try:
        for _line, cells in islice(csv_records(io.StringIO(text, newline=""), delimiter), MAX_PEEKED_RECORDS):
            records.append(cells)
    except csv.Error:
        # The head ends within a quoted cell, or a quote is wrong, which whoever reads the records will be told.
        return len(records[0]) if records else 0
    if not whole and len(records) < MAX_PEEKED_RECORDS:
        records = records[:-1]
    if len(records) < 2:
        return 0
    width = len(records[0])
    if any(cell.strip().lower() in KNOWN for cell in records[0]):
        return width
    return width if 2 * sum(len(cells) == width for cells in records) > len(records) else 0
