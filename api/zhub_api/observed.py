"""What the API reports about itself: a request's id, one log record and the metrics of each, and ``/metrics``."""

import logging
import time
import uuid

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zhub.process.logs import log_fields

log = logging.getLogger("zhub.api")

router = APIRouter()

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROBES = ("/healthz", "/readyz", "/metrics")  # requested every few seconds by machines: counted, not logged
MAX_REQUEST_ID = 128  # characters of an id that a client chooses

REQUESTS = Counter("zhub_http_requests_total", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram(
    "zhub_http_request_duration_seconds",
    "From a request's head to the end of its answer, of a stream to its last piece.",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
IN_FLIGHT = Gauge("zhub_http_requests_in_flight", "Requests whose answer has not ended.")
CHAT_TOKENS = Counter("zhub_chat_tokens_total", "Tokens of chat completions that were answered.", ["direction"])
CHAT_REQUESTS = Counter("zhub_chat_requests_total", "Requests that serving began to answer.", ["strategy"])
CHAT_UNANSWERED = Gauge("zhub_chat_unanswered_requests", "Requests of models that wait for serving, or are answered.")
CHAT_FIRST_TOKEN_SECONDS = Histogram(
    "zhub_chat_first_token_seconds",
    "From asking serving until the first piece of an answer.",
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
CHAT_TOKEN_SECONDS = Histogram(
    "zhub_chat_token_seconds",
    "Between two tokens of an answer after its first piece, on average.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
COMPLETIONS_STORED = Counter("zhub_completions_stored_total", "Completions that were stored.")
COMPLETIONS_LOST = Counter(
    "zhub_completions_lost_total", "Completions that were to be stored, and are not.", ["reason"]
)


class Observed:
    """The outermost middleware: every answer has an id, is counted when it has ended, and is logged without its query.

    Queries may hold secrets of other systems, and headers hold API keys: neither is ever logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")[:MAX_REQUEST_ID] or f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        path, started, status = scope["path"], time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with IN_FLIGHT.track_inprogress(), log_fields(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                _record(scope, path, status, time.perf_counter() - started)


def _record(scope: Scope, path: str, status: int, duration_s: float) -> None:
    # By the route's template: a path holds ids, and each label value costs Prometheus memory for ever.
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in METHODS else "other"
    REQUESTS.labels(method, route, str(status)).inc()
    SECONDS.labels(method, route).observe(duration_s)
    if route in PROBES and status < 500:
        return
    org_id = scope["state"].get("org_id")
    log.info(
        "%s %s %d in %.3f s",
        method,
        path,
        status,
        duration_s,
        extra={
            "action": "request",
            "method": method,
            "path": path,
            "route": route,
            "status": status,
            "duration_s": round(duration_s, 6),
            **({} if org_id is None else {"org_id": org_id}),
        },
    )


@router.get("/metrics", include_in_schema=False)
def metrics() -> Response:
    """This process's metrics, for Prometheus. It queries no other process, so it always answers."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
