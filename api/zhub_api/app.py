"""The ASGI application."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Engine, func, select
from starlette.concurrency import run_in_threadpool

import zhub
from zhub.database.migrate import check_at_head
from zhub.database.sessions import make_engine, system_session
from zhub.errors import UnavailableError, ZhubError
from zhub.models import Agent, Leader
from zhub.process.config import Settings
from zhub.process.tracing import start_tracing
from zhub.process.wakeup import open_wakeup
from zhub.storage.object_store import open_store
from zhub_api import errors, observed
from zhub_api.context import Context, ContextDep
from zhub_api.routes import (
    chat,
    evaluations,
    feedback,
    files,
    fine_tuning,
    graders,
    job_events,
    job_logs,
    models,
    promotions,
    schedules,
    webhooks,
)

log = logging.getLogger("zhub.api")

READY_TIMEOUT_S = 3.0


def create_app(settings: Settings) -> FastAPI:
    """Build the application on its settings' parts.

    Raises:
        InvalidRequestError: the secret key is missing or short.
        SchemaVersionError: the database is not at this release's revision.
        UnavailableError: the database does not answer.
    """
    settings.require_secret_key()
    store = open_store(settings.store_url)
    # FastAPI runs `def` routes in 40 threads; each needs a connection for a moment.
    engine = make_engine(settings.database_url, pool_size=20)
    try:
        check_at_head(engine)
    except ZhubError:
        engine.dispose()
        raise

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(
            base_url=settings.serving_url, limits=httpx.Limits(max_connections=200)
        ) as serving:
            app.state.serving = serving
            stopping, loop = threading.Event(), asyncio.get_running_loop()
            listening = (app.state.context.wakeup, app.state.streams, loop, stopping)
            threading.Thread(target=job_events.listen, args=listening, daemon=True, name="hints").start()
            yield
            stopping.set()
        engine.dispose()

    app = FastAPI(title="zhub", version=zhub.__version__, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.state.draining, app.state.looking = threading.Event(), None
    app.state.context = Context(settings, engine, store, open_wakeup(settings.redis_url))
    app.state.streams = job_events.Streams()
    errors.install(app)
    for part in (
        files, fine_tuning, job_events, job_logs, graders, evaluations, promotions, schedules, models, chat, feedback,
        webhooks, observed,
    ):  # fmt: skip
        app.include_router(part.router)

    @app.middleware("http")
    async def one_dialect_prefix(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Take ``/v1/v1/…`` for ``/v1/…``: what a base URL that ends in /v1 becomes in a client that appends it."""
        if request.scope["path"].startswith("/v1/v1/"):
            request.scope["path"] = request.scope["path"].removeprefix("/v1")
        return await call_next(request)

    app.add_middleware(observed.Observed)
    if start_tracing("zhub-api"):
        # Imported here, because it comes with the extra `otel`.
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(
            app, excluded_urls="/healthz$,/readyz$,/metrics$", exclude_spans=["receive", "send"]
        )

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """This process answers, also while it drains and while its database is away."""
        return {"status": "ok", "version": zhub.__version__}

    @app.get("/readyz")
    async def readyz(context: ContextDep) -> JSONResponse:
        """Whether to send requests here: 503 with a reason while the database is away, and once told to stop.

        ``scheduler`` says whether one leads, ``agents`` how many were seen lately.
        """
        if app.state.draining.is_set():
            return _not_ready("draining", "This process was told to stop and finishes what it has begun.")
        # One look at a time, however many ask: a database that is frozen must not hold every thread.
        if app.state.looking is None or app.state.looking.done():
            app.state.looking = asyncio.create_task(run_in_threadpool(_look, context.engine))
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                leading, agents = await asyncio.shield(app.state.looking)
        except (TimeoutError, UnavailableError) as exc:
            log.warning("not ready: %s", exc or "the database does not answer", extra={"action": "database_away"})
            return _not_ready("unavailable", "The database does not answer.")
        return JSONResponse({"status": "ok", "scheduler": leading, "agents": agents})

    return app


def _look(engine: Engine) -> tuple[bool, int]:
    """Whether a scheduler leads, and how many agents were seen lately."""
    with system_session(engine) as session:
        leading = session.scalar(select(func.count()).select_from(Leader).where(Leader.lease_until > func.now()))
        recent = Agent.seen_at > func.now() - timedelta(seconds=30)
        return bool(leading), session.scalar(select(func.count()).select_from(Agent).where(recent)) or 0


def _not_ready(code: str, reason: str) -> JSONResponse:
    return JSONResponse(errors.envelope(503, reason, code=code), 503)
