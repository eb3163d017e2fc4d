"""The API on a loopback port of its own, in front of a database and a store of the test's own."""

import asyncio
import hashlib
import io
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import uvicorn
from claims import claim_one
from classifying import Classifying
from fastapi import FastAPI
from fault_proxy import FaultProxy
from pydantic import SecretStr
from sqlalchemy import Engine, func, text
from suites import METHOD, ROWS, manifest_of

from zhub.database.sessions import system_session
from zhub.datasets import files
from zhub.datasets.validation import validate
from zhub.embedded.postgres import SOCKET_NAME, Cluster, Urls
from zhub.models import ProjectMember, User
from zhub.process.config import Settings
from zhub.registry.publish import publish
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import dataset_key
from zhub.tenancy import keys
from zhub.tenancy.bootstrap import ensure_project
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import TENANT_SCOPES
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


@pytest.fixture(scope="session", autouse=True)
def servers_end_soon() -> Iterator[None]:
    """uvicorn looks ten times a second whether it shall end, and then waits a tenth for its connections."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
        yield


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
def make_member(system_engine: Engine, secret_key: str) -> Callable[..., str]:
    """Make a person with a role in an organisation, or in a project of it, and return their key to the project."""
    numbers = itertools.count(1)

    def make(
        role: str = "member", project_role: str | None = None, *, organization: str = "acme", project: str = "main",
        email: str | None = None, scopes: tuple[str, ...] = TENANT_SCOPES, **columns: Any
    ) -> str:  # fmt: skip
        with system_session(system_engine) as session:
            place = ensure_project(session, organization, project)
            address = email or f"{role}{next(numbers)}@{organization}.org"
            user = User(org_id=place.org_id, kind="person", name=address, email=address, role=role)
            session.add(user)
            session.flush()
            if project_role is not None:
                within = {"org_id": place.org_id, "project_id": place.id, "user_id": user.id}
                session.add(ProjectMember(role=project_role, **within))
            row, key = keys.create_api_key(
                session, place, "test", scopes=scopes, secret_key=secret_key, user_id=user.id
            )
            for name, value in columns.items():
                setattr(row, name, value)
        return key

    return make


@pytest.fixture
def open_admin(api_url: str) -> Iterator[Callable[[str], Any]]:
    """Open the admin half of the unmodified client with a key: ``client.admin.organization``."""
    opened: list[openai.OpenAI] = []

    def open_one(key: str) -> Any:
        opened.append(openai.OpenAI(base_url=api_url, api_key=key, admin_api_key=key, max_retries=0, timeout=20.0))
        return opened[-1].admin.organization

    yield open_one
    for client in opened:
        client.close()


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    """Send a request beside the dialect, and return its answer."""

    def send(method: str, path: str, body: Any = None) -> Any:
        return getattr(client, method)(path, cast_to=object, **({"body": body} if body is not None else {}))

    return send


@pytest.fixture
def proxy(postgres: Cluster) -> Iterator[FaultProxy]:
    """A port in front of the test's PostgreSQL that can refuse, cut, and keep back the answer to a commit."""
    made = FaultProxy(postgres.socket_dir / SOCKET_NAME)
    yield made
    made.close()


@pytest.fixture
def make_file(system_engine: Engine, store: DirectoryStore) -> Callable[..., str]:
    """Put a dataset file into a project, checked; return its id."""

    def make(caller: Caller, content: bytes = ROWS, name: str = "suite.jsonl", purpose: str = "fine-tune") -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        store.put(dataset_key(caller.org_id, sha256), io.BytesIO(content))
        with system_session(system_engine) as session:
            version = files.register(
                session, caller, filename=name, purpose=purpose, size_bytes=len(content), sha256=sha256
            )
            files.write_validation(session, version.id, files.validation_report(validate(io.BytesIO(content))))
        return f"file-{version.id.hex}"

    return make


@pytest.fixture
def suite_file(make_file: Callable[..., str], make_base_model: Callable[..., uuid.UUID], caller: Caller) -> str:
    make_base_model()
    return make_file(caller)


@pytest.fixture
def publish_version(system_engine: Engine, make_job: Callable[..., uuid.UUID], caller: Caller) -> Callable[..., str]:
    """Make a version of an expert; return its name."""

    def make(expert: str = "summer", *, owner: Caller = caller, **changed: Any) -> str:
        job_id = make_job(owner, expert=expert, state="admitted", admitted_at=text("now()"))
        with system_session(system_engine) as session:
            claim = claim_one(session, "train")
            assert claim is not None and claim.job_id == job_id
            version = publish(session, job_id, claim.fence, manifest_of(job_id, **changed), "k", 7)
            return f"main.{expert}@v{version.version}"

    return make


@pytest.fixture
def classifying(
    system_engine: Engine,
    store: DirectoryStore,
    tmp_path: Path,
    caller: Caller,
    make_job: Callable[..., uuid.UUID],
    make_base_model: Callable[..., uuid.UUID],
) -> Classifying:
    """A base model, and what makes experts on it and the rows of a classifier of them."""
    make_base_model(is_default=True)
    (tmp_path / "rows").mkdir()
    return Classifying(system_engine, store, tmp_path / "rows", caller, make_job)


@pytest.fixture
def admitted(make_job: Callable[..., uuid.UUID], caller: Caller) -> Callable[..., uuid.UUID]:
    """Make a job that agents may claim."""

    def make(**options: Any) -> uuid.UUID:
        return make_job(caller, **({"state": "admitted", "admitted_at": func.now()} | options))

    return make


@pytest.fixture
def train_expert(client: openai.OpenAI, suite_file: str) -> Callable[..., Any]:
    """POST /v1/fine_tuning/jobs: train the expert ``summer``."""

    def create(**options: Any) -> Any:
        return client.fine_tuning.jobs.create(
            model="tiny", training_file=suite_file, method=METHOD, suffix="summer", extra_body=options
        )

    return create
