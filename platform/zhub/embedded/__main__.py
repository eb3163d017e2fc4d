"""``python -m zhub.embedded``, the process behind ``zhub up``: the stack of a data directory, until it is stopped."""

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from zhub.client import Client
from zhub.client.credentials import CREDENTIALS_FILE, Credentials, default_data_dir, read_credentials, write_credentials
from zhub.database import migrate
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.data_dir import DataDir, load_secrets
from zhub.embedded.postgres import Urls
from zhub.embedded.stack import Stack, StackAddresses
from zhub.errors import AccessEndedError, AuthenticationError, ZhubError
from zhub.tenancy import keys
from zhub.tenancy.bootstrap import create_full_key, ensure_project
from zhub.tenancy.scopes import SCOPES

ORGANIZATION = "local"
PROJECT = "default"
KEY_NAME = "zhub up"
SHIPPED_BASE = "zhub-tiny"
DEFAULT_PORT = 8460
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def main() -> None:
    arguments = _parse()
    out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)

    def tell(message: str) -> None:
        err.print(f"[dim]{escape(message)}[/dim]")

    def on_ready(addresses: StackAddresses) -> None:
        credentials = first_start(addresses)
        try:
            tell(add_shipped_base(credentials) or "The base models of the last start are still there.")
        except ZhubError as exc:
            err.print(f"[yellow]warning:[/yellow] {escape(str(exc))}")
        out.print(usage(credentials, addresses.data_dir))

    def prepare(urls: Urls) -> None:
        migrate.upgrade(urls.owner)

    try:
        Stack(arguments.data_dir, port=arguments.port, host=arguments.host, prepare=prepare).run(on_ready, tell)
    except ZhubError as exc:
        err.print(f"[bold red]error:[/bold red] {escape(str(exc))}")
        raise SystemExit(1) from None


def first_start(addresses: StackAddresses) -> Credentials:
    """Make sure that an organisation, a project and a key to it exist, and that the key's file names this address."""
    data_dir = DataDir(addresses.data_dir)
    base_url = addresses.api_url
    for listening, reachable in ANY_ADDRESS.items():
        base_url = base_url.replace(f"//{listening}:", f"//{reachable}:")
    secret_key = load_secrets(data_dir).secret_key
    engine = make_engine(addresses.database.system, pool_size=1)
    try:
        credentials = read_credentials(data_dir.path)
        if credentials is None or not _is_valid(addresses, credentials.api_key, secret_key):
            with system_session(engine) as session:
                project = ensure_project(session, ORGANIZATION, PROJECT)
                key = create_full_key(session, project, KEY_NAME, operator=True, secret_key=secret_key)
                credentials = Credentials(base_url, key)
            write_credentials(data_dir.path, credentials)
    finally:
        engine.dispose()
    if credentials.base_url != base_url:
        credentials = replace(credentials, base_url=base_url)
        write_credentials(data_dir.path, credentials)
    return credentials


def _is_valid(addresses: StackAddresses, api_key: str, secret_key: str) -> bool:
    """Whether the key is known and may do all that this release has scopes for."""
    engine = make_engine(addresses.database.api, pool_size=1)
    try:
        return keys.authenticate(engine, api_key, secret_key=secret_key).scopes.issuperset(SCOPES)
    except (AuthenticationError, AccessEndedError):
        return False
    finally:
        engine.dispose()


def add_shipped_base(credentials: Credentials) -> str | None:
    """Upload the base model that comes with zhub if there is no other. Returns what was done, for people; or None."""
    with Client(credentials.base_url, credentials.api_key) as client:
        bases = {base.id: base.status for base in client.base_models.list()}
        broke_off = bases.get(SHIPPED_BASE) in ("uploading", "error")
        if bases and not broke_off:
            return None
        directory = shipped_base_directory()
        if directory is None:
            return "No base model is shipped with this installation; add one with `zhub base-models add`."
        client.base_models.add_directory(SHIPPED_BASE, directory)
    return f"Added the base model {SHIPPED_BASE}; it is decomposed as soon as Ray runs."


def shipped_base_directory() -> Path | None:
    """The directory beside the workers' code, found without importing it: that would import torch."""
    spec = importlib.util.find_spec("zhub_workers")
    if spec is None or spec.origin is None:
        return None
    directory = Path(spec.origin).parent / "shipped_base"
    return directory if directory.is_dir() else None


def usage(credentials: Credentials, data_dir: Path) -> str:
    """A text for people: how to use the stack that has just started."""
    path = data_dir / CREDENTIALS_FILE
    elsewhere = "" if data_dir == default_data_dir() else f"\n    export ZHUB_DATA_DIR={escape(str(data_dir))}"
    return f"""
[bold green]zhub runs at {credentials.base_url}[/bold green]  (Ctrl-C stops it)
Address and key are in {escape(str(path))}; the zhub command finds them by itself.

[bold]In another terminal:[/bold]{elsewhere}
    zhub chat --model {SHIPPED_BASE} "What is 12 plus 30?"
    zhub datasets push rows.jsonl        # then: zhub submit rows.jsonl --base {SHIPPED_BASE} --wait
    zhub doctor                          # is everything there?

[bold]With curl:[/bold]
    KEY=$(sed -n 's/.*"api_key": "\\(.*\\)".*/\\1/p' '{escape(str(path))}')
    curl -s {credentials.base_url}/v1/models -H "Authorization: Bearer $KEY"

[bold]With the openai client, in Python:[/bold]
    import json, openai
    client = openai.OpenAI(**json.load(open({escape(repr(str(path)))})))
    answer = client.chat.completions.create(
        model="{SHIPPED_BASE}", messages=[{{"role": "user", "content": "What is 12 plus 30?"}}])
    print(answer.choices\\[0].message.content)
"""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zhub.embedded", description="Run zhub on this machine.")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--host", default="127.0.0.1")
    return parser.parse_args()


if __name__ == "__main__":
    main()
