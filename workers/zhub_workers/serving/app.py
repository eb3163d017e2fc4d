"""The Ray Serve app: HTTP in, the engine's lines out. It needs the object store and no database."""

import asyncio
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from pydantic import ValidationError
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from zhub.errors import UnavailableError
from zhub.generation import Ended, Failed, GenerationRequest, Line
from zhub.process.config import Settings
from zhub.process.logs import LogFormat, configure_logging
from zhub.storage.object_store import open_store

log = logging.getLogger("zhub.agent")

APP = "zhub"
MAX_ONGOING_REQUESTS = 320
READY_TIMEOUT_S = 300.0


@serve.deployment(
    name="generation",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    health_check_period_s=10,
    graceful_shutdown_timeout_s=5,
)
class Generation:
    """A replica: one engine on one device."""

    def __init__(
        self, store_url: str, cache_dir: str, device: str | None, log_format: LogFormat, token_sha256: str
    ) -> None:
        configure_logging(log_format)
        self._token_sha256 = token_sha256
        # Imported here, in the replica: the agent imports this module too, and must not wait for torch.
        from zhub_workers.serving.engine import Engine

        self._engine = Engine(open_store(store_url), Path(cache_dir), device)

    async def __call__(self, http_request: Request) -> Response:
        """``POST /generate`` streams one answer as JSON lines; any other path says that the replica is up.

        ``/generate`` answers only who sends the platform's token.
        """
        if http_request.url.path != "/generate":
            return PlainTextResponse("ok")
        if not is_authorized(http_request.headers.get("authorization", ""), self._token_sha256):
            return PlainTextResponse("Only the API asks serving, with the platform's token.", status_code=401)
        try:
            request = GenerationRequest.model_validate_json(await http_request.body())
        except ValidationError as exc:
            return PlainTextResponse(str(exc), status_code=400)
        lines: asyncio.Queue[Line] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            self._engine.submit(request, lambda line: loop.call_soon_threadsafe(lines.put_nowait, line))
        except UnavailableError as exc:
            return PlainTextResponse(str(exc), status_code=503)
        return StreamingResponse(json_lines(lines), media_type="application/x-ndjson")


def is_authorized(authorization: str, token_sha256: str) -> bool:
    """Whether the header carries the token with this digest. Compared by digest, so that Ray never stores the token."""
    scheme, _, token = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(sha256_of(token), token_sha256)


def sha256_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


async def json_lines(lines: "asyncio.Queue[Line]") -> AsyncIterator[str]:
    """One answer, until its last line, as JSON lines."""
    while True:
        line = await lines.get()
        # ASCII, because the API reads lines with httpx, which also ends a line at U+2028 and the like.
        yield line.model_dump_json(ensure_ascii=True) + "\n"
        if isinstance(line, Ended | Failed):
            return


def deploy(settings: Settings, stopping: threading.Event, *, gpus: float) -> None:
    """Run the app on the Ray cluster that this process has joined, or keep the one that runs there already.

    Writes ``ready_file`` once the app answers. Serve restarts its replicas itself; nothing durable lives in them.

    Raises:
        InvalidRequestError: there is no token.
    """
    token_sha256 = sha256_of(settings.require_serving_token())
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=settings.serving_host, port=settings.serving_port),
    )
    app = Generation.options(ray_actor_options={"num_cpus": 0, "num_gpus": gpus}).bind(  # type: ignore[attr-defined]  # the decorator's type hides what it returns
        settings.store_url, str(settings.cache_dir), settings.device, settings.log_format, token_sha256
    )
    serve.run(app, name=APP, route_prefix="/", blocking=False)
    deadline = time.monotonic() + READY_TIMEOUT_S
    url = f"http://{settings.serving_host}:{settings.serving_port}/"
    while not stopping.is_set() and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                log.info("serving at %s", url, extra={"action": "serving"})
                if settings.ready_file is not None:
                    settings.ready_file.write_text("serving\n")
                return
        except httpx.HTTPError:
            pass
        stopping.wait(0.2)
    log.error("serving does not answer at %s", url, extra={"action": "serving_silent"})
