"""``/v1/fine_tuning/jobs/{id}/events`` and ``…/metrics``: a job's events, as pages or stream, and its metric series."""

import asyncio
import json
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from zhub import states
from zhub.database.sessions import tenant_session
from zhub.errors import UnavailableError
from zhub.ids import parse_id, public_id
from zhub.models import JobEvent
from zhub.process.shares import Shares
from zhub.process.wakeup import JOBS, Wakeup, job_topic
from zhub.queue import job_events
from zhub.queue.job_events import Cursor
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.pages import page
from zhub_api.rights import needs
from zhub_api.routes.fine_tuning import job_objects, own_job
from zhub_api.streams import EVENTS, answering, ending_with_errors

router = APIRouter(prefix="/v1/fine_tuning/jobs")
log = logging.getLogger("zhub.api")

MAX_STREAM_S = 3600.0  # then the client comes again, with a key that is looked at again
POLL_S = 1.0
HEARTBEAT_S = 15.0
EVENTS_PER_READ = 500


@router.get("/{job_id}/events", response_model=None, responses=answering(EVENTS), dependencies=[needs("jobs:read")])
async def list_events(
    caller: CallerDep,
    context: ContextDep,
    request: Request,
    job_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> dict[str, Any] | StreamingResponse:
    """The events of a job, newest first; or with ``stream`` as server-sent events, oldest first, until the job ends.

    A page has the events older than the event ``after``. A stream has the events newer than ``after``, or newer than
    the event in the header ``Last-Event-ID``. Its last message is the event ``end`` with the job. Streams are not in
    the dialect.
    """
    if not stream:
        return await run_in_threadpool(_page, context, caller, job_id, after, limit)
    job_uuid, cursor = await run_in_threadpool(_begin, context, caller, job_id, last_event_id or after)
    streams: Streams = request.app.state.streams
    return EventStream(streams, caller.org_id, partial(_messages, context, caller, job_id, job_uuid, cursor))


@router.get("/{job_id}/metrics", dependencies=[needs("jobs:read")])
def job_metrics(
    caller: CallerDep, context: ContextDep, job_id: str, points: Annotated[int, Query(ge=4, le=2000)] = 200
) -> dict[str, Any]:
    """The metrics of a job by step: a series for each metric, with at most ``points`` points.

    A longer series keeps its first and last point, and of each stretch between them the lowest and the highest, so no
    extreme is lost; ``count`` is how many points there were. Not in the dialect.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        series = job_events.metric_series(session, own_job(session, caller, job_id).id, points=points)
    return {
        "object": "fine_tuning.job.metrics",
        "job_id": job_id,
        "series": [{"name": metric.name, "count": metric.count, "points": metric.points} for metric in series],
    }


class Streams:
    """Counts the event streams of a process, and wakes them. Only the event loop's thread may use it."""

    def __init__(self, shares: Shares) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.shares = shares

    @property
    def count(self) -> int:
        return self.shares.held

    @contextmanager
    def waking(self, job_id: uuid.UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have new events."""
        topic, woken = job_topic(job_id), asyncio.Event()
        self._waiting[topic].add(woken)
        try:
            yield woken
        finally:
            self._waiting[topic].discard(woken)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def wake(self, topic: str) -> None:
        for woken in self._waiting.get(topic, ()):
            woken.set()


def listen(wakeup: Wakeup, streams: Streams, loop: asyncio.AbstractEventLoop, stopping: threading.Event) -> None:
    """Forward wake-ups about jobs to the streams until ``stopping`` is set. Run it in a thread of its own."""
    while not stopping.is_set():
        topic = wakeup.hear(JOBS, POLL_S)
        if topic is not None:
            with suppress(RuntimeError):  # the loop was closed a moment ago
                loop.call_soon_threadsafe(streams.wake, topic)


class EventStream(StreamingResponse):
    """A stream that leaves ``Streams`` however it ends, also if its client disconnected before it started.

    Where it breaks off, its last message is an error event.
    """

    def __init__(self, streams: Streams, org_id: uuid.UUID, messages: Callable[[Streams], AsyncGenerator[str]]) -> None:
        """Raises TooManyAtOnceError, UnavailableError: there is no place for it."""
        streams.shares.take(org_id)
        # A proxy that collects an answer before it passes it on would keep every event back.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        self._shares, self._org_id, self._messages = streams.shares, org_id, ending_with_errors(messages(streams))
        super().__init__(self._messages, media_type=EVENTS, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._shares.give_back(self._org_id)
            await self._messages.aclose()


async def _messages(
    context: Context, caller: Caller, job_id: str, job_uuid: uuid.UUID, cursor: Cursor, streams: Streams
) -> AsyncGenerator[str]:
    began = spoke = time.monotonic()
    with streams.waking(job_uuid) as woken:
        while time.monotonic() - began < MAX_STREAM_S:
            woken.clear()
            try:
                events, job = await run_in_threadpool(_read, context.engine, caller, job_id, cursor)
            except UnavailableError as exc:
                log.warning("a stream of events waits: %s", exc, extra={"action": "database_away"})
                events, job = [], None
            for event in events:
                cursor = (event.xid, event.position)
                yield f"id: {public_id('event', event.id)}\ndata: {json.dumps(event_object(event))}\n\n"
                spoke = time.monotonic()
            if job is not None:
                yield f"event: end\ndata: {json.dumps(job)}\n\n"
                return
            if time.monotonic() - spoke >= HEARTBEAT_S:
                yield ": nothing new\n\n"
                spoke = time.monotonic()
            if not events:
                await pause(woken)


async def pause(woken: asyncio.Event) -> None:
    """Wait for a wake-up, at most ``POLL_S`` seconds."""
    with suppress(TimeoutError):
        await asyncio.wait_for(woken.wait(), POLL_S)


def _begin(context: Context, caller: Caller, job_id: str, after: str | None) -> tuple[uuid.UUID, Cursor]:
    """The job's id, and the cursor where its stream begins. Raises NotFoundError."""
    with tenant_session(context.engine, caller.org_id) as session:
        job = own_job(session, caller, job_id)
        if after is None:
            return job.id, job_events.START
        return job.id, job_events.cursor_of(session, job.id, parse_id("event", after))


def _read(
    engine: Engine, caller: Caller, job_id: str, cursor: Cursor
) -> tuple[Sequence[JobEvent], dict[str, Any] | None]:
    """The next events; and the job, if it has ended and these are its last events."""
    with tenant_session(engine, caller.org_id) as session:
        # Read the job before its events: if the job has ended, the second query then sees all its events.
        job = own_job(session, caller, job_id)
        events, is_all = job_events.list_final(session, job.id, after=cursor, limit=EVENTS_PER_READ)
        ended = job.state in states.TERMINAL and is_all
        return events, job_objects(session, [job])[0] if ended else None


def _page(context: Context, caller: Caller, job_id: str, after: str | None, limit: int) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        job = own_job(session, caller, job_id)
        before = None if after is None else job_events.cursor_of(session, job.id, parse_id("event", after))
        events, has_more = job_events.list_newest(session, job.id, before=before, limit=limit)
        return page([event_object(event) for event in events], has_more=has_more)


def event_object(event: JobEvent) -> dict[str, Any]:
    return {
        "id": public_id("event", event.id),
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at.timestamp()),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }
