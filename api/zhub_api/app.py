"""The ASGI application."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial

import httpx
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import zhub
from zhub.database.migrate import check_at_head
from zhub.database.sessions import make_engine
from zhub.errors import ZhubError
from zhub.identity.provider import Provider
from zhub.process.buckets import open_buckets
from zhub.process.config import Settings
from zhub.process.shares import Shares
from zhub.process.threads import start_vital
from zhub.process.tracing import start_tracing
from zhub.process.wakeup import open_wakeup
from zhub.storage.object_store import open_store
from zhub_api import bodies, errors, health, observed
from zhub_api.context import Context
from zhub_api.grant_watch import GrantWatch
from zhub_api.keeping import CompletionKeeper
from zhub_api.known_parameters import KnownKeylessQuery, KnownQuery
from zhub_api.metering import Meter
from zhub_api.request_rates import Rated, RateHeaders, RequestRates
from zhub_api.routes import (
    alias_requests,
    aliases,
    catalogue,
    chat,
    classification_datasets,
    completion_datasets,
    completion_settings,
    completions,
    embeddings,
    evaluations,
    expert_comparisons,
    expert_exports,
    expert_imports,
    expert_states,
    expert_strengths,
    experts,
    feedback,
    files,
    fine_tuning,
    graders,
    grants,
    job_events,
    job_logs,
    lineage,
    models,
    neighbours,
    organization,
    organization_costs,
    organization_usage,
    promotions,
    provenance,
    releases,
    schedules,
    shadows,
    stored_completions,
    webhooks,
)
from zhub_api.routes.administration import audit_logs, keys, login, me, platform, projects, service_accounts, users
from zhub_api.serving_client import Serving
from zhub_api.shadowing import Shadowing
from zhub_api.spent_budgets import SpentBudgets
from zhub_api.text import CheckedTexts

PROBES = 16
THREADS = 40  # that FastAPI runs `def` routes in


def create_app(settings: Settings) -> FastAPI:
    """Build the application on its settings' parts.

    Raises:
        InvalidRequestError: the secret key is missing or short.
        SchemaVersionError: the database is not at this release's revision.
        UnavailableError: the database does not answer.
    """
    context = _open_context(settings)
    app = FastAPI(
        title="zhub",
        version=zhub.__version__,
        lifespan=_lifespan,
        docs_url="/docs",
        redoc_url=None,
        routes=_parts().routes,
    )
    app.state.context = context
    app.state.provider = _provider_of(settings)
    app.state.threads = Shares("requests", places=THREADS, per_org=settings.requests_per_org)
    app.state.grader_runs = Shares("grader runs", places=settings.grader_runs, per_org=settings.grader_runs_per_org)
    app.state.streams = job_events.Streams(
        Shares("event streams", places=settings.streams, per_org=settings.streams_per_org)
    )
    app.state.shadowing = Shadowing(context.engine)
    app.state.readiness = health.Readiness(context.engine)
    app.state.keeper = CompletionKeeper(context.engine)
    app.state.draining = threading.Event()
    app.state.spent_budgets = SpentBudgets(context.engine)
    app.state.rates = RequestRates(context.engine, open_buckets(settings.redis_url))
    errors.install(app)
    _add_middleware(app)
    return app


def _provider_of(settings: Settings) -> Provider | None:
    if settings.oidc_issuer is None or settings.oidc_client_id is None:
        return None
    return Provider(settings.oidc_issuer, settings.oidc_client_id)


@cache
def _parts() -> APIRouter:
    """All routes. They are the same for every application of this process, and FastAPI takes long to analyse them."""
    router = APIRouter(responses=errors.ANSWERS, dependencies=[CheckedTexts])
    for part in (
        files, fine_tuning, job_events, job_logs, graders, evaluations, aliases, alias_requests, promotions,
        schedules, models, experts, catalogue, grants, neighbours, expert_comparisons, expert_imports, expert_exports,
        expert_states, expert_strengths, lineage, provenance, classification_datasets, releases, shadows, chat,
        stored_completions, completion_settings, completion_datasets, completions, embeddings, feedback, webhooks,
        organization, organization_usage, organization_costs, me, login, audit_logs, projects, users, keys,
        service_accounts, platform,
    ):  # fmt: skip
        router.include_router(part.router, dependencies=[Rated, KnownQuery])
    for part in (observed, health):
        router.include_router(part.router)
    for keyless in (me.keyless, login.keyless):
        router.include_router(keyless, dependencies=[KnownKeylessQuery])
    return router


def _open_context(settings: Settings) -> Context:
    settings.require_secret_key()
    store = open_store(settings.store_url)
    # Each of the threads needs a connection for a moment.
    engine = make_engine(settings.database_url, pool_size=20)
    try:
        check_at_head(engine)
    except ZhubError:
        engine.dispose()
        raise
    return Context(settings, engine, store, open_wakeup(settings.redis_url))


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The connections to serving, and the thread that hears about events of jobs, while the application runs."""
    context: Context = app.state.context
    # One for each answer, and for who asks whether serving is there.
    limits = httpx.Limits(max_connections=context.settings.answers + PROBES, max_keepalive_connections=100)
    token = context.settings.serving_token.get_secret_value()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    serving_client = httpx.AsyncClient(base_url=context.settings.serving_url, limits=limits, headers=headers)
    async with serving_client as serving, _parts().lifespan_context(app):
        places = Shares(
            "unanswered requests", places=context.settings.answers, per_org=context.settings.answers_per_org
        )
        observed.CHAT_UNANSWERED.set_function(lambda: places.held)
        meter = Meter(context.engine)
        watch = GrantWatch(context.engine)
        app.state.serving = Serving(serving, places, meter, watch)
        stopping, loop = threading.Event(), asyncio.get_running_loop()
        listening = partial(job_events.listen, context.wakeup, app.state.streams, loop, stopping)
        start_vital(listening, name="hints", stopping=stopping)
        keeper: CompletionKeeper = app.state.keeper
        start_vital(partial(keeper.run, stopping), name="keeper", stopping=stopping)
        start_vital(partial(meter.run, stopping), name="meter", stopping=stopping)
        start_vital(partial(watch.run, stopping), name="rights", stopping=stopping)
        yield
        stopping.set()
        await app.state.shadowing.stop()
        endings = (keeper.wait_drained, meter.flush, watch.wait_idle)
        await asyncio.gather(*(asyncio.to_thread(ending) for ending in endings))
    context.engine.dispose()


def _add_middleware(app: FastAPI) -> None:
    """The innermost first."""
    app.add_middleware(bodies.GuardedBodies)
    app.add_middleware(_OneDialectPrefix)
    app.add_middleware(RateHeaders)
    app.add_middleware(observed.Observed)
    if start_tracing("zhub-api"):
        # Imported here, because it comes with the extra `otel`.
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(
            app, excluded_urls="/healthz$,/readyz$,/metrics$", exclude_spans=["receive", "send"]
        )


class _OneDialectPrefix:
    """Take ``/v1/v1/…`` for ``/v1/…``: what a base URL that ends in /v1 becomes in a client that appends it.

    No ``app.middleware("http")``: Starlette's would end an answer that breaks off as if it were whole.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/v1/"):
            scope["path"] = scope["path"].removeprefix("/v1")
        await self._app(scope, receive, send)
