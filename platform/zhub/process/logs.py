"""Logging of the server processes: one line an event on standard error, with UTC time.

As text for people or as JSON for machines; no text in a record can look like another record. What a record speaks of
is in its fields and not only in its sentence: each of ours names an ``action`` in ``extra``, and the job, fence,
organisation or request that it is about.
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from zhub.process import tracing

LogFormat = Literal["text", "json"]

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_fields: ContextVar[Mapping[str, object]] = ContextVar("zhub_log_fields", default={})  # noqa: B039  # never changed


def configure_logging(log_format: LogFormat) -> None:
    """Send every record of this process to standard error. Replaces what was configured before."""
    formatter: logging.Formatter
    if log_format == "json":
        names = {"levelname": "level", "name": "logger"}
        formatter = JsonFormatter(
            ["levelname", "name", "message"],
            rename_fields=names,
            timestamp="time",
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's second message, for terminals
        )
    else:
        line = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
        formatter = _LineFormatter(line, "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(_add_fields)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "botocore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def escaped(text: str) -> str:
    """The text on one line: control characters, line separators and halves of surrogate pairs as Python writes them."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _LineFormatter(logging.Formatter):
    """A record is one line, and its traceback is indented: no text that a stranger chose begins a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"    {escaped(line)}" for line in super().formatException(ei).split("\n"))


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Every record logged within has these fields too, whoever logs it."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def _add_fields(record: logging.LogRecord) -> bool:
    if (trace_id := tracing.trace_id()) is not None:
        record.__dict__.setdefault("trace_id", trace_id)
    for name, value in _fields.get().items():
        record.__dict__.setdefault(name, value)
    return True
