"""``/v1/schedules``: schedules that submit trainings automatically."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.errors import ConflictError
from zhub.ids import parse_id, public_id
from zhub.models import Alias, Dataset, Schedule, ScheduleTick
from zhub.process.wakeup import SCHEDULER
from zhub.schedules import cron, definitions, firing
from zhub.tenancy import audit
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import Search, page
from zhub_api.rights import needs
from zhub_api.routes.aliases import alias_objects

router = APIRouter(prefix="/v1/schedules")
SHOWN_RUNS = 5


@router.post("", dependencies=[needs("jobs:write")])
def create_schedule(caller: CallerDep, context: ContextDep, request: definitions.ScheduleRequest) -> dict[str, Any]:
    """Train on the newest version of a dataset, at the times of a cron expression or after certain events."""
    _require_promoting(caller, request)
    graders = definitions.read_graders(request)
    with tenant_session(context.engine, caller.org_id) as session:
        made = schedule_objects(session, [definitions.create(session, caller, request, graders)])[0]
        audit.record(session, caller, "schedule.created", made["id"], after={"name": made["name"]})
        return made


@router.get("", dependencies=[needs("jobs:read")])
def list_schedules(
    caller: CallerDep,
    context: ContextDep,
    status: Annotated[Literal["active", "paused"] | None, Query()] = None,
    search: Search = None,
) -> dict[str, Any]:
    """The project's schedules, by name. ``search`` looks in the names of schedule, dataset, base and expert."""
    paused = None if status is None else status == "paused"
    with tenant_session(context.engine, caller.org_id) as session:
        listed = definitions.list_schedules(session, caller.project_id, paused=paused, search=search)
        return page(schedule_objects(session, listed), has_more=False)


@router.get("/{schedule_id}", dependencies=[needs("jobs:read")])
def retrieve_schedule(caller: CallerDep, context: ContextDep, schedule_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return schedule_objects(session, [_own(session, caller, schedule_id)])[0]


@router.put("/{schedule_id}", dependencies=[needs("jobs:write")])
def replace_schedule(
    caller: CallerDep, context: ContextDep, schedule_id: str, request: definitions.ScheduleRequest
) -> dict[str, Any]:
    """Change a schedule to what the body says. Its earlier ticks stay."""
    _require_promoting(caller, request)
    graders = definitions.read_graders(request)
    with tenant_session(context.engine, caller.org_id) as session:
        own = _own(session, caller, schedule_id, lock=True)
        changed = definitions.replace(session, caller, own, request, graders)
        audit.record(session, caller, "schedule.updated", schedule_id, after={"name": changed.name})
        return schedule_objects(session, [changed])[0]


@router.patch("/{schedule_id}", dependencies=[needs("jobs:write")])
def edit_schedule(
    caller: CallerDep, context: ContextDep, schedule_id: str, changes: Annotated[dict[str, Any], Body()]
) -> dict[str, Any]:
    """Change the fields that the body has, in a training too: a JSON merge patch (RFC 7396) of the body of ``PUT``.

    ``null`` removes a field; a grader and a gate are replaced as a whole. What has come since the schedule fired last
    counts on (feedback, new data, the next tick), unless it is given another expert, dataset or time.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        own = _own(session, caller, schedule_id)
        request = definitions.changed_request(session, caller, own, changes)
    _require_promoting(caller, request)
    graders = definitions.read_graders(request)
    with tenant_session(context.engine, caller.org_id) as session:
        own = _own(session, caller, schedule_id, lock=True)
        if definitions.changed_request(session, caller, own, changes) != request:
            raise ConflictError("Somebody else has changed the schedule at the same moment. Look at it, and try again.")
        edited = definitions.replace(session, caller, own, request, graders)
        audit.record(session, caller, "schedule.updated", schedule_id, after={"fields": sorted(changes)})
        return schedule_objects(session, [edited])[0]


@router.delete("/{schedule_id}", dependencies=[needs("jobs:write")])
def delete_schedule(caller: CallerDep, context: ContextDep, schedule_id: str) -> dict[str, Any]:
    """Delete a schedule: it does not fire any more. Its jobs stay."""
    with tenant_session(context.engine, caller.org_id) as session:
        definitions.delete(session, _own(session, caller, schedule_id, lock=True))
        audit.record(session, caller, "schedule.deleted", schedule_id)
    return {"id": schedule_id, "object": "schedule", "deleted": True}


@router.post("/{schedule_id}/pause", dependencies=[needs("jobs:write")])
def pause_schedule(caller: CallerDep, context: ContextDep, schedule_id: str) -> dict[str, Any]:
    """Stop a schedule from firing until it is resumed."""
    with tenant_session(context.engine, caller.org_id) as session:
        schedule = _own(session, caller, schedule_id, lock=True)
        definitions.pause(session, schedule)
        return schedule_objects(session, [schedule])[0]


@router.post("/{schedule_id}/resume", dependencies=[needs("jobs:write")])
def resume_schedule(caller: CallerDep, context: ContextDep, schedule_id: str) -> dict[str, Any]:
    """Let a schedule fire again from its next tick on."""
    with tenant_session(context.engine, caller.org_id) as session:
        schedule = _own(session, caller, schedule_id, lock=True)
        definitions.resume(session, schedule)
        return schedule_objects(session, [schedule])[0]


@router.post("/{schedule_id}/run", dependencies=[needs("jobs:write")])
def run_schedule(caller: CallerDep, context: ContextDep, schedule_id: str) -> dict[str, Any]:
    """Fire a schedule now; the response is the tick."""
    with tenant_session(context.engine, caller.org_id) as session:
        answer = tick_object(firing.run_now(session, _own(session, caller, schedule_id, lock=True)))
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("/{schedule_id}/ticks", dependencies=[needs("jobs:read")])
def list_ticks(
    caller: CallerDep, context: ContextDep, schedule_id: str, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """The newest ticks of a schedule, with their outcomes."""
    with tenant_session(context.engine, caller.org_id) as session:
        ticks = firing.list_ticks(session, _own(session, caller, schedule_id), limit=limit)
        return page([tick_object(tick) for tick in ticks], has_more=False)


def _require_promoting(caller: Caller, request: definitions.ScheduleRequest) -> None:
    if request.training.get("promotion") is not None:
        caller.require("models:write")


def _own(session: Session, caller: Caller, schedule_id: str, *, lock: bool = False) -> Schedule:
    return definitions.get(session, caller.project_id, parse_id("schedule", schedule_id), lock=lock)


def schedule_objects(session: Session, schedules: Sequence[Schedule]) -> list[dict[str, Any]]:
    ids = {schedule.dataset_id for schedule in schedules}
    names = dict(session.execute(select(Dataset.id, Dataset.name).where(Dataset.id.in_(ids))).all())
    watched = [schedule.watched_alias_id for schedule in schedules if schedule.watched_alias_id is not None]
    watched_aliases = list(session.scalars(select(Alias).where(Alias.id.in_(watched)).order_by(Alias.id)))
    alias_names = (alias["id"] for alias in alias_objects(session, watched_aliases))
    new_feedback = definitions.new_feedback(session, schedules)
    aliases = dict(zip(sorted(set(watched)), alias_names, strict=True))
    return [
        {
            "id": public_id("schedule", schedule.id),
            "object": "schedule",
            "created_at": int(schedule.created_at.timestamp()),
            "name": schedule.name,
            "dataset": names[schedule.dataset_id],
            "training": schedule.request,
            "cron": schedule.cron,
            "timezone": schedule.timezone,
            "on_new_data": schedule.on_new_data,
            "on_regression": aliases[schedule.watched_alias_id] if schedule.watched_alias_id is not None else None,
            "on_feedback": schedule.on_feedback,
            "new_feedback": new_feedback.get(schedule.id),
            "on_completions": schedule.on_completions,
            "completions_where": schedule.completions_where,
            "new_completions": None if schedule.on_completions is None else schedule.completions_new,
            "misfire": schedule.misfire,
            "overlap": schedule.overlap,
            "catch_up_s": schedule.catch_up_s,
            "max_backfill": schedule.max_backfill,
            "jitter_s": schedule.jitter_s,
            "max_failures": schedule.max_failures,
            "failures": schedule.failures,
            "status": "paused" if schedule.paused_because else "active",
            "paused_because": schedule.paused_because,
            "next_runs": [] if schedule.paused_because else next_runs(schedule),
        }
        for schedule in schedules
    ]


def next_runs(schedule: Schedule) -> list[int]:
    """The next times at which a schedule fires, with jitter, as Unix time in seconds."""
    if schedule.cron is None or schedule.next_at is None:
        return []
    coming = cron.ticks(schedule.cron, schedule.timezone, max(schedule.next_at, datetime.now(UTC)))
    times = [schedule.next_at, *itertools.islice(coming, SHOWN_RUNS - 1)]
    return [int((tick + cron.jitter(schedule.id, tick, schedule.jitter_s)).timestamp()) for tick in times]


def tick_object(tick: ScheduleTick) -> dict[str, Any]:
    return {
        "id": public_id("schedule tick", tick.id),
        "object": "schedule.tick",
        "created_at": int(tick.created_at.timestamp()),
        "tick": tick.key,
        "outcome": tick.outcome,
        "message": tick.message,
        "job": public_id("fine-tuning job", tick.job_id) if tick.job_id else None,
    }
