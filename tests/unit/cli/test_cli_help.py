"""``--help`` is for somebody who waits for it: every command has one, and none imports what it does not need."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from zhub.cli import app

HEAVY = (
    "torch",
    "ray",
    "transformers",
    "sqlalchemy",
    "alembic",
    "boto3",
    "psycopg",
    "redis",
    "fastapi",
    "zhub.graders",
)

ALL_HELPS = """
import contextlib, io, json, sys
from zhub.cli import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    assert "Usage: zhub" in out.getvalue(), (arguments, out.getvalue())
print(json.dumps([name for name in sys.argv[2].split(",") if name in sys.modules]))
"""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = list(commands(get_command(app)))


def test_no_help_imports_the_database_the_store_ray_torch_or_the_graders() -> None:
    paths = json.dumps([path for path, _ in ALL])
    argv = [sys.executable, "-W", "error", "-c", ALL_HELPS, paths, ",".join(HEAVY)]
    asked = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout) == []


@pytest.mark.parametrize("path,command", ALL, ids=[" ".join(path) or "zhub" for path, _ in ALL])
def test_every_command_says_what_it_does(path: tuple[str, ...], command: Any) -> None:
    assert command.help


def test_the_promised_commands_are_there() -> None:
    promised = (
        "up, demo, doctor, submit, chat, base-models add, base-models ls, base-models show, base-models size, "
        "datasets push, datasets convert, datasets sample, datasets ls, datasets show, datasets pull, datasets rm, "
        "jobs ls, jobs show, jobs watch, jobs logs, jobs events, "
        "jobs cancel, jobs pause, jobs resume, jobs redrive, jobs checkpoints, jobs metrics, "
        "jobs curve, jobs describe, jobs tag, jobs archive, jobs unarchive, graders validate, graders run, "
        "queue redrive, evaluations create, evaluations ls, evaluations show, "
        "feedback add, feedback ls, feedback export, feedback rm, "
        "experts ls, experts show, experts pull, experts aliases, experts moves, experts promote, experts demote, "
        "experts describe, experts tag, experts rename, experts archive, experts unarchive, experts rm, "
        "experts history, "
        "releases create, releases ls, releases show, releases diff, releases promote, releases demote, "
        "releases moves, releases rm, "
        "promotions create, promotions ls, promotions show, promotions cancel, schedules add, schedules ls, "
        "schedules edit, schedules show, schedules run, schedules pause, schedules resume, schedules rm, "
        "queue explain, queue doctor, db upgrade, db bootstrap, db quota, "
        "webhooks add, webhooks ls, webhooks rm, webhooks enable, webhooks rotate, webhooks deliveries, "
        "webhooks replay, webhooks test, "
        "organizations ls, organizations create, organizations invite-owner, organizations suspend, "
        "organizations resume, projects ls, projects create, projects archive, "
        "members ls, members add, members role, members rm, "
        "invitations send, invitations ls, invitations rm, invitations accept, "
        "keys ls, keys create, keys rotate, keys revoke, "
        "service-accounts ls, service-accounts create, service-accounts key, service-accounts role, "
        "service-accounts rm, audit, login, logout, whoami"
    )
    assert set(promised.split(", ")) <= {" ".join(path) for path, _ in ALL}


def test_every_listing_and_every_show_can_print_json() -> None:
    for path, command in ALL:
        if path and path[-1] in ("ls", "show", "logs", "events", "doctor"):
            assert any("--json" in parameter.opts for parameter in command.params), path
