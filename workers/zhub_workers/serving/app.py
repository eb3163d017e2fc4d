"""The Ray Serve app: HTTP in, the engine's lines out. It needs the object store and no database."""

import asyncio
import hashlib
import hmac
import math
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError
from ray import serve
from ray.serve import RunTarget
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from zhub.errors import TooManyAtOnceError
from zhub.generation import EmbeddingRequest, Embeddings, Ended, Failed, GenerationRequest, Line, Text, ToolCall
from zhub.process.config import Settings
from zhub.process.logs import LogFormat, configure_logging
from zhub.storage.object_store import open_store
from zhub_workers.serving import ray_routing
from zhub_workers.serving.keeper import Serving

APP = "zhub"
# Of a replica, of all organisations: far beyond what it answers at a time, because its own scheduler is fair between
# them and what waits before it is not.
MAX_ONGOING_REQUESTS = 4096
MAX_QUEUED_REQUESTS = 1024  # before all replicas, while none of them takes more
DRAIN_S = 120.0
ANSWER_TIMEOUT_S = 5.0
# What an answer comes to in this time is sent at once: each piece costs more on its way to the client than a token of a
# small model costs to compute, and people read no faster.
PIECE_S = 0.05


@serve.deployment(
    name="generation",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=MAX_QUEUED_REQUESTS,
    health_check_period_s=10,
    # A replica that has to go takes no more requests, and ends those that it has.
    graceful_shutdown_timeout_s=DRAIN_S,
)
class Generation:
    """A replica: one engine on one device."""

    def __init__(
        self,
        store_url: str,
        cache_dir: str,
        device: str | None,
        log_format: LogFormat,
        token_sha256: str,
        memory_shares: tuple[float, float],
    ) -> None:
        configure_logging(log_format)
        self._token_sha256 = token_sha256
        # Imported here, in the replica: the agent imports this module too, and must not wait for torch.
        from zhub_workers.serving.engine import Engine, MemoryShares

        self._engine = Engine(open_store(store_url), Path(cache_dir), device, MemoryShares(*memory_shares))

    def check_health(self) -> None:
        """Serve asks this, and replaces a replica that raises a few times in a row."""
        self._engine.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks this every few seconds, for ``replicas_wanted``."""
        return {ray_routing.QUEUE_S: self._engine.queue_s}

    async def __call__(self, http_request: Request) -> Response:
        """``POST /generate`` streams answers as JSON lines, ``POST /embed`` answers with embeddings.

        Both answer only who sends the platform's token. Any other path says whether the engine is well.
        """
        path = http_request.url.path
        if path not in ("/generate", "/embed"):
            try:
                self.check_health()
            except RuntimeError as exc:
                return PlainTextResponse(str(exc), status_code=503)
            return PlainTextResponse("ok")
        if not is_authorized(http_request.headers.get("authorization", ""), self._token_sha256):
            return PlainTextResponse("Only the API asks serving, with the platform's token.", status_code=401)
        body = await http_request.body()
        lines: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def send(line: Any) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        try:
            if path == "/embed":
                cancel = self._engine.submit(EmbeddingRequest.model_validate_json(body), send)
                return await embedding(lines, cancel)
            request = GenerationRequest.model_validate_json(body)
            cancel = self._engine.submit(request, send)
        except ValidationError as exc:
            return PlainTextResponse(str(exc), status_code=400)
        except TooManyAtOnceError as exc:
            return PlainTextResponse(str(exc), status_code=429)
        return StreamingResponse(json_lines(lines, request.n, cancel), media_type="application/x-ndjson")


def is_authorized(authorization: str, token_sha256: str) -> bool:
    """Whether the header carries the token with this digest. Compared by digest, so that Ray never stores the token."""
    scheme, _, token = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(sha256_of(token), token_sha256)


def sha256_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


async def embedding(lines: "asyncio.Queue[Embeddings | Failed]", cancel: Callable[[], object]) -> Response:
    """The one line of a request for embeddings."""
    try:
        line = await lines.get()
    finally:
        cancel()
    return Response(line.model_dump_json(), media_type="application/json")


async def json_lines(lines: "asyncio.Queue[Line]", count: int, cancel: Callable[[], object]) -> AsyncIterator[str]:
    """The lines of ``count`` answers as JSON, until all have ended or the request failed.

    ``cancel`` is called at the end, also where it comes early because the client has left.
    """
    texts_sent_at = -math.inf
    try:
        while count:
            ready = await next_lines(lines, texts_sent_at + PIECE_S)
            # ASCII, because the API reads lines with httpx, which also ends a line at U+2028 and the like.
            yield "".join(line.model_dump_json(ensure_ascii=True) + "\n" for line in joined(ready))
            if isinstance(ready[-1], Failed):
                return
            count -= sum(isinstance(line, Ended) for line in ready)
            if isinstance(ready[-1], Text | ToolCall):
                texts_sent_at = asyncio.get_running_loop().time()
    finally:
        cancel()


async def next_lines(lines: "asyncio.Queue[Line]", until: float) -> list[Line]:
    """The next line, and what follows ``until`` then, of the loop's clock; at once where an answer ends."""
    ready = [await lines.get()]
    try:
        async with asyncio.timeout_at(until):
            while isinstance(ready[-1], Text | ToolCall):
                ready.append(await lines.get())
    except TimeoutError:
        pass
    return ready


def joined(lines: Iterable[Line]) -> list[Line]:
    """The lines, with texts of one answer that follow each other as one."""
    told: list[Line] = []
    for line in lines:
        last = told[-1] if told else None
        if isinstance(line, Text) and isinstance(last, Text) and line.index == last.index:
            told[-1] = Text(
                index=line.index,
                text=last.text + line.text,
                tokens=last.tokens + line.tokens,
                count=last.count + line.count,
            )
        else:
            told.append(line)
    return told


def serving_of(settings: Settings, *, gpus: float) -> Serving:
    """The app on the Ray cluster that this process has joined, for ``keep_serving``.

    Raises:
        InvalidRequestError: there is no token.
    """
    token_sha256 = sha256_of(settings.require_serving_token())
    url = f"http://{settings.serving_host}:{settings.serving_port}"

    def deploy() -> None:
        http = HTTPOptions(host=settings.serving_host, port=settings.serving_port)
        serve.start(proxy_location="HeadOnly", http_options=http)
        app = Generation.options(**replica_options(settings, gpus)).bind(  # type: ignore[attr-defined]  # the decorator's type hides what it returns
            settings.store_url,
            str(settings.cache_dir),
            settings.device,
            settings.log_format,
            token_sha256,
            (settings.serving_memory_share, settings.serving_cache_share),
        )
        # Not until the app runs: where no node has room for it, Serve would wait for ever.
        serve.run_many([RunTarget(app, name=APP, route_prefix="/")], wait_for_applications_running=False)

    return Serving(deploy, partial(_answers, url), serve.shutdown)


def replica_options(settings: Settings, gpus: float) -> dict[str, Any]:
    """How many replicas there are, and what Ray reserves for each."""
    least, most = settings.serving_replicas, settings.serving_max_replicas
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": settings.serving_cpus, "num_gpus": gpus},
        "request_router_config": ray_routing.routing(),
    }
    if most is None or most <= least:
        return options | {"num_replicas": least}
    scaling = {"min_replicas": least, "max_replicas": most, "policy": ray_routing.scaling()}
    return options | {"autoscaling_config": scaling}


def _answers(url: str) -> bool:
    """Whether a replica answers; or is so busy that only Serve says that all is well.

    Raises:
        RuntimeError: Serve has given up starting the app. The message says why.
    """
    if _is_ok(f"{url}/"):
        return True
    app = serve.status().applications.get(APP)
    if app is not None and app.status == "DEPLOY_FAILED":
        raise RuntimeError(f"Ray Serve has given up: {app.message}")
    return app is not None and app.status == "RUNNING" and _is_ok(f"{url}/-/healthz")


def _is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=ANSWER_TIMEOUT_S).status_code == 200
    except httpx.HTTPError:
        return False
