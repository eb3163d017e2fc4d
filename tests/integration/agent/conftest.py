"""One agent's cluster, a training that the test ends, and a job that trains."""

import hashlib
import io
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_rig import AgentRig, Training, thread_launcher
from pydantic import SecretStr
from sqlalchemy import Engine

from zhub.database.sessions import tenant_session
from zhub.datasets import files
from zhub.embedded.postgres import Urls
from zhub.process.config import Settings
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import dataset_key
from zhub.tenancy.keys import Caller
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import Agent


@pytest.fixture
def rig(
    system_engine: Engine, database: Urls, store: DirectoryStore, tmp_path: Path, until: Callable[..., Any]
) -> AgentRig:
    settings = Settings(
        database_url=database.system,
        store_url=store.root.as_uri(),
        secret_key=SecretStr("not needed"),
        cache_dir=tmp_path / "cache",
    )
    return AgentRig(system_engine, settings, store, until)


@pytest.fixture
def training() -> Iterator[Training]:
    made = Training()
    yield made
    made.finish.set()


@pytest.fixture
def job_id(make_job: Callable[..., uuid.UUID], caller: Caller) -> uuid.UUID:
    return make_job(caller)


@pytest.fixture
def send(rig: AgentRig, caller: Caller) -> Callable[[bytes], uuid.UUID]:
    """Upload a dataset file; return the id of its version."""

    def put(content: bytes, name: str = "sums.jsonl") -> uuid.UUID:
        sha256 = hashlib.sha256(content).hexdigest()
        rig.store.put(dataset_key(caller.org_id, sha256), io.BytesIO(content))
        with tenant_session(rig.engine, caller.org_id) as session:
            version = files.register(
                session, caller, filename=name, purpose="fine-tune", size_bytes=len(content), sha256=sha256
            )
        return version.id

    return put


@pytest.fixture
def running(rig: AgentRig, job_id: uuid.UUID, training: Training) -> tuple[Agent, ThreadLauncher]:
    """The job runs under an agent."""
    held = thread_launcher(training)
    agent = rig.agent(held)
    rig.drive(agent, job_id, "running")
    return agent, held
