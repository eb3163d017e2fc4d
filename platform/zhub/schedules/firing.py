"""Ticks: the scheduler fires schedules, and records the outcome of each tick.

A tick trains on the newest version of the schedule's dataset. Each tick gets a row, whatever its outcome. The unique
key of the row ensures that no tick fires twice. A schedule is processed under a lock on its row: no leader is needed.
Functions take a Session and never commit.
"""

import logging
import uuid
from datetime import datetime, timedelta

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from zhub import states
from zhub.completions import collecting
from zhub.completions.collecting import CollectionRequest
from zhub.database import sessions
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, ZhubError
from zhub.evaluation.comparison import Verdict
from zhub.graders.parsing import stored_grader
from zhub.ids import new_id, public_id
from zhub.models import Dataset, DatasetVersion, Expert, Job, Project, Schedule, ScheduleTick
from zhub.queue.desired import request_cancel
from zhub.schedules import completions, cron, definitions
from zhub.tenancy.keys import Caller
from zhub.training import fine_tuning
from zhub.training.methods import read_method

MISSED = "No scheduler looked at it in time."

log = logging.getLogger("zhub.ticks")


def process_next_due(session: Session) -> bool:
    """Process one schedule that has something due; False if none has. Schedulers call this again and again."""
    schedule_id = session.scalar(text(_DUE))
    if schedule_id is None:
        return False
    schedule = session.get_one(Schedule, schedule_id)
    try:
        with session.begin_nested():
            _count_ended(session, schedule)
            _fire_buffered(session, schedule)
            _fire_completions(session, schedule)
            _fire_new_data(session, schedule)
            _fire_feedback(session, schedule)
            _fire_ticks(session, schedule, sessions.now(session))
    except DBAPIError:
        raise
    except Exception as exc:  # one broken schedule must not stop all others
        log.exception("schedule %s", schedule_id, extra={"action": "schedule_failed"})
        message = f"zhub failed to fire it ({type(exc).__name__}); its log says why."
        broken = update(Schedule).where(Schedule.id == schedule_id)
        session.execute(broken.values(paused_because=func.coalesce(Schedule.paused_because, message)))
        session.execute(update(ScheduleTick).where(ScheduleTick.schedule_id == schedule_id).values(counted=True))
    return True


def run_now(session: Session, schedule: Schedule) -> ScheduleTick:
    """Fire a schedule now, also a paused one, as its overlap policy allows."""
    return _fire(session, schedule, f"asked:{new_id().hex}")


def fire_regression(session: Session, schedule: Schedule, evaluation_id: uuid.UUID, verdict: Verdict) -> None:
    """Fire a schedule where the evaluation found its version worse than the base; else note what it found."""
    key = f"regression:{evaluation_id.hex}"
    if verdict == "worse":
        _fire(session, schedule, key)
    else:
        _note(session, schedule, key, "no_regression", f"Against its base: {verdict}.")


def list_ticks(session: Session, schedule: Schedule, *, limit: int) -> list[ScheduleTick]:
    """The newest ticks of a schedule."""
    statement = select(ScheduleTick).where(ScheduleTick.schedule_id == schedule.id)
    return list(session.scalars(statement.order_by(ScheduleTick.id.desc()).limit(limit)))


# A schedule with an ended job to count; or one that is not paused and has a due tick, a buffered tick without a running
# job, new data, enough feedback, or changes of its project's completions to look at. The expert's row counts feedback,
# and that of the project's settings changes, not this query.
_DUE = """
    SELECT s.id FROM schedules s
     WHERE s.deleted_at IS NULL AND (
           EXISTS (SELECT 1 FROM schedule_ticks t JOIN jobs j ON j.id = t.job_id
                    WHERE t.schedule_id = s.id AND NOT t.counted AND t.outcome = 'fired' AND j.finished_at IS NOT NULL)
        OR s.paused_because IS NULL AND (
           s.fires_at <= now()
        OR EXISTS (SELECT 1 FROM schedule_ticks t WHERE t.schedule_id = s.id AND t.outcome = 'buffered')
           AND NOT EXISTS (SELECT 1 FROM schedule_ticks t
                            WHERE t.schedule_id = s.id AND NOT t.counted AND t.outcome = 'fired')
        OR s.on_new_data AND s.seen_version_id IS DISTINCT FROM
           (SELECT v.id FROM dataset_versions v
             WHERE v.dataset_id = s.dataset_id AND v.purpose = 'fine-tune' AND v.status = 'processed'
               AND v.deleted_at IS NULL
             ORDER BY v.version DESC LIMIT 1)
        OR s.on_completions IS NOT NULL AND EXISTS
           (SELECT 1 FROM completion_settings c WHERE c.project_id = s.project_id AND c.changes > s.completions_seen)
        OR EXISTS (SELECT 1 FROM experts e
                    WHERE e.id = s.feedback_expert_id AND e.feedback_count >= s.feedback_seen + s.on_feedback)))
     ORDER BY s.id LIMIT 1 FOR UPDATE SKIP LOCKED
"""


def _fire_ticks(session: Session, schedule: Schedule, now: datetime) -> None:
    if schedule.cron is None or schedule.paused_because or not schedule.fires_at or schedule.fires_at > now:
        return
    assert schedule.next_at is not None
    due = cron.plan(
        schedule.cron,
        schedule.timezone,
        schedule.next_at,
        now,
        delay=lambda tick: cron.jitter(schedule.id, tick, schedule.jitter_s),
        misfire=schedule.misfire,  # type: ignore[arg-type]  # the table's constraint has the same values
        catch_up=timedelta(seconds=schedule.catch_up_s),
        max_backfill=schedule.max_backfill,
    )
    for tick in due.missed:
        _miss(session, schedule, _key(tick))
    if due.missed_count > len(due.missed):
        extra = {"action": "ticks_missed", "org_id": schedule.org_id, "ticks": due.missed_count}
        log.warning("schedule %s: %d ticks were missed", schedule.id, due.missed_count, extra=extra)
    for tick in due.fire:
        _fire(session, schedule, _key(tick))
    schedule.next_at = due.next_at
    schedule.fires_at = due.next_at + cron.jitter(schedule.id, due.next_at, schedule.jitter_s)
    session.flush()


def _miss(session: Session, schedule: Schedule, key: str) -> None:
    values = {"schedule_id": schedule.id, "key": key, "outcome": "skipped_misfire"}
    row = insert(ScheduleTick).values(id=new_id(), org_id=schedule.org_id, message=MISSED, **values)
    session.execute(row.on_conflict_do_nothing())


def _fire_new_data(session: Session, schedule: Schedule) -> None:
    if not schedule.on_new_data or schedule.paused_because:
        return
    newest = definitions.newest_version(session, schedule.dataset_id)
    seen = session.get(DatasetVersion, schedule.seen_version_id) if schedule.seen_version_id else None
    schedule.seen_version_id = newest.id if newest else None
    # If the newest version was deleted, an older one is now the newest: it is not new data.
    if newest is not None and (seen is None or newest.version > seen.version):
        _fire(session, schedule, f"data:{newest.id.hex}")


def _fire_feedback(session: Session, schedule: Schedule) -> None:
    if schedule.on_feedback is None or schedule.paused_because:
        return
    expert = session.get_one(Expert, schedule.feedback_expert_id)
    if expert.feedback_count < schedule.feedback_seen + schedule.on_feedback:
        return
    schedule.feedback_seen = expert.feedback_count
    # The key names the expert, because the schedule may later train another one, whose counts may be the same.
    _fire(session, schedule, f"feedback:{expert.name}:{expert.feedback_count}")


def _fire_completions(session: Session, schedule: Schedule) -> None:
    """Ask for a version of the dataset when enough completions have come; once it is checked, it is new data."""
    if schedule.on_completions is None or schedule.paused_because:
        return
    caller = _caller(session, schedule)
    try:
        completions.count(session, caller, schedule)
    except (InvalidRequestError, NotFoundError) as exc:
        schedule.paused_because = f"Its 'completions_where' cannot be read any more: {exc} Change it, and resume it."
        return
    if schedule.completions_new < schedule.on_completions:
        return
    schedule.completions_new = 0
    key = f"completions:{schedule.completions_seen}"
    dataset = session.get_one(Dataset, schedule.dataset_id).name
    try:
        with session.begin_nested():
            recipe = read_method(schedule.request.get("method"), schedule.request.get("hyperparameters")).recipe
            wanted = CollectionRequest(dataset=dataset, where=schedule.completions_where or "", method=recipe)
            made = collecting.request(session, caller, wanted)
    except ZhubError as exc:
        _note(session, schedule, key, "refused", str(exc)).counted = True
        _count(schedule, failed=True, why=str(exc))
    else:
        message = f"{public_id(collecting.KIND, made.id)} becomes a version of '{dataset}', which is new data."
        _note(session, schedule, key, "collected", message)
    session.flush()


def _fire_buffered(session: Session, schedule: Schedule) -> None:
    buffered = _buffered(session, schedule)
    if buffered is not None and not schedule.paused_because and not _unfinished(session, schedule):
        _submit(session, schedule, buffered)


def _buffered(session: Session, schedule: Schedule) -> ScheduleTick | None:
    statement = select(ScheduleTick).where(ScheduleTick.schedule_id == schedule.id, ScheduleTick.outcome == "buffered")
    return session.scalar(statement)


def _fire(session: Session, schedule: Schedule, key: str) -> ScheduleTick:
    """Fire, buffer or skip a tick, as the overlap policy says; a tick that has a row already is returned unchanged."""
    statement = select(ScheduleTick).where(ScheduleTick.schedule_id == schedule.id, ScheduleTick.key == key)
    if (earlier := session.scalar(statement)) is not None:
        return earlier
    running = _unfinished(session, schedule)
    if running and schedule.overlap == "skip":
        holder = public_id("fine-tuning job", running[0].id)
        return _note(session, schedule, key, "skipped_overlap", f"{holder} of an earlier tick has not ended.")
    if running and schedule.overlap == "buffer_one":
        if _buffered(session, schedule) is not None:
            return _note(session, schedule, key, "skipped_overlap", "Another tick waits already.")
        return _note(session, schedule, key, "buffered", "It is fired once the job of the earlier tick has ended.")
    if schedule.overlap == "cancel_running":
        for job in running:
            request_cancel(session, job.id)
    return _submit(session, schedule, _note(session, schedule, key, "fired", None))


def _submit(session: Session, schedule: Schedule, tick: ScheduleTick) -> ScheduleTick:
    """Enqueue the training of a tick, or record in its row why the training is refused."""
    caller = _caller(session, schedule)
    try:
        with session.begin_nested():
            newest = definitions.newest_version(session, schedule.dataset_id)
            if newest is None:
                raise ConflictError("The dataset has no version that passed its check and was pushed.")
            request = definitions.job_request(schedule.request, newest.id)
            origin = {"schedule": schedule.name, "tick": tick.key}
            request = request.model_copy(update={"metadata": (request.metadata or {}) | origin})
            graders = fine_tuning.read_graders(request, stored_grader)
            key = f"schedule:{schedule.id.hex}:{tick.key}"
            job = fine_tuning.create(session, caller, request, graders, idempotency_key=key, is_retry=False)
    except ZhubError as exc:
        tick.outcome, tick.message, tick.counted = "refused", str(exc), True
        _count(schedule, failed=True, why=str(exc))
    else:
        tick.outcome, tick.message, tick.job_id = "fired", None, job.id
        extra = {"action": "tick_fired", "org_id": schedule.org_id, "job_id": job.id, "tick": tick.key}
        log.info("schedule %s: tick %s submitted job %s", schedule.id, tick.key, job.id, extra=extra)
    session.flush()
    return tick


def _caller(session: Session, schedule: Schedule) -> Caller:
    """As whom a schedule acts: its project, with rights of its own."""
    project = session.scalars(select(Project).where(Project.id == schedule.project_id)).one()
    return Caller(schedule.id, schedule.org_id, schedule.project_id, project.name, frozenset())


def _unfinished(session: Session, schedule: Schedule) -> list[Job]:
    statement = (
        select(Job)
        .join(ScheduleTick, ScheduleTick.job_id == Job.id)
        .where(ScheduleTick.schedule_id == schedule.id, ~ScheduleTick.counted, Job.finished_at.is_(None))
    )
    return list(session.scalars(statement.order_by(Job.id)))


def _note(session: Session, schedule: Schedule, key: str, outcome: str, message: str | None) -> ScheduleTick:
    """Insert the row of a tick."""
    tick = ScheduleTick(org_id=schedule.org_id, schedule_id=schedule.id, key=key, outcome=outcome, message=message)
    session.add(tick)
    session.flush()
    return tick


def _count_ended(session: Session, schedule: Schedule) -> None:
    """Count the outcomes of ticks' ended jobs, in the order in which they ended."""
    rows = session.execute(
        select(ScheduleTick, Job)
        .join(Job, Job.id == ScheduleTick.job_id)
        .where(ScheduleTick.schedule_id == schedule.id, ~ScheduleTick.counted, Job.finished_at.is_not(None))
        .order_by(Job.finished_at)
    )
    for tick, job in rows:
        tick.counted = True
        if job.state != states.CANCELLED:
            why = (job.error or {}).get("message", "")
            _count(schedule, failed=job.state == states.FAILED, why=why)
    session.flush()


def _count(schedule: Schedule, *, failed: bool, why: str) -> None:
    schedule.failures = schedule.failures + 1 if failed else 0
    if schedule.failures >= schedule.max_failures and schedule.paused_because is None:
        schedule.paused_because = (
            f"{schedule.failures} runs in a row failed, the last one: {why} Mend it, and resume the schedule."
        )


def _key(tick: datetime) -> str:
    return tick.strftime("%Y-%m-%dT%H:%M:%SZ")
