"""What the interface's document says is true, whatever is sent: no 5xx, and each answer is one that it tells of.

Short in the suite; ``make chaos`` sends ``ZHUB_FUZZ_REQUESTS`` to a process of its own, which must not freeze or grow.
"""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fuzzing import Fuzzer, longest_silence
from sqlalchemy import Engine, update

from zhub.cli.database_operations import set_quota
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.generation import EmbeddingRequest, Embeddings, Ended, GenerationRequest, Started, Text
from zhub.manifest import ROUTING_FILE, Z_FILE, FileEntry
from zhub.models import Job
from zhub.process.config import Settings
from zhub.storage.directory import DirectoryStore

REQUESTS = 500
SEED = 20261129
LONG = int(os.environ.get("ZHUB_FUZZ_REQUESTS", "0"))
FREEZE_S = 1.0  # of its own processor time
SILENCE_S = 10.0  # also on a machine that has little time for it
# Of a process of 150 MB, after the first tenth of the requests: caches are full then.
GROWTH_BYTES = 50 << 20


@pytest.fixture
def settings(settings: Settings, run_server: Callable[[FastAPI], str], database: Urls) -> Settings:
    """Those of an API whose serving answers."""
    serving = FastAPI()

    @serving.post("/generate")
    async def generate(request: Request) -> StreamingResponse:
        count = GenerationRequest.model_validate_json(await request.body()).n
        lines = [
            Started(strategy="base", experts=[], reason="by name", prompt_tokens=3),
            Text(text="40"),
            *(Ended(index=index, finish_reason="stop", completion_tokens=2) for index in range(count)),
        ]
        return StreamingResponse(line.model_dump_json() + "\n" for line in lines)

    @serving.post("/embed")
    async def embed(request: Request) -> Embeddings:
        count = len(EmbeddingRequest.model_validate_json(await request.body()).inputs)
        return Embeddings(vectors=[[0.5, -0.5]] * count, prompt_tokens=count)

    return settings.model_copy(update={"serving_url": run_server(serving).removesuffix("/v1")})


@pytest.fixture
def known(
    suite_file: str,
    publish_version: Callable[..., str],
    database: Urls,
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    """A base, a dataset and a version to be named; and as many requests a minute as can be sent."""
    publish_version(files=[FileEntry(name=name, size_bytes=1, sha256=name) for name in (Z_FILE, ROUTING_FILE)])
    store.put("k/manifest.json", io.BytesIO(b"{}"))
    method = {"type": "supervised", "supervised": {"hyperparameters": {}}}
    request = {"model": "tiny", "method": method, "suffix": "summer", "seed": 1, "metadata": {}}
    with system_session(system_engine) as session:
        session.execute(update(Job).where(Job.kind == "train").values(request=request))
    set_quota(database.system, "acme", requests_per_minute=10**9, max_queued=10**6)


def test_every_answer_is_one_that_the_document_tells_of(
    known: None, api_url: str, make_key: Callable[..., str]
) -> None:
    fuzzer = Fuzzer(api_url.removesuffix("/v1"), make_key(), first_seed=SEED)
    fuzzer.run(REQUESTS)
    assert fuzzer.statuses[200] > REQUESTS / 10, fuzzer.statuses


@pytest.mark.skipif(not LONG, reason="set ZHUB_FUZZ_REQUESTS, as `make chaos` does")
def test_an_api_neither_freezes_nor_grows_under_many_requests(
    known: None, api_process: tuple[str, psutil.Process], make_key: Callable[..., str]
) -> None:
    url, process = api_process
    fuzzer = Fuzzer(url, make_key(), first_seed=SEED)
    with longest_silence(url, process) as silence:
        fuzzer.run(LONG // 10)
        before = process.memory_info().rss
        fuzzer.run(LONG)
    after = process.memory_info().rss
    print(f"\n{dict(fuzzer.statuses)}, {silence}, {before >> 20} to {after >> 20} MiB")  # noqa: T201
    assert silence.busy_s < FREEZE_S
    assert silence.wait_s < SILENCE_S
    assert after - before < GROWTH_BYTES


@pytest.fixture
def api_process(settings: Settings, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The API as it is run, and where."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    given = {
        "ZHUB_DATABASE_URL": settings.database_url,
        "ZHUB_STORE_URL": settings.store_url,
        "ZHUB_SECRET_KEY": settings.secret_key.get_secret_value(),
        "ZHUB_SERVING_URL": settings.serving_url,
        "ZHUB_PORT": str(port),
    }
    with (tmp_path / "api.log").open("wb") as log:
        popen = subprocess.Popen([sys.executable, "-m", "zhub_api"], env=os.environ | given, stderr=log)
    try:
        while popen.poll() is None:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.TransportError:
                continue
        yield url, psutil.Process(popen.pid)
    finally:
        popen.terminate()
        popen.wait()
