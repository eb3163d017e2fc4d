"""A data file as a file of rows: as it is where it is one, else converted, with a report of what became of it."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from zhub.datasets.conversion.cells import CellError, EmptyCellError, filled
from zhub.datasets.conversion.mapping import ChosenColumns, ColumnMapping, Method, NoMappingError, Row, mapping_of
from zhub.datasets.conversion.readers import Record, Source, open_source, records
from zhub.datasets.rows import RowSyntaxError, parse_row
from zhub.datasets.validation import MAX_FILE_BYTES, MAX_ROWS
from zhub.errors import InvalidRequestError

SAMPLED_RECORDS = 100
EXAMPLES = 2
NAMED_PROBLEMS = 5
NAMED_COLUMNS = 20


@dataclass(frozen=True)
class Conversion:
    """What became of a file: ``source`` is what it was, ``parts`` what became of its columns, in words.

    ``examples`` are the first records with the rows that they became. Records without anything in them are
    ``blank_count``, those left out for want of a prompt or an answer ``incomplete_count``.
    """

    source: str
    parts: Sequence[tuple[str, str]]
    examples: Sequence[tuple[Mapping[str, Any], Row]]
    row_count: int
    blank_count: int
    incomplete_count: int


@dataclass(frozen=True)
class RowsFile:
    """A file of rows, and the name that it has for zhub. ``conversion`` is None where the bytes are as they were."""

    path: Path
    name: str
    conversion: Conversion | None


@contextmanager
def as_rows(
    path: Path,
    *,
    chosen: ChosenColumns | None = None,
    method: Method | None = None,
    skip_incomplete: bool = False,
) -> Iterator[RowsFile]:
    """The rows of a data file of any format, for as long as the context lasts.

    JSON Lines of rows stay as they are, their bytes too, and are checked by whoever gets them. ``method``: what will
    train on the rows, see ``mapping_of``; ``chosen``: what the columns mean, where their names do not say it.

    Raises:
        InvalidRequestError: in one sentence what the file is, what is wrong with it, and what to do.
    """
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "nothing"
        raise InvalidRequestError(f"{path}: expected a data file, found {kind}.", param="file")
    with tempfile.TemporaryDirectory(prefix="zhub-") as directory:
        try:
            rows = _rows_file(path, Path(directory), chosen or ChosenColumns(), method, skip_incomplete)
        except OSError as exc:
            # The file cannot be read, or there is no room for its rows in the directory for temporary files.
            where = f" ({exc.filename})" if exc.filename not in (None, str(path)) else ""
            raise InvalidRequestError(f"{path} cannot be converted: {exc.strerror}{where}.", param="file") from exc
        yield rows


def _rows_file(
    path: Path, scratch: Path, chosen: ChosenColumns, method: Method | None, skip_incomplete: bool
) -> RowsFile:
    """The rows of a file, in the directory ``scratch`` where they are not the file itself."""
    source = open_source(path, scratch)
    sample, rest = _sampled(source)
    mapping = _mapping(source, sample, chosen, method)
    if mapping is None or (mapping.is_identity and source.content.kind == "jsonl" and source.content.is_utf8):
        return RowsFile(source.path, source.name, None)
    target = scratch / "rows.jsonl"
    with target.open("wb") as file:
        writer = _Writer(source.name, mapping, file, skip_incomplete=skip_incomplete)
        writer.write(chain(sample, rest))
    name = f"{source.name.rpartition('.')[0] or source.name}.jsonl"
    return RowsFile(target, name, writer.conversion(source))


def _sampled(source: Source) -> tuple[list[Record], Iterator[Record]]:
    """The first records, and those that follow. JSON Lines that cannot be read are left to the check of rows."""
    following = records(source)
    sample: list[Record] = []
    try:
        for record in islice(following, SAMPLED_RECORDS):
            sample.append(record)
    except InvalidRequestError as exc:
        if source.content.kind != "jsonl":
            raise
        return sample, _raising(exc)
    return sample, following


def _raising(error: InvalidRequestError) -> Iterator[Record]:
    raise error
    yield  # what makes it an iterator


def _mapping(
    source: Source, sample: Sequence[Record], chosen: ChosenColumns, method: Method | None
) -> ColumnMapping | None:
    """How the records become rows; None for JSON Lines without a column: what is wrong, the check of rows will say."""
    columns = list(dict.fromkeys(column for record in sample for column in record.values))
    if not columns:
        if source.content.kind in ("jsonl", "empty"):
            return None
        raise InvalidRequestError(f"{source.name} has no rows.", param="file")
    try:
        return mapping_of([record.values for record in sample], chosen, method)
    except NoMappingError as exc:
        named = ", ".join(columns[:NAMED_COLUMNS]) + (", …" if len(columns) > NAMED_COLUMNS else "")
        message = f"{source.name} is {source} with the columns {named}, and cannot become rows: {exc}."
        raise InvalidRequestError(message, param="file") from exc


class _Writer:
    """Writes the rows of records, checks each, and counts what it left out."""

    def __init__(self, name: str, mapping: ColumnMapping, file: BinaryIO, *, skip_incomplete: bool) -> None:
        self._name = name
        self._mapping = mapping
        self._file = file
        self._skip_incomplete = skip_incomplete
        self._examples: list[tuple[Mapping[str, Any], Row]] = []
        self._row_count = self._blank_count = self._incomplete_count = self._size_bytes = 0
        self._problem_count = 0
        self._problems: list[str] = []

    def write(self, following: Iterator[Record]) -> None:
        """Write the row of each record.

        Raises:
            InvalidRequestError: records that cannot become rows, the first of them by their places; or too many rows.
        """
        for record in following:
            if not filled(record.values):
                self._blank_count += 1
                continue
            try:
                self._write(record)
            except EmptyCellError as exc:
                self._incomplete_count += 1
                if not self._skip_incomplete:
                    self._note(record, exc)
            except (CellError, RowSyntaxError) as exc:
                self._note(record, exc)
        if self._problem_count:
            raise self._refusal()
        if not self._row_count:
            what = "record with a prompt and an answer" if self._incomplete_count else "rows"
            raise InvalidRequestError(f"{self._name} has no {what}.", param="file")

    def conversion(self, source: Source) -> Conversion:
        return Conversion(
            str(source),
            self._mapping.parts,
            self._examples,
            self._row_count,
            self._blank_count,
            self._incomplete_count,
        )

    def _write(self, record: Record) -> None:
        row = self._mapping.row(record.values)
        try:
            raw = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as exc:
            raise CellError("half of a surrogate pair stands alone in its text") from exc
        except ValueError as exc:
            raise CellError(f"it holds a number that is not finite: {exc}") from exc
        parse_row(1, raw)
        self._row_count += 1
        self._size_bytes += len(raw) + 1
        if self._row_count > MAX_ROWS or self._size_bytes > MAX_FILE_BYTES:
            limit = f"{MAX_ROWS:,} rows and {MAX_FILE_BYTES:,} bytes"
            raise InvalidRequestError(f"{self._name} is larger than a dataset may be: {limit}. Split it.", param="file")
        if len(self._examples) < EXAMPLES:
            self._examples.append((record.values, row))
        self._file.write(raw + b"\n")

    def _note(self, record: Record, problem: Exception) -> None:
        self._problem_count += 1
        if len(self._problems) < NAMED_PROBLEMS:
            self._problems.append(f"{record.place}: {problem}")

    def _refusal(self) -> InvalidRequestError:
        more = self._problem_count - len(self._problems)
        lines = [*self._problems, *([f"… and {more:,} more"] if more else [])]
        remedy = "Mend them."
        if self._incomplete_count:
            remedy = "Mend them, or leave out those without a prompt or an answer (--skip-incomplete)."
        count = "A record" if self._problem_count == 1 else f"{self._problem_count:,} records"
        return InvalidRequestError(
            f"{count} of {self._name} cannot become a row. {remedy}\n" + "\n".join(lines), param="file"
        )
