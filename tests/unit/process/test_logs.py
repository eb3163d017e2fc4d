"""Records of the server processes: what they speak of is in fields, as text they read as before."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zhub.process.logs import escaped

ROOT = Path(__file__).parents[3]
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")

SPEAK = """
import logging, sys, uuid
from zhub.process.logs import configure_logging, log_fields
configure_logging(sys.argv[1])
log = logging.getLogger("zhub.test")
with log_fields(job_id=uuid.UUID(int=7), fence=3):
    log.info("attempt %d ended", 3, extra={"action": "ended"})
    with log_fields(fence=4):
        logging.getLogger("a.library").warning("bad\\nnews")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broke", extra={"action": "broke"})
"""

QUOTE = """
import logging, sys
from zhub.process.logs import configure_logging
configure_logging("text")
log = logging.getLogger("zhub.test")
log.info("GET %s", sys.argv[1])
try:
    raise ValueError(sys.argv[1])
except ValueError:
    log.exception("quoted")
"""


def spoken(log_format: str) -> str:
    argv = [sys.executable, "-c", SPEAK, log_format]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stderr


def test_as_json_each_record_is_one_line_with_its_fields() -> None:
    ended, library, broke = map(json.loads, spoken("json").splitlines())
    job_id = "00000000-0000-0000-0000-000000000007"
    assert ended.pop("time").endswith("+00:00")
    assert ended == {
        "level": "INFO",
        "logger": "zhub.test",
        "message": "attempt 3 ended",
        "action": "ended",
        "job_id": job_id,
        "fence": 3,
    }
    assert (library["message"], library["job_id"], library["fence"]) == ("bad\nnews", job_id, 4)
    assert "ZeroDivisionError" in broke["exc_info"] and "job_id" not in broke


def test_as_text_a_record_is_a_line_for_people() -> None:
    first = spoken("text").splitlines()[0]
    assert first.endswith("Z INFO zhub.test: attempt 3 ended")


def test_as_text_nothing_within_a_record_looks_like_another_record() -> None:
    forged = "2026-01-01T00:00:00.000Z INFO zhub.api: forged"
    for break_ in ("\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"):
        argv = [sys.executable, "-c", QUOTE, f"a{break_}{forged}"]
        text = subprocess.run(argv, capture_output=True, check=True, timeout=60).stderr.decode()
        assert not any(line.startswith(forged) for line in text.splitlines())
        lines = text.splitlines()
        assert break_.encode("unicode_escape").decode() in lines[0] and lines[1].endswith("quoted")
        assert lines[2].startswith("    Traceback") and all(line.startswith("    ") for line in lines[2:])


def test_as_text_a_terminal_is_not_steered_and_half_a_pair_is_written() -> None:
    assert escaped("\x1b[2J \ud800 \t é \U0001f600") == "\\x1b[2J \\ud800 \\t é \U0001f600"


def records(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LEVELS
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "log"
        ):
            yield node


SOURCES = [path for root in ("platform", "workers", "api") for path in sorted((ROOT / root).rglob("*.py"))]


@pytest.mark.parametrize("path", [path for path in SOURCES if list(records(path))], ids=lambda path: path.stem)
def test_every_record_of_ours_has_fields(path: Path) -> None:
    for call in records(path):
        assert any(keyword.arg == "extra" for keyword in call.keywords), f"{path}:{call.lineno}"


def test_every_action_is_told_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "operations.md").read_text()
    actions = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "action" and isinstance(value, ast.Constant):
                        actions.add(str(value.value))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_fields":
                actions |= {
                    arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
                }
    assert len(actions) > 20
    assert {action for action in actions if f"`{action}`" not in guide} == set()
