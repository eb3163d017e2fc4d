"""Parquet files, read by pyarrow in batches. It is an extra, so it is imported when a Parquet file comes."""

import math
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zhub.errors import InvalidRequestError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 256
INSTALL = "pip install 'zhub[parquet]'"


def records(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Each row as a dictionary of what JSON can hold; times are ISO 8601, decimals text, NaN is nothing.

    Raises:
        InvalidRequestError: the file is damaged, names two columns alike, or holds binary data; or pyarrow is missing.
    """
    with _opened(path, name) as file:
        import pyarrow

        names = file.schema_arrow.names
        if twice := sorted({column for column in names if names.count(column) > 1}):
            raise InvalidRequestError(f"{name}: two columns are named '{twice[0]}'; rename one.", param="file")
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    yield {column: _plain(value, name, column) for column, value in row.items()}
        except (pyarrow.ArrowException, OSError) as exc:
            raise InvalidRequestError(
                f"{name}: the Parquet file cannot be read: {_first_line(exc)}.", param="file"
            ) from exc


def _opened(path: Path, name: str) -> "ParquetFile":
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as exc:
        raise InvalidRequestError(
            f"{name} is a Parquet file, and reading it needs pyarrow: install it with `{INSTALL}`.", param="file"
        ) from exc
    try:
        return ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as exc:
        raise InvalidRequestError(
            f"{name}: the Parquet file cannot be read: {_first_line(exc)}.", param="file"
        ) from exc


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].removesuffix(".")


def _plain(value: Any, name: str, column: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner, name, column) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, name, column) for inner in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        raise InvalidRequestError(
            f"{name}: the column '{column}' holds binary data, such as images; base models read text only. Write the "
            "file without it.",
            param="file",
        )
    raise InvalidRequestError(f"{name}: the column '{column}' holds {type(value).__name__}, which is no JSON.")
