"""``/healthz`` and ``/readyz``: whether this process answers, and whether to send it requests."""

import asyncio
import logging
from datetime import timedelta

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Engine, func, select
from starlette.concurrency import run_in_threadpool

import zhub
from zhub.database.sessions import system_session
from zhub.errors import UnavailableError
from zhub.models import Agent, Leader
from zhub_api import errors

log = logging.getLogger("zhub.api")

router = APIRouter()

READY_TIMEOUT_S = 3.0
SERVING_TIMEOUT_S = 3.0
SERVING_WAIT_S = 0.7  # of a probe of readiness, which may give up after a second: most routes need no serving
AGENT_SEEN_WITHIN = timedelta(seconds=30)


class Readiness:
    """Asks the database and serving who is there, one question at a time, however many requests wait for the answer.

    A database that is frozen must not hold every thread of this process.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._query: asyncio.Task[tuple[bool, int]] | None = None
        self._probe: asyncio.Task[bool] | None = None
        self._serving = False

    async def leader_and_agents(self) -> tuple[bool, int]:
        """Whether a scheduler leads, and how many agents were seen lately.

        Raises:
            TimeoutError, UnavailableError: the database does not answer.
        """
        if self._query is None or self._query.done():
            self._query = asyncio.create_task(run_in_threadpool(_leader_and_agents, self._engine))
        async with asyncio.timeout(READY_TIMEOUT_S):
            return await asyncio.shield(self._query)

    async def serving_answers(self, serving: httpx.AsyncClient) -> bool:
        """Whether the Serve app can answer a chat request; where it lets wait, what was known last."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(_answers(serving))
        done, _ = await asyncio.wait({self._probe}, timeout=SERVING_WAIT_S)
        if done:
            self._serving = self._probe.result()
        return self._serving


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """This process answers, also while it drains, while its database is away, and while all of its threads wait.

    A process whose interpreter is held does not: restart one that is silent for more than a few seconds.
    """
    return {"status": "ok", "version": zhub.__version__}


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """Whether to send requests here: 503 with a reason while the database is away, and once told to stop.

    ``scheduler`` says whether one leads, ``agents`` how many were seen lately, ``serving`` whether it answers.
    """
    if request.app.state.draining.is_set():
        return _not_ready("draining", "This process was told to stop and finishes what it has begun.")
    readiness: Readiness = request.app.state.readiness
    serving = readiness.serving_answers(request.app.state.serving.client)
    try:
        (leads, agents), answers = await asyncio.gather(readiness.leader_and_agents(), serving)
    except (TimeoutError, UnavailableError) as exc:
        log.warning("not ready: %s", exc or "the database does not answer", extra={"action": "database_away"})
        return _not_ready("unavailable", "The database does not answer.")
    return JSONResponse({"status": "ok", "scheduler": leads, "agents": agents, "serving": answers})


async def _answers(serving: httpx.AsyncClient) -> bool:
    try:
        return (await serving.get("/", timeout=SERVING_TIMEOUT_S)).is_success
    except httpx.HTTPError:
        return False


def _leader_and_agents(engine: Engine) -> tuple[bool, int]:
    with system_session(engine) as session:
        leaders = session.scalar(select(func.count()).select_from(Leader).where(Leader.lease_until > func.now()))
        recent = Agent.seen_at > func.now() - AGENT_SEEN_WITHIN
        return bool(leaders), session.scalar(select(func.count()).select_from(Agent).where(recent)) or 0


def _not_ready(code: str, reason: str) -> JSONResponse:
    return JSONResponse(errors.envelope(503, reason, code=code), 503)
