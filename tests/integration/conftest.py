"""The API on a loopback port of its own, in front of a database and a store of the test's own."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from fastapi import FastAPI
from fault_proxy import FaultProxy
from pydantic import SecretStr

from zhub.config import Settings
from zhub.embedded.postgres import SOCKET_NAME, Cluster, Urls
from zhub.store import DirectoryStore
from zhub_api.app import create_app


@pytest.fixture
def settings(database: Urls, store: DirectoryStore, secret_key: str, tmp_path: Path) -> Settings:
    """Settings of the API's process. Serving is at a port where nothing listens."""
    return Settings(
        database_url=database.api,
        store_url=store.root.as_uri(),
        secret_key=SecretStr(secret_key),
        serving_url="http://127.0.0.1:9",
        cache_dir=tmp_path / "cache",
    )


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    made = create_app(settings)
    yield made
    made.state.context.engine.dispose()


@pytest.fixture
def run_server() -> Iterator[Callable[[FastAPI], str]]:
    """Run applications on loopback ports of their own, with real HTTP in between; return where, with ``/v1``."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def run(app: FastAPI) -> str:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, name="api")
        thread.start()
        running.append((server, thread))
        give_up = time.monotonic() + 15
        while not server.started:
            assert thread.is_alive() and time.monotonic() < give_up, "the API did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    yield run
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=15)


@pytest.fixture
def serve(run_server: Callable[[FastAPI], str]) -> Callable[[Settings], str]:
    """Run the API with settings of one's choice."""
    return lambda settings: run_server(create_app(settings))


@pytest.fixture
def api_url(app: FastAPI, run_server: Callable[[FastAPI], str]) -> str:
    return run_server(app)


@pytest.fixture
def open_client(api_url: str) -> Iterator[Callable[..., openai.OpenAI]]:
    """Open the unmodified client with a key of one's choice; it retries nothing unless asked to."""
    opened: list[openai.OpenAI] = []

    def open_one(key: str, **options: Any) -> openai.OpenAI:
        opened.append(openai.OpenAI(base_url=api_url, api_key=key, **({"max_retries": 0, "timeout": 20.0} | options)))
        return opened[-1]

    yield open_one
    for client in opened:
        client.close()


@pytest.fixture
def client(open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str]) -> openai.OpenAI:
    """The unmodified client, with a key that may do everything in acme's project ``main``."""
    return open_client(make_key())


@pytest.fixture
def proxy(postgres: Cluster) -> Iterator[FaultProxy]:
    """A port in front of the test's PostgreSQL that can refuse, cut, and keep back the answer to a commit."""
    made = FaultProxy(postgres.socket_dir / SOCKET_NAME)
    yield made
    made.close()
