"""The ASGI application."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from sqlalchemy import func, select

import zhub
from zhub.config import Settings
from zhub.db import make_engine, system_session
from zhub.errors import ZhubError
from zhub.migrate import check_at_head
from zhub.models import Agent, Leader
from zhub.store import open_store
from zhub.wakeup import open_wakeup
from zhub_api import (
    chat,
    errors,
    evaluations,
    files,
    fine_tuning,
    graders,
    job_events,
    models,
    promotions,
    schedules,
    webhooks,
)
from zhub_api.context import Context, ContextDep


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
    app.state.context = Context(settings, engine, store, open_wakeup(settings.redis_url))
    app.state.streams = job_events.Streams()
    errors.install(app)
    for part in (
        files, fine_tuning, job_events, graders, evaluations, promotions, schedules, models, chat, webhooks,
    ):  # fmt: skip
        app.include_router(part.router)

    @app.middleware("http")
    async def request_id(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        request.state.request_id = request.headers.get("x-request-id") or f"req_{uuid.uuid4().hex}"
        response = await call_next(request)
        response.headers["x-request-id"] = request.state.request_id
        return response

    @app.middleware("http")
    async def one_dialect_prefix(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Take ``/v1/v1/…`` for ``/v1/…``: what a base URL that ends in /v1 becomes in a client that appends it."""
        if request.scope["path"].startswith("/v1/v1/"):
            request.scope["path"] = request.scope["path"].removeprefix("/v1")
        return await call_next(request)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok", "version": zhub.__version__}

    @app.get("/readyz")
    def readyz(context: ContextDep) -> dict[str, Any]:
        """The database answers; whether a scheduler leads and how many agents were seen lately."""
        with system_session(context.engine) as session:
            leading = session.scalar(select(func.count()).select_from(Leader).where(Leader.lease_until > func.now()))
            agents = session.scalar(
                select(func.count()).select_from(Agent).where(Agent.seen_at > func.now() - timedelta(seconds=30))
            )
        return {"status": "ok", "scheduler": bool(leading), "agents": agents}

    return app
