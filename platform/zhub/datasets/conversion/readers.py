"""Records of a data file, one after the other, whatever its format. Memory is that of a few of them."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from zhub.datasets.conversion import json_text, parquet
from zhub.datasets.conversion.recognition import HEAD_BYTES, Content, UnreadableContentError, csv_records, recognise
from zhub.datasets.rows import MAX_ROW_BYTES
from zhub.datasets.validation import MAX_FILE_BYTES
from zhub.errors import InvalidRequestError
from zhub.manifest import CHUNK_BYTES


@dataclass(frozen=True)
class Record:
    """One row of a foreign file, its columns as they are; ``place`` names it for people, as in ``line 3``."""

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A data file that is not compressed: its content at ``path``, its ``name`` for people, without ``.gz``."""

    path: Path
    name: str
    content: Content
    compressed: bool

    def __str__(self) -> str:
        return f"{self.content}, compressed by gzip" if self.compressed else str(self.content)


def open_source(path: Path, scratch: Path) -> Source:
    """Recognise a file; one that is compressed is unpacked into the directory ``scratch``.

    Raises:
        InvalidRequestError: it is nothing that zhub reads, damaged, or larger than a dataset may be.
    """
    content = _recognised(path, path.name)
    if content.kind != "gzip":
        return Source(path, path.name, content, compressed=False)
    name = path.name.removesuffix(".gz")
    unpacked = scratch / "unpacked"
    _unpack(path, unpacked)
    content = _recognised(unpacked, path.name)
    if content.kind == "gzip":
        raise _refusal(path.name, "it is compressed by gzip twice: unpack it once")
    return Source(unpacked, name, content, compressed=True)


def records(source: Source) -> Iterator[Record]:
    """The records of a file. Raises InvalidRequestError, with the place, for what cannot be read."""
    read = _READERS[source.content.kind]
    with _translated(source):
        yield from read(source)


def _jsonl(source: Source) -> Iterator[Record]:
    with _text(source) as file:
        for line, text in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES + 2), ""), 1):
            if not text.strip():
                continue
            if len(text) > MAX_ROW_BYTES:
                raise _refusal(source.name, f"line {line} is longer than {MAX_ROW_BYTES:,} bytes")
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as exc:
                raise _refusal(source.name, f"line {line} is not JSON: {exc}") from exc
            if not isinstance(values, dict):
                raise _refusal(source.name, f"line {line} is not a JSON object")
            yield Record(f"line {line}", values)


def _json(source: Source) -> Iterator[Record]:
    with _text(source) as file:
        for number, values in enumerate(json_text.objects(file), 1):
            yield Record(f"row {number}", values)


def _csv(source: Source) -> Iterator[Record]:
    # The default of 131,072 characters is shorter than a row may be. It is the limit of the whole process.
    csv.field_size_limit(MAX_ROW_BYTES)
    with _text(source) as file:
        lines = csv_records(file, source.content.delimiter)
        header: list[str] | None = None
        for line, cells in lines:
            if header is None:
                if cells[0].startswith("sep="):
                    continue  # Excel's way to name the delimiter
                header = _header(source, cells)
            elif len(cells) != len(header):
                what = f"line {line} has {len(cells)} cells, and the header {len(header)}: quote cells that hold"
                raise _refusal(source.name, f"{what} {source.content.delimiter!r} or line breaks")
            else:
                yield Record(f"line {line}", dict(zip(header, cells, strict=True)))


def _header(source: Source, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise _refusal(source.name, f"two columns are named '{twice[0]}': rename one")
    return names


def _parquet(source: Source) -> Iterator[Record]:
    for number, values in enumerate(parquet.records(source.path, source.name), 1):
        yield Record(f"row {number}", values)


def _nothing(_source: Source) -> Iterator[Record]:
    return iter(())


_READERS: Mapping[str, Callable[[Source], Iterator[Record]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "empty": _nothing,
}


def _text(source: Source) -> TextIO:
    # The csv module reads line ends by itself, so that those within quotes stay.
    return source.path.open(encoding=source.content.encoding, newline="" if source.content.kind == "csv" else None)


def _recognised(path: Path, name: str) -> Content:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        return recognise(head)
    except UnreadableContentError as exc:
        raise _refusal(name, str(exc)) from exc


def _unpack(path: Path, target: Path) -> None:
    """Unpack a gzip file, up to the size of a dataset: a small file may hold any amount."""
    size_bytes = 0
    try:
        with gzip.open(path) as packed, target.open("wb") as unpacked:
            while piece := packed.read(CHUNK_BYTES):
                size_bytes += len(piece)
                if size_bytes > MAX_FILE_BYTES:
                    raise _refusal(path.name, f"unpacked it has more than {MAX_FILE_BYTES:,} bytes: split it")
                unpacked.write(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise _refusal(path.name, f"it is a damaged gzip file ({exc}): copy it again") from exc


@contextmanager
def _translated(source: Source) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as exc:
        raise _refusal(source.name, "part of it is not UTF-8: save it as UTF-8 (in Excel: 'CSV UTF-8')") from exc
    except csv.Error as exc:
        raise _refusal(source.name, f"its CSV is damaged: {exc}; every quote that opens must close") from exc
    except json_text.JsonTextError as exc:
        raise _refusal(source.name, str(exc)) from exc


def _refusal(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} cannot be read: {why}.", param="file")
