"""Fixtures on the real parts: a PostgreSQL of the tests' own, a directory as object store, and rows to begin with."""

import http.server
import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import open_sessions
import psycopg
import pytest
from folder_lifetime import leave_folders
from frozen import unfreeze
from legal_moves import forbid_illegal_moves
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from xdist.scheduler import LoadScopeScheduling

from zhub.database.logins import ADMIN, OWNER, grant_groups
from zhub.database.migrate import upgrade
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.binaries import find_postgres
from zhub.embedded.postgres import DATABASE, Cluster, Urls, temporary_postgres
from zhub.errors import EmbeddedError
from zhub.models import Agent, BaseModel, Expert, Job
from zhub.queue import jobs
from zhub.storage.directory import DirectoryStore
from zhub.tenancy import keys
from zhub.tenancy.bootstrap import ensure_project
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import SCOPES
from zhub_workers.compute import cores

# Folders whose tests start whole clusters: one cluster at a time, and the stack of the end-to-end tests beside it.
CLUSTERS = {"chaos": "clusters", "contract": "clusters", "e2e": "stack"}

MakeCaller = Callable[..., Caller]
MakeKey = Callable[..., str]
MakeJob = Callable[..., uuid.UUID]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-docker", action="store_true", help="run the tests that need a docker daemon")
    parser.addoption(
        "--run-real-base", action="store_true", help="fetch SmolLM2 (93 MB) where it is not kept, and train on it"
    )


def pytest_configure() -> None:
    # How long an example takes says how busy the machine is.
    hypothesis.settings.register_profile("suite", deadline=None)
    hypothesis.settings.load_profile("suite")
    # Read when torch is loaded, here and in what the tests start: as many threads compute as processes run tests.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-docker"):
        return
    skip = pytest.mark.skip(reason="needs a docker daemon: pass --run-docker")
    for item in items:
        if "docker" in item.keywords:
            item.add_marker(skip)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """What stays in one process where the tests run in several: a file, and folders that start whole clusters.

    The mark ``xdist_group`` would say so, but xdist 3.8 does not find it where pytest 9.2 keeps the ids of tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        return CLUSTERS.get(path.parts[1], str(path))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    try:
        yield
    finally:
        leave_folders(item, nextitem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports go from process to process in UTF-8, and tests log texts that have no such form."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_within_a_session() -> Iterator[None]:
    with open_sessions.guarded():
        yield


@pytest.fixture(scope="session", autouse=True)
def one_core() -> Iterator[None]:
    """What computes in this process has one core: of models so small a second thread is of no use, and other tests run
    beside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores, "usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No server of the tests has a certificate that anybody vouches for: no client reads those of the machine.

    That takes most of the time in which a client is made, and a test of the API makes two or three.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@pytest.fixture(scope="session")
def secret_key() -> str:
    """What keys the hashes of API keys in all tests."""
    return "0123456789abcdef" * 4


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A server with the logins and one migrated database, the template of every test's own."""
    try:
        find_postgres()
    except EmbeddedError as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc))
        pytest.skip(str(exc))
    with temporary_postgres() as cluster:
        upgrade(cluster.urls().owner)
        grant_groups(cluster.urls().admin)
        forbid_illegal_moves(cluster.urls().owner)
        yield cluster


@pytest.fixture(scope="session")
def make_database(postgres: Cluster) -> Callable[..., Urls]:
    """Make a database: a copy of the migrated one, or ``empty``.

    The files are copied: by way of the log, as is the default, making a database of this size and dropping it takes
    twice the processor time.
    """
    numbers = itertools.count(1)

    def make(*, empty: bool = False) -> Urls:
        name = f"test_{next(numbers)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} STRATEGY file_copy")
        template = "template1" if empty else DATABASE
        with psycopg.connect(postgres.url(ADMIN, "postgres"), autocommit=True) as connection:
            connection.execute(statement.format(*map(sql.Identifier, (name, template, OWNER))))
        return postgres.urls(name)

    return make


@pytest.fixture(scope="session")
def drop_database(postgres: Cluster) -> Callable[[Urls], None]:
    """Drop a database, whoever is connected to it."""

    def drop(urls: Urls) -> None:
        with psycopg.connect(postgres.url(ADMIN, "postgres"), autocommit=True) as connection:
            name = sql.Identifier(str(conninfo_to_dict(urls.admin)["dbname"]))
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    return drop


@pytest.fixture
def database(make_database: Callable[..., Urls], drop_database: Callable[[Urls], None]) -> Iterator[Urls]:
    """A migrated database of this test's own: one URL for each role."""
    urls = make_database()
    yield urls
    drop_database(urls)


@pytest.fixture
def unfrozen(database: Urls) -> None:
    """Let this test harm what was published, which the database otherwise refuses."""
    unfreeze(database.owner)


@pytest.fixture
def open_engine() -> Iterator[Callable[[str], Engine]]:
    """Open engines that are closed after the test."""
    opened: list[Engine] = []

    def open_one(url: str, *, pool_size: int = 10) -> Engine:
        opened.append(make_engine(url, pool_size=pool_size))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.dispose()


@pytest.fixture
def system_engine(database: Urls, open_engine: Callable[[str], Engine]) -> Engine:
    """The scheduler's and the agent's view: every tenant."""
    return open_engine(database.system)


@pytest.fixture
def api_engine(database: Urls, open_engine: Callable[[str], Engine]) -> Engine:
    """The API's view: the tenant that a session names, or nothing."""
    return open_engine(database.api)


@pytest.fixture
def owner_engine(database: Urls, open_engine: Callable[[str], Engine]) -> Engine:
    """The tables' owner, who makes organisations: row-level security holds for it too, by no policy of its own."""
    return open_engine(database.owner)


@pytest.fixture
def make_key(system_engine: Engine, secret_key: str) -> MakeKey:
    """Make an API key, and the organisation and project it speaks for where they are new; return the key itself."""

    def make(
        organization: str = "acme",
        project: str = "main",
        *,
        scopes: tuple[str, ...] = SCOPES,
        **columns: Any,
    ) -> str:
        with system_session(system_engine) as session:
            owner = ensure_project(session, organization, project)
            row, key = keys.create_api_key(session, owner, "test", scopes=scopes, secret_key=secret_key)
            for name, value in columns.items():
                setattr(row, name, value)
        return key

    return make


@pytest.fixture
def make_caller(make_key: MakeKey, api_engine: Engine, secret_key: str) -> MakeCaller:
    """Who a new API key speaks for; takes what ``make_key`` takes."""

    def make(*names: str, **options: Any) -> Caller:
        return keys.authenticate(api_engine, make_key(*names, **options), secret_key=secret_key)

    return make


@pytest.fixture
def caller(make_caller: MakeCaller) -> Caller:
    return make_caller()


@pytest.fixture
def make_base_model(system_engine: Engine) -> Callable[..., uuid.UUID]:
    """Make a base model, decomposed unless ``status`` says otherwise; one of the same name is returned as it is."""

    def make(name: str = "tiny", status: str = "ready", **columns: Any) -> uuid.UUID:
        source: dict[str, Any] = {"name": name, "files": [], "hub_id": None, "hub_revision": None}
        basis = {"weights_fingerprint": "w" * 64, "basis_fingerprint": "b" * 64, "basis_key_prefix": f"bases/{name}"}
        with system_session(system_engine) as session:
            base = session.scalar(select(BaseModel).where(BaseModel.name == name))
            if base is None:
                values = (basis if status == "ready" else {}) | columns
                base = BaseModel(name=name, status=status, source=source, **values)
                session.add(base)
                session.flush()
            return base.id

    return make


@pytest.fixture
def make_job(system_engine: Engine, make_base_model: Callable[..., uuid.UUID]) -> MakeJob:
    """Enqueue a job as the API does; ``columns`` change its row. A training job gets the expert it names."""

    def make(caller: Caller, *, kind: str = "train", expert: str = "summer", **columns: Any) -> uuid.UUID:
        base_model_id = make_base_model() if kind != "validate" else None
        with system_session(system_engine) as session:
            expert_id = _expert(session, caller, expert) if kind == "train" else None
            values = {"spec": {}, "base_model_id": base_model_id, "expert_id": expert_id} | columns
            job = Job(org_id=caller.org_id, project_id=caller.project_id, kind=kind, **values)
            jobs.enqueue(session, job, "Enqueued.")
            return job.id

    return make


@pytest.fixture
def make_agent(system_engine: Engine) -> Callable[..., uuid.UUID]:
    """Announce an agent with so many slots, as one that was seen just now."""

    def make(*, cluster: str = "default", slots: int = 1) -> uuid.UUID:
        agent_id = uuid.uuid4()
        with system_session(system_engine) as session:
            session.add(Agent(id=agent_id, cluster=cluster, slots=slots))
        return agent_id

    return make


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def until() -> Callable[..., Any]:
    """Ask again and again until the answer is true, and return it; fail after ``timeout_s``."""

    def wait(question: Callable[[], Any], *, timeout_s: float = 20.0) -> Any:
        give_up = time.monotonic() + timeout_s
        while not (answer := question()):
            assert time.monotonic() < give_up, f"timed out after {timeout_s} s"
            time.sleep(0.01)
        return answer

    return wait


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came over the network; ids are hexadecimal, of a root's parent empty."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    failed: bool
    attributes: dict[str, str]


class TraceReceiver(http.server.ThreadingHTTPServer):
    """An OTLP/HTTP collector that keeps what it gets in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collect)
        self.spans: list[ReceivedSpan] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    attributes = {a.key: a.value.string_value or str(a.value.int_value) for a in span.attributes}
                    self.spans.append(ReceivedSpan(service, span.name, *ids, span.status.code == 2, attributes))


class _Collect(http.server.BaseHTTPRequestHandler):
    server: TraceReceiver

    def do_POST(self) -> None:
        self.server.take(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="session")
def traces() -> Iterator[TraceReceiver]:
    with TraceReceiver() as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield receiver
        receiver.shutdown()


def _expert(session: Session, caller: Caller, name: str) -> uuid.UUID:
    expert = session.scalar(select(Expert).where(Expert.project_id == caller.project_id, Expert.name == name))
    if expert is None:
        expert = Expert(org_id=caller.org_id, project_id=caller.project_id, name=name)
        session.add(expert)
        session.flush()
    return expert.id
