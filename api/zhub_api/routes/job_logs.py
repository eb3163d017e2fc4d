"""``/v1/fine_tuning/jobs/{id}/logs``: the lines that a job's attempts printed, as JSON lines or as a stream."""

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from zhub import states
from zhub.database.sessions import tenant_session
from zhub.errors import NotFoundError, StoreError, UnavailableError
from zhub.queue.job_logs import Chunk, Line, Position, list_chunks, read_chunk, read_lines, read_tail
from zhub.storage.keys import attempts_prefix
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.rights import needs
from zhub_api.routes import job_events
from zhub_api.routes.fine_tuning import job_objects, own_job
from zhub_api.routes.job_events import EventStream, Streams
from zhub_api.streams import EVENTS, LINES, answering

router = APIRouter(prefix="/v1/fine_tuning/jobs")
log = logging.getLogger("zhub.api")


@dataclass(frozen=True)
class _Source:
    """A job's log at the time of a query; ``fences`` are the requested attempts that exist."""

    job_id: uuid.UUID
    attempts: str
    fences: range
    ended: dict[str, Any] | None
    """The job's object, once these attempts can write no more lines; else None."""


@router.get(
    "/{job_id}/logs",
    response_class=StreamingResponse,
    responses=answering(LINES, EVENTS),
    dependencies=[needs("jobs:read")],
)
async def read_logs(
    caller: CallerDep,
    context: ContextDep,
    request: Request,
    job_id: str,
    attempt: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    tail: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    stream: bool = False,
    after: str | None = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """The log of a job, one JSON object a line: ``at``, ``level``, ``logger``, ``message``, ``fence``.

    It has the lines of all attempts in their order, or of one ``attempt``, which counts from 1 and is the ``fence`` of
    its lines; ``tail`` limits it to the last lines. With ``stream`` the lines come as server-sent events until the job,
    or that attempt, has ended; the stream continues after the line with the id ``after``, or with the id in the header
    ``Last-Event-ID``. Its last message is the event ``end`` with the job. Lines come some seconds after they were
    printed. Not in the dialect.
    """
    source = await run_in_threadpool(_source, context, caller, job_id, attempt)
    if not stream:
        lines = await run_in_threadpool(_lines, context, source, attempt, tail)
        return StreamingResponse((f"{line.content}\n" for line in lines), media_type=LINES)
    last_id = last_event_id or after
    start = None if last_id is None else Position.parse(last_id)
    tail_lines = await run_in_threadpool(_lines, context, source, attempt, tail) if tail and start is None else ()
    streams: Streams = request.app.state.streams
    return EventStream(
        streams, caller.org_id, partial(_messages, context, caller, job_id, attempt, source, start, list(tail_lines))
    )


def _source(context: Context, caller: Caller, job_id: str, attempt: int | None) -> _Source:
    with tenant_session(context.engine, caller.org_id) as session:
        job = own_job(session, caller, job_id)
        if attempt is not None and attempt > job.fence:
            raise NotFoundError("attempt", str(attempt), f"The job has had {job.fence}.")
        last = attempt or job.fence
        ended = job.state in states.TERMINAL or last < job.fence
        return _Source(
            job.id,
            attempts_prefix(job.org_id, job.id),
            range(attempt or 1, last + 1),
            job_objects(session, [job])[0] if ended else None,
        )


def _lines(context: Context, source: _Source, attempt: int | None, tail: int | None) -> Iterator[Line]:
    chunks = list_chunks(context.store, source.attempts, fence=attempt)
    if tail is not None:
        return iter(read_tail(context.store, source.attempts, chunks, tail))
    return read_lines(context.store, source.attempts, chunks)


async def _messages(
    context: Context,
    caller: Caller,
    job_id: str,
    attempt: int | None,
    source: _Source,
    start: Position | None,
    lines: list[Line],
    streams: Streams,
) -> AsyncGenerator[str]:
    began = spoke = time.monotonic()
    first = Position(source.fences.start, 0, -1)
    position = max(start or first, first)
    with streams.waking(source.job_id) as woken:
        while time.monotonic() - began < job_events.MAX_STREAM_S:
            for line in lines:
                position = line.position
                yield f"id: {position}\ndata: {line.content}\n\n"
                spoke = time.monotonic()
            woken.clear()
            ended = None
            try:
                # Read the job before its lines: an attempt stores its last lines before its end is recorded.
                source = await run_in_threadpool(_source, context, caller, job_id, attempt)
                lines, position, is_all = await run_in_threadpool(_read_on, context, source, position)
                ended = source.ended if is_all else None
            except (UnavailableError, StoreError) as exc:
                log.warning("a stream of logs waits: %s", exc, extra={"action": "stream_waits"})
                lines = []
            if ended is not None and not lines:
                yield f"event: end\ndata: {json.dumps(ended)}\n\n"
                return
            if time.monotonic() - spoke >= job_events.HEARTBEAT_S:
                yield ": nothing new\n\n"
                spoke = time.monotonic()
            if not lines:
                await job_events.pause(woken)


def _read_on(context: Context, source: _Source, position: Position) -> tuple[list[Line], Position, bool]:
    """The next lines after a position, at most a chunk; where to continue; and whether there are no more lines now."""
    fence, number, line = position
    while True:
        lines = read_chunk(context.store, source.attempts, Chunk(fence, number), after_line=line)
        if lines:
            return lines, position, False
        if lines is not None:
            number, line = number + 1, -1
        elif fence + 1 in source.fences:
            # Once a later attempt has started, only an abandoned worker still writes to this one: skip those lines.
            fence, number, line = fence + 1, 0, -1
        else:
            return [], Position(fence, number, line), True
