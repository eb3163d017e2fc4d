"""What a confined process does: run a source, evaluate expressions in it, and write what each gave as a line of JSON.

Whoever wrote the source can write any line itself, and can change anything in this process. So nothing secret may be
here, and a line is only ever a claim about a value.
"""

import io
import json
import random
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from zhub.sandbox.values import UnreadableValueError, encode

SOURCE_NAME = "<source>"
MODULE_NAME = "solution"
MAX_MESSAGE_CHARACTERS = 500
PRINTED_BYTES = 16 << 10  # of standard output and error together, as lines; the rest is dropped


def evaluate(job: dict[str, Any], write: Callable[[bytes], None]) -> None:
    """Run ``job["source"]``, then each of ``job["expressions"]``, which also see ``job["variables"]``.

    The lines, each an array: ``loaded`` or ``raised`` for the source; ``value``, ``unreadable`` or ``raised`` for each
    expression; ``done``. Between them, as it happens, ``printed`` for what the program prints.
    """
    sys.stdout = sys.stderr = _Printed(write)
    # Equal programs get equal random numbers, so that a reward does not depend on what ran before.
    random.seed(0)
    # dataclasses and typing look a class's module up by its name.
    module = types.ModuleType(MODULE_NAME)
    sys.modules[MODULE_NAME] = module
    loaded = _attempt(partial(_load, job["source"], module.__dict__))
    write(_line(loaded))
    if loaded == ["loaded"]:
        for expression in job["expressions"]:
            write(_line(_attempt(partial(_value, expression, module.__dict__, job["variables"]))))
    write(_line(["done"]))


class _Printed(io.TextIOBase):
    """Standard output and error of the program. Each line is sent at once: a program may be killed at any time."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._left = PRINTED_BYTES

    def write(self, text: str) -> int:
        kept = text[: max(0, self._left - 16) // 6]  # JSON writes six bytes at most for a character, and 16 around all
        if kept:
            line = json.dumps(["printed", kept], ensure_ascii=False).encode(errors="replace") + b"\n"
            self._left -= len(line)
            self._write(line)
        if kept != text:
            self._left = 0
        return len(text)


def _load(source: str, namespace: dict[str, Any]) -> list[Any]:
    exec(compile(source, SOURCE_NAME, "exec"), namespace)
    return ["loaded"]


def _value(expression: str, namespace: dict[str, Any], variables: dict[str, Any]) -> list[Any]:
    value = eval(compile(expression, "<expression>", "eval"), namespace, dict(variables))
    try:
        return ["value", encode(value)]
    except UnreadableValueError as exc:
        return ["unreadable", str(exc)]


def _attempt(action: Callable[[], list[Any]]) -> list[Any]:
    try:
        return action()
    except BaseException as exc:  # SystemExit and KeyboardInterrupt come from the program too
        return ["raised", _message(exc), _source_line(exc)]


def _message(exc: BaseException) -> str:
    try:
        text = str(exc)
    except BaseException:
        text = ""
    name = type(exc).__name__
    return f"{name}: {text}"[:MAX_MESSAGE_CHARACTERS] if text else name


def _source_line(exc: BaseException) -> int | None:
    """The line of the source where it happened: the innermost frame of the source, or where it stops being Python."""
    if isinstance(exc, SyntaxError) and exc.filename == SOURCE_NAME:
        return exc.lineno
    line = None
    traceback = exc.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == SOURCE_NAME:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _line(content: list[Any]) -> bytes:
    try:
        return json.dumps(content).encode() + b"\n"
    except ValueError as exc:  # an int of more digits than Python writes
        return json.dumps(["unreadable", str(exc)[:MAX_MESSAGE_CHARACTERS]]).encode() + b"\n"
