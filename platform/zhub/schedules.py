"""Schedules: trainings that are submitted by themselves, at times of a cron expression or when something has happened.

A tick trains on the newest version of the schedule's dataset. Whatever becomes of it, it gets a row: the unique key of
that row is what lets no tick fire twice, whichever scheduler looks, and however often. A schedule is looked at under a
lock on its row, so no leader is needed. Functions take a Session and never commit.
"""

import logging
import uuid
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, ValidationError
from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from zhub import aliases, cron, datasets, db, evaluations, fine_tuning, registry, states, wishes
from zhub.cron import MAX_CATCH_UP_S, Misfire
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, QuotaExceededError, ZhubError
from zhub.fine_tuning import JobRequest
from zhub.ids import new_id, parse_id, public_id
from zhub.models import Alias, Dataset, DatasetVersion, Evaluation, Expert, Job, Project, Schedule, ScheduleTick
from zhub.tenancy import Caller, check_name

MAX_SCHEDULES = 100  # of one project
MISSED = "No scheduler looked at it in time."

Overlap = Literal["skip", "buffer_one", "allow", "cancel_running"]

log = logging.getLogger("zhub.schedules")


class ScheduleRequest(Schema):
    """What to train and when. ``training`` is a request for fine-tuning without its ``training_file``."""

    model_config = ConfigDict(extra="forbid")
    name: str
    dataset: str
    """The name of a dataset, or the id of any file of it."""
    training: dict[str, Any]
    cron: str | None = None
    timezone: str = "UTC"
    on_new_data: bool = False
    """Also train when a new version of the dataset has been checked."""
    on_regression: str | None = None
    """An alias, ``<project>.<expert>@<alias>``: also train when an evaluation finds its version worse than the base."""
    on_feedback: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    """Also train when so many pieces of feedback have come on the expert that it trains, since it last did for them."""
    misfire: Misfire = "fire_once"
    overlap: Overlap = "skip"
    catch_up_s: Annotated[int, Field(strict=True, ge=0, le=MAX_CATCH_UP_S)] = 86400
    max_backfill: Annotated[int, Field(strict=True, ge=1, le=100)] = 10
    jitter_s: Annotated[int, Field(strict=True, ge=0, le=3600)] = 0
    max_failures: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    """Runs in a row that may fail before the schedule is paused."""


def create(session: Session, caller: Caller, request: ScheduleRequest) -> Schedule:
    """Make a schedule; what its training would be refused for is refused here, where its dataset has a checked version.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
        NotFoundError, NotReadyError: the dataset or the base model is missing or not usable yet.
        ConflictError: the project has one of this name already.
    """
    count = len(list_schedules(session, caller.project_id))
    if count >= MAX_SCHEDULES:
        raise ConflictError(f"The project has {count} schedules, and more are not allowed. Delete some.")
    schedule = Schedule(id=new_id(), org_id=caller.org_id, project_id=caller.project_id)
    _set(session, caller, schedule, request)
    session.add(schedule)
    _flush(session, request.name)
    session.refresh(schedule)
    return schedule


def replace(session: Session, caller: Caller, schedule: Schedule, request: ScheduleRequest) -> Schedule:
    """Make a schedule what ``request`` says; its ticks so far stay. Raises what ``create`` does."""
    _set(session, caller, schedule, request)
    _flush(session, request.name)
    session.refresh(schedule)
    return schedule


def get(session: Session, project_id: uuid.UUID, schedule_id: uuid.UUID, *, lock: bool = False) -> Schedule:
    """The schedule with this id in the project. Raises NotFoundError."""
    statement = select(Schedule).where(
        Schedule.id == schedule_id, Schedule.project_id == project_id, Schedule.deleted_at.is_(None)
    )
    found = session.scalar(statement.with_for_update() if lock else statement)
    if found is None:
        raise NotFoundError("schedule", public_id("schedule", schedule_id))
    return found


def list_schedules(session: Session, project_id: uuid.UUID) -> list[Schedule]:
    """The project's schedules, by name."""
    statement = select(Schedule).where(Schedule.project_id == project_id, Schedule.deleted_at.is_(None))
    return list(session.scalars(statement.order_by(Schedule.name)))


def list_ticks(session: Session, schedule: Schedule, *, limit: int) -> list[ScheduleTick]:
    """The newest ticks of a schedule."""
    statement = select(ScheduleTick).where(ScheduleTick.schedule_id == schedule.id)
    return list(session.scalars(statement.order_by(ScheduleTick.id.desc()).limit(limit)))


def delete(session: Session, schedule: Schedule) -> None:
    """Let it fire no more, and hide it. Its jobs stay."""
    schedule.deleted_at = db.now(session)
    session.flush()


def pause(session: Session, schedule: Schedule) -> None:
    """Let it fire no more until it is resumed. A job that runs goes on."""
    schedule.paused_because = schedule.paused_because or "Somebody paused it."
    session.flush()


def resume(session: Session, schedule: Schedule) -> None:
    """Let it fire again, from the next tick on: those since it was paused were not missed."""
    if schedule.paused_because is None:
        return
    schedule.paused_because, schedule.failures = None, 0
    _arm(session, schedule, db.now(session))
    if schedule.on_new_data:
        newest = _newest(session, schedule.dataset_id)
        schedule.seen_version_id = newest.id if newest else None
    if schedule.feedback_expert_id is not None:
        schedule.feedback_seen = session.get_one(Expert, schedule.feedback_expert_id).feedback_count
    session.flush()


def new_feedback(session: Session, schedule: Schedule) -> int | None:
    """How many pieces have come of the ``on_feedback`` that it fires for; None where it does not fire for any."""
    if schedule.feedback_expert_id is None:
        return None
    return session.get_one(Expert, schedule.feedback_expert_id).feedback_count - schedule.feedback_seen


def run_now(session: Session, schedule: Schedule) -> ScheduleTick:
    """Fire at once, paused or not, as its overlap policy allows."""
    return _fire(session, schedule, f"asked:{new_id().hex}")


def look(session: Session) -> bool:
    """Look after one schedule that has something due; False where none has. A scheduler calls this again and again."""
    schedule_id = session.scalar(text(_DUE))
    if schedule_id is None:
        return False
    schedule = session.get_one(Schedule, schedule_id)
    try:
        with session.begin_nested():
            _count_ended(session, schedule)
            _fire_buffered(session, schedule)
            _fire_new_data(session, schedule)
            _fire_regressions(session, schedule)
            _fire_feedback(session, schedule)
            _fire_ticks(session, schedule, db.now(session))
    except DBAPIError:
        raise
    except Exception as exc:  # it must not stand in the way of every other schedule
        log.exception("schedule %s", schedule_id, extra={"action": "schedule_failed"})
        message = f"zhub failed to fire it ({type(exc).__name__}); its log says why."
        broken = update(Schedule).where(Schedule.id == schedule_id)
        session.execute(broken.values(paused_because=func.coalesce(Schedule.paused_because, message)))
        session.execute(update(ScheduleTick).where(ScheduleTick.schedule_id == schedule_id).values(counted=True))
    return True


# Evaluations of what the alias of schedule ``s`` stands on, with those of its base on the same suite, without a tick.
_MEASURED = """
    SELECT e.id, b.id AS base_id FROM aliases a
      JOIN evaluations e ON e.version_id = a.version_id AND e.project_id = s.project_id AND e.rewards IS NOT NULL
      JOIN evaluations b ON b.project_id = e.project_id AND b.base_model_id = e.base_model_id AND b.version_id IS NULL
                        AND b.suite_digest = e.suite_digest AND b.rewards IS NOT NULL
     WHERE a.id = s.watched_alias_id AND NOT EXISTS (
           SELECT 1 FROM schedule_ticks t
            WHERE t.schedule_id = s.id AND t.key = 'regression:' || replace(e.id::text, '-', ''))
"""
# A schedule with a job to count, or which is not paused and has a tick, a buffered one whose way is free, new data,
# something measured, or enough feedback. That is counted where it comes, on the expert: never here.
_DUE = (
    """
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
             WHERE v.dataset_id = s.dataset_id AND v.status = 'processed' AND v.deleted_at IS NULL
             ORDER BY v.version DESC LIMIT 1)
        OR EXISTS (SELECT 1 FROM experts e
                    WHERE e.id = s.feedback_expert_id AND e.feedback_count >= s.feedback_seen + s.on_feedback)
        OR s.watched_alias_id IS NOT NULL AND EXISTS (SELECT 1 FROM ("""
    + _MEASURED
    + """) m)))
     ORDER BY s.id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
)


def _set(session: Session, caller: Caller, schedule: Schedule, request: ScheduleRequest) -> None:
    if not (request.cron or request.on_new_data or request.on_regression or request.on_feedback):
        raise InvalidRequestError(
            "A schedule needs 'cron', 'on_new_data': true, 'on_regression', 'on_feedback', or several of these.",
            param="cron",
        )
    if request.cron is not None:
        cron.check_cron(request.cron, request.timezone)
    dataset = _dataset(session, caller, request.dataset)
    newest = _newest(session, dataset.id)
    suffix = _check_training(session, caller, request.training, newest).suffix
    expert = _trained(session, caller, suffix, newest) if request.on_feedback is not None else None
    now = db.now(session)  # asked first: a query writes what is half changed
    schedule.name = check_name(request.name, "schedule", param="name")
    schedule.dataset_id = dataset.id
    schedule.request = request.training
    schedule.watched_alias_id = _alias(session, caller, request.on_regression).id if request.on_regression else None
    for column, value in request.model_dump(exclude={"name", "dataset", "training", "on_regression"}).items():
        setattr(schedule, column, value)
    schedule.feedback_expert_id = expert.id if expert else None
    schedule.feedback_seen = expert.feedback_count if expert else 0
    schedule.seen_version_id = newest.id if newest else None
    _arm(session, schedule, now)


def _check_training(
    session: Session, caller: Caller, training: dict[str, Any], newest: DatasetVersion | None
) -> JobRequest:
    request = _job_request(training, newest.id if newest else new_id())
    if newest is None:
        return request
    with session.begin_nested() as trial:
        try:
            fine_tuning.create(session, caller, request, idempotency_key=None, is_retry=False)
        except QuotaExceededError:
            pass  # a full queue says nothing about the runs to come
        except InvalidRequestError as exc:
            raise InvalidRequestError(f"training: {exc}", param=f"training.{exc.param}", code=exc.code) from exc
        trial.rollback()
    return request


def _trained(session: Session, caller: Caller, suffix: str | None, newest: DatasetVersion | None) -> Expert:
    """The expert that the runs of a schedule train; made here if it is new, so that there is something to count on."""
    if suffix is None and newest is None:
        raise InvalidRequestError(
            "on_feedback: feedback on which expert? Name it as training.suffix: the dataset has no version yet that "
            "passed its check, whose file would name it.",
            param="training.suffix",
        )
    return registry.expert_for(session, caller, suffix, newest.filename if newest else "")


def _job_request(training: dict[str, Any], version_id: uuid.UUID) -> JobRequest:
    if "training_file" in training:
        raise InvalidRequestError(
            "training.training_file: leave it out; each run takes the newest version of 'dataset'.",
            param="training.training_file",
        )
    try:
        return JobRequest.model_validate(training | {"training_file": public_id("file", version_id)})
    except ValidationError as exc:
        problem = exc.errors()[0]
        where = ".".join(["training", *(str(part) for part in problem["loc"])])
        raise InvalidRequestError(f"{where}: {problem['msg']}.", param=where) from exc


def _dataset(session: Session, caller: Caller, name: str) -> Dataset:
    if name.startswith("file-"):
        version = datasets.get(session, caller.project_id, parse_id("file", name))
        return session.scalars(select(Dataset).where(Dataset.id == version.dataset_id)).one()
    found = session.scalar(select(Dataset).where(Dataset.project_id == caller.project_id, Dataset.name == name))
    if found is None:
        raise NotFoundError("dataset", name, "A dataset has the name of its file without the ending; upload one first.")
    return found


def _newest(session: Session, dataset_id: uuid.UUID) -> DatasetVersion | None:
    """The newest version of a dataset that passed its check."""
    return session.scalar(
        select(DatasetVersion)
        .where(
            DatasetVersion.dataset_id == dataset_id,
            DatasetVersion.status == "processed",
            DatasetVersion.deleted_at.is_(None),
        )
        .order_by(DatasetVersion.version.desc())
        .limit(1)
    )


def _flush(session: Session, name: str) -> None:
    try:
        session.flush()
    except IntegrityError as exc:
        raise ConflictError(f"The project has a schedule '{name}' already. Choose another name.") from exc


def _arm(session: Session, schedule: Schedule, after: datetime) -> None:
    """Set when it fires next; the jitter of a tick is always the same."""
    if schedule.cron is None:
        schedule.next_at = schedule.fires_at = None
        return
    schedule.next_at = next(cron.ticks(schedule.cron, schedule.timezone, after))
    schedule.fires_at = schedule.next_at + cron.jitter(schedule.id, schedule.next_at, schedule.jitter_s)


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
    newest = _newest(session, schedule.dataset_id)
    seen = session.get(DatasetVersion, schedule.seen_version_id) if schedule.seen_version_id else None
    schedule.seen_version_id = newest.id if newest else None
    # An older one comes to the fore when the newest is deleted.
    if newest is not None and (seen is None or newest.version > seen.version):
        _fire(session, schedule, f"data:{newest.id.hex}")


def _fire_regressions(session: Session, schedule: Schedule) -> None:
    if schedule.watched_alias_id is None or schedule.paused_because:
        return
    measured = text(
        f"SELECT m.* FROM schedules s CROSS JOIN LATERAL ({_MEASURED}) m WHERE s.id = :schedule ORDER BY m.id"
    )
    for row in session.execute(measured, {"schedule": schedule.id}).all():
        own, base = session.get_one(Evaluation, row.id), session.get_one(Evaluation, row.base_id)
        found = evaluations.compare(tuple(own.rewards or ()), tuple(base.rewards or ()))
        key = f"regression:{row.id.hex}"
        if found.verdict == "worse":
            _fire(session, schedule, key)
        else:
            _note(session, schedule, key, "no_regression", f"Against its base: {found.verdict}.")


def _fire_feedback(session: Session, schedule: Schedule) -> None:
    if schedule.on_feedback is None or schedule.paused_because:
        return
    expert = session.get_one(Expert, schedule.feedback_expert_id)
    if expert.feedback_count < schedule.feedback_seen + schedule.on_feedback:
        return
    schedule.feedback_seen = expert.feedback_count
    # With the expert, because the counts of another, which it may train later, are numbers as well.
    _fire(session, schedule, f"feedback:{expert.name}:{expert.feedback_count}")


def _alias(session: Session, caller: Caller, name: str) -> Alias:
    expert, _, alias = name.partition("@")
    return aliases.get(session, registry.expert(session, caller, expert), alias)


def _fire_buffered(session: Session, schedule: Schedule) -> None:
    waiting = _buffered(session, schedule)
    if waiting is not None and not schedule.paused_because and not _unfinished(session, schedule):
        _submit(session, schedule, waiting)


def _buffered(session: Session, schedule: Schedule) -> ScheduleTick | None:
    statement = select(ScheduleTick).where(ScheduleTick.schedule_id == schedule.id, ScheduleTick.outcome == "buffered")
    return session.scalar(statement)


def _fire(session: Session, schedule: Schedule, key: str) -> ScheduleTick:
    """Do what the overlap policy says about a tick, once."""
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
            wishes.request_cancel(session, job.id)
    return _submit(session, schedule, _note(session, schedule, key, "fired", None))


def _submit(session: Session, schedule: Schedule, tick: ScheduleTick) -> ScheduleTick:
    """Enqueue the training of a tick, or say in its row why it is refused."""
    project = session.scalars(select(Project).where(Project.id == schedule.project_id)).one()
    caller = Caller(schedule.id, schedule.org_id, schedule.project_id, project.name, frozenset())
    try:
        with session.begin_nested():
            newest = _newest(session, schedule.dataset_id)
            if newest is None:
                raise ConflictError("The dataset has no version that passed its check.")
            request = _job_request(schedule.request, newest.id)
            origin = {"schedule": schedule.name, "tick": tick.key}
            request = request.model_copy(update={"metadata": (request.metadata or {}) | origin})
            job = fine_tuning.create(
                session, caller, request, idempotency_key=f"schedule:{schedule.id.hex}:{tick.key}", is_retry=False
            )
    except ZhubError as exc:
        tick.outcome, tick.message, tick.counted = "refused", str(exc), True
        _count(schedule, failed=True, why=str(exc))
    else:
        tick.outcome, tick.message, tick.job_id = "fired", None, job.id
        extra = {"action": "tick_fired", "org_id": schedule.org_id, "job_id": job.id, "tick": tick.key}
        log.info("schedule %s: tick %s submitted job %s", schedule.id, tick.key, job.id, extra=extra)
    session.flush()
    return tick


def _unfinished(session: Session, schedule: Schedule) -> list[Job]:
    statement = (
        select(Job)
        .join(ScheduleTick, ScheduleTick.job_id == Job.id)
        .where(ScheduleTick.schedule_id == schedule.id, ~ScheduleTick.counted, Job.finished_at.is_(None))
    )
    return list(session.scalars(statement.order_by(Job.id)))


def _note(session: Session, schedule: Schedule, key: str, outcome: str, message: str | None) -> ScheduleTick:
    """Make the row of a tick."""
    tick = ScheduleTick(org_id=schedule.org_id, schedule_id=schedule.id, key=key, outcome=outcome, message=message)
    session.add(tick)
    session.flush()
    return tick


def _count_ended(session: Session, schedule: Schedule) -> None:
    """Count how the jobs of ticks ended, in their order."""
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
