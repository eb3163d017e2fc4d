"""Errors of the API name routes; the command line names the command that does the same, and never a route."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import api_examples
import pytest
from typer.main import get_command

from zhub.cli import app
from zhub.cli.commands_for_routes import COMMANDS, ROUTE, with_commands

Run = Callable[..., int]
ROOT = Path(__file__).parents[3]
SOURCES = ("platform/zhub", "api/zhub_api", "workers/zhub_workers")
COMMAND = re.compile(r"`zhub [a-z]")
# What is never an answer of the API: commands themselves, what they and `zhub up` print, and how a process refuses to
# start. The last names the remedy of a reason, which is no error.
OF_COMMANDS = ("cli", "client", "demo", "embedded", "conversion", "errors/failures.py", "serving/strategies.py")


def texts() -> Iterator[tuple[Path, str]]:
    """Every text in the sources but docstrings; an f-string's parts are joined, with {} for its values."""
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*.py")):
            tree = ast.parse(path.read_text())
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            docstrings = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                    yield path, "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    yield path, node.value


ROUTES = sorted({(str(path.relative_to(ROOT)), match[1]) for path, text in texts() for match in ROUTE.finditer(text)})


def test_messages_name_routes() -> None:
    assert len(ROUTES) >= 5


@pytest.mark.parametrize(("path", "route"), ROUTES)
def test_every_route_that_a_message_names_is_there_and_has_a_command(path: str, route: str) -> None:
    method, _, url = route.partition(" ")
    documented = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
    assert method.lower() in documented[url]
    assert route in COMMANDS and "/v1/" not in with_commands(f"Try {route} first.")


@pytest.mark.parametrize("words", sorted({command for commands in COMMANDS.values() for command in commands}))
def test_every_command_that_stands_for_a_route_is_there(words: str) -> None:
    command = get_command(app)
    for name in words.split()[1:]:
        command = getattr(command, "commands", {})[name]
    assert command.help


def test_no_answer_of_the_api_names_a_command() -> None:
    named = {str(path.relative_to(ROOT)) for path, text in texts() if COMMAND.search(text)}
    assert {path for path in named if not any(f"/{part}" in path for part in OF_COMMANDS)} == set()


def test_a_refusal_names_the_command(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    message = "GET /v1/models lists the experts and base models. Upload it with POST /v1/files first."
    api.refuse("GET", "/v1/fine_tuning/jobs/ftjob-1", 404, "not_found", message)
    assert zhub("jobs", "show", "ftjob-1") == 4
    shown = "`zhub experts ls` or `zhub base-models ls` lists the experts and base models. "
    assert f"{shown}Upload it with `zhub datasets push` first." in capsys.readouterr().err


def test_the_error_of_a_job_names_the_command(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "constant_reward", "message": "Check it (POST /v1/fine_tuning/alpha/graders/run).", "param": None}
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1", api_examples.JOB | {"status": "failed", "error": error})
    assert zhub("jobs", "show", "ftjob-1") == 0
    assert "Check it (`zhub graders run`)." in capsys.readouterr().out


def test_a_route_that_no_command_is_for_stays_as_it_is() -> None:
    assert with_commands("No such route: GET /v1/nothing.") == "No such route: GET /v1/nothing."
