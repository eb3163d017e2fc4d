"""Schedules: trainings that are submitted automatically, by a cron expression or by an event.

Created, changed, paused and deleted here; ``zhub.schedules.firing`` fires them. Functions take a Session and never
commit.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, ValidationError
from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from zhub.database import sessions
from zhub.datasets import files
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError
from zhub.ids import new_id, parse_id, public_id
from zhub.models import Alias, Dataset, DatasetVersion, Expert, Schedule
from zhub.pydantic_errors import refusal
from zhub.registry import aliases, versions
from zhub.registry.publish import expert_name, get_or_create_expert
from zhub.schedules import completions, cron
from zhub.schedules.cron import MAX_CATCH_UP_S, Misfire
from zhub.suggestions import did_you_mean
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import check_name
from zhub.training import fine_tuning
from zhub.training.fine_tuning import Graders, JobRequest

MAX_SCHEDULES = 100  # of one project
REPLACED_WHOLE = ("grader", "promotion")  # fields of two kinds of graders, or of two gates, would mix
MAX_MERGED_DEPTH = 16  # what lies deeper in a change replaces what there was
MAX_COMPARED = 1000  # names of datasets with one that is not there

Overlap = Literal["skip", "buffer_one", "allow", "cancel_running"]


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
    on_completions: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    """Also make a version of the dataset when so many stored completions have come, or were rated, since it last did.

    With ``on_new_data`` that is trained on.
    """
    completions_where: str | None = None
    """Which of them, as for a dataset of completions; None: all."""
    misfire: Misfire = "fire_once"
    overlap: Overlap = "skip"
    catch_up_s: Annotated[int, Field(strict=True, ge=0, le=MAX_CATCH_UP_S)] = 86400
    max_backfill: Annotated[int, Field(strict=True, ge=1, le=100)] = 10
    jitter_s: Annotated[int, Field(strict=True, ge=0, le=3600)] = 0
    max_failures: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    """Runs in a row that may fail before the schedule is paused."""


def read_graders(request: ScheduleRequest) -> Graders:
    """Read the graders of the training, which may take seconds: before a session begins.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
    """
    training = job_request(request.training, new_id())
    with _within_training():
        return fine_tuning.read_graders(training)


def create(session: Session, caller: Caller, request: ScheduleRequest, graders: Graders) -> Schedule:
    """Create a schedule. If its dataset has a version that passed its check, its training is checked as well.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
        NotFoundError, NotReadyError: the dataset or the base model is missing or not usable yet.
        ConflictError: the project has a schedule of this name already, or ``MAX_SCHEDULES``.
    """
    count = len(list_schedules(session, caller.project_id))
    if count >= MAX_SCHEDULES:
        raise ConflictError(f"The project has {count} schedules, and more are not allowed. Delete some.")
    schedule = Schedule(id=new_id(), org_id=caller.org_id, project_id=caller.project_id)
    _set(session, caller, schedule, request, graders)
    session.add(schedule)
    _flush(session, request.name)
    session.refresh(schedule)
    return schedule


def replace(
    session: Session, caller: Caller, schedule: Schedule, request: ScheduleRequest, graders: Graders
) -> Schedule:
    """Replace what a schedule says by ``request``; its ticks so far stay. Raises what ``create`` does."""
    _set(session, caller, schedule, request, graders)
    _flush(session, request.name)
    session.refresh(schedule)
    return schedule


def changed_request(
    session: Session, caller: Caller, schedule: Schedule, changes: Mapping[str, Any]
) -> ScheduleRequest:
    """The schedule's request after a JSON merge patch (RFC 7396), in which a grader and a gate are whole.

    Raises:
        InvalidRequestError: it is no request any more.
    """
    merged = _merge_patch(_request_of(session, caller, schedule), changes)
    try:
        return ScheduleRequest.model_validate(merged)
    except ValidationError as exc:
        raise refusal(exc.errors()) from exc


def get(session: Session, project_id: uuid.UUID, schedule_id: uuid.UUID, *, lock: bool = False) -> Schedule:
    """The schedule with this id in the project. Raises NotFoundError."""
    statement = select(Schedule).where(
        Schedule.id == schedule_id, Schedule.project_id == project_id, Schedule.deleted_at.is_(None)
    )
    schedule = session.scalar(statement.with_for_update() if lock else statement)
    if schedule is None:
        raise NotFoundError("schedule", public_id("schedule", schedule_id))
    return schedule


def list_schedules(
    session: Session, project_id: uuid.UUID, *, paused: bool | None = None, search: str | None = None
) -> list[Schedule]:
    """The project's schedules, by name: all, or those that are ``paused`` or not; with this text in a name of theirs.

    ``search`` looks in the name of the schedule, of its dataset, of its base and of the expert that it trains.
    """
    rows = select(Schedule).where(Schedule.project_id == project_id, Schedule.deleted_at.is_(None))
    if paused is not None:
        rows = rows.where(Schedule.paused_because.is_not(None) if paused else Schedule.paused_because.is_(None))
    if search is not None:
        datasets = select(Dataset.id).where(Dataset.name.icontains(search, autoescape=True))
        names = (Schedule.name, Schedule.request["model"].astext, Schedule.request["suffix"].astext)
        named = (name.icontains(search, autoescape=True) for name in names)
        rows = rows.where(or_(Schedule.dataset_id.in_(datasets), *named))
    return list(session.scalars(rows.order_by(Schedule.name)))


def delete(session: Session, schedule: Schedule) -> None:
    """Stop firing it, and hide it. Its jobs stay."""
    schedule.deleted_at = sessions.now(session)
    session.flush()


def pause(session: Session, schedule: Schedule) -> None:
    """Stop firing it until it is resumed. A job that runs continues."""
    schedule.paused_because = schedule.paused_because or "Somebody paused it."
    session.flush()


def resume(session: Session, schedule: Schedule) -> None:
    """Fire it again, from the next tick on: the ticks during the pause do not count as missed."""
    if schedule.paused_because is None:
        return
    schedule.paused_because, schedule.failures = None, 0
    _arm(session, schedule, sessions.now(session))
    if schedule.on_new_data:
        newest = newest_version(session, schedule.dataset_id)
        schedule.seen_version_id = newest.id if newest else None
    if schedule.feedback_expert_id is not None:
        schedule.feedback_seen = session.get_one(Expert, schedule.feedback_expert_id).feedback_count
    completions.begin(session, schedule)
    session.flush()


def new_feedback(session: Session, schedules: Sequence[Schedule]) -> dict[uuid.UUID, int]:
    """For each schedule that fires by feedback, by its id, how many of its ``on_feedback`` pieces have come."""
    ids = {schedule.feedback_expert_id for schedule in schedules if schedule.feedback_expert_id is not None}
    counts = dict(session.execute(select(Expert.id, Expert.feedback_count).where(Expert.id.in_(ids))).all())
    return {
        schedule.id: counts[schedule.feedback_expert_id] - schedule.feedback_seen
        for schedule in schedules
        if schedule.feedback_expert_id is not None
    }


def _request_of(session: Session, caller: Caller, schedule: Schedule) -> dict[str, Any]:
    """The request that would make this schedule as it is."""
    columns = ScheduleRequest.model_fields.keys() - {"dataset", "training", "on_regression"}
    watched = None
    if schedule.watched_alias_id is not None:
        alias = session.get_one(Alias, schedule.watched_alias_id)
        watched = f"{caller.project}.{session.get_one(Expert, alias.expert_id).name}@{alias.name}"
    return {name: getattr(schedule, name) for name in columns} | {
        "dataset": session.get_one(Dataset, schedule.dataset_id).name,
        "training": schedule.request,
        "on_regression": watched,
    }


def _merge_patch(value: Any, patch: Any, depth: int = 0) -> Any:
    if not isinstance(patch, Mapping) or depth == MAX_MERGED_DEPTH:
        return patch
    merged = dict(value) if isinstance(value, Mapping) else {}
    for name, change in patch.items():
        if change is None:
            merged.pop(name, None)
        else:
            merged[name] = change if name in REPLACED_WHOLE else _merge_patch(merged.get(name), change, depth + 1)
    return merged


def job_request(training: dict[str, Any], version_id: uuid.UUID) -> JobRequest:
    """The request of a run: a schedule's ``training`` on this version of its dataset.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
    """
    if "training_file" in training:
        raise InvalidRequestError(
            "training.training_file: leave it out; each run takes the newest version of 'dataset'.",
            param="training.training_file",
        )
    try:
        return JobRequest.model_validate(training | {"training_file": public_id("file", version_id)})
    except ValidationError as exc:
        raise refusal(exc.errors(), within="training") from exc


def newest_version(session: Session, dataset_id: uuid.UUID) -> DatasetVersion | None:
    """The newest version of a dataset that was pushed and passed its check."""
    return session.scalar(
        select(DatasetVersion)
        .where(
            DatasetVersion.dataset_id == dataset_id,
            DatasetVersion.purpose == files.PUSHED,
            DatasetVersion.status == "processed",
            DatasetVersion.deleted_at.is_(None),
        )
        .order_by(DatasetVersion.version.desc())
        .limit(1)
    )


def _set(session: Session, caller: Caller, schedule: Schedule, request: ScheduleRequest, graders: Graders) -> None:
    if not (request.cron or request.on_new_data or request.on_regression or request.on_feedback):
        raise InvalidRequestError(
            "A schedule needs 'cron', 'on_new_data': true, 'on_regression', 'on_feedback', or several of these.",
            param="cron",
        )
    completions.check(
        session, caller, request.on_completions, request.completions_where, on_new_data=request.on_new_data
    )
    where = None if request.on_completions is None else request.completions_where or ""
    if request.cron is not None:
        cron.check_cron(request.cron, request.timezone)
    dataset = _dataset(session, caller, request.dataset)
    newest = newest_version(session, dataset.id)
    suffix = _check_training(session, caller, request.training, graders, newest).suffix
    expert = _trained(session, caller, suffix, newest) if request.on_feedback is not None else None
    alias = _alias(session, caller, request.on_regression) if request.on_regression is not None else None
    now = sessions.now(session)  # every query comes before the changes: it would flush a half-changed row
    # What has come since it fired last counts on, unless it is now about something else.
    if schedule.dataset_id != dataset.id or not schedule.on_new_data:
        schedule.seen_version_id = newest.id if newest else None
    if expert is None or schedule.feedback_expert_id != expert.id:
        schedule.feedback_seen = expert.feedback_count if expert else 0
    if (request.on_completions, where) != (schedule.on_completions, schedule.completions_where):
        completions.begin(session, schedule)
    is_retimed = (schedule.cron, schedule.timezone, schedule.jitter_s) != (
        request.cron,
        request.timezone,
        request.jitter_s,
    )
    schedule.name = check_name(request.name, "schedule", param="name")
    schedule.dataset_id = dataset.id
    schedule.request = request.training
    schedule.watched_alias_id = alias.id if alias is not None else None
    for column, value in request.model_dump(exclude={"name", "dataset", "training", "on_regression"}).items():
        setattr(schedule, column, value)
    schedule.completions_where = where
    schedule.feedback_expert_id = expert.id if expert else None
    if is_retimed:
        _arm(session, schedule, now)


def _check_training(
    session: Session, caller: Caller, training: dict[str, Any], graders: Graders, newest: DatasetVersion | None
) -> JobRequest:
    request = job_request(training, newest.id if newest else new_id())
    if newest is not None:
        with _within_training():
            fine_tuning.check_training(session, caller, request, graders)
    return request


@contextmanager
def _within_training() -> Iterator[None]:
    """What is refused of the training is refused by its path in the schedule."""
    try:
        yield
    except InvalidRequestError as exc:
        param = f"training.{exc.param}" if exc.param else "training"
        raise InvalidRequestError(str(exc), param=param, code=exc.code) from exc


def _trained(session: Session, caller: Caller, suffix: str | None, newest: DatasetVersion | None) -> Expert:
    """The expert that the runs of a schedule train, created here if it is new: its row counts the feedback."""
    if suffix is None and newest is None:
        raise InvalidRequestError(
            "on_feedback: feedback on which expert? Name it as training.suffix: the dataset has no version yet that "
            "passed its check, whose file would name it.",
            param="training.suffix",
        )
    name = expert_name(suffix, newest.filename if newest else "")
    return get_or_create_expert(session, caller, name)


def _dataset(session: Session, caller: Caller, name: str) -> Dataset:
    if name.startswith("file-"):
        version = files.get(session, caller.project_id, parse_id("file", name))
        return session.scalars(select(Dataset).where(Dataset.id == version.dataset_id)).one()
    dataset = session.scalar(select(Dataset).where(Dataset.project_id == caller.project_id, Dataset.name == name))
    if dataset is None:
        of_project = select(Dataset.name).where(Dataset.project_id == caller.project_id)
        near = did_you_mean(name, session.scalars(of_project.order_by(Dataset.id.desc()).limit(MAX_COMPARED)).all())
        hint = "A dataset has the name of its file without the ending; upload one first."
        raise NotFoundError("dataset", name, f"{near} {hint}".lstrip())
    return dataset


def _alias(session: Session, caller: Caller, name: str) -> Alias:
    expert, _, alias = name.partition("@")
    return aliases.get(session, versions.get_expert(session, caller, expert), alias)


def _flush(session: Session, name: str) -> None:
    try:
        session.flush()
    except IntegrityError as exc:
        raise ConflictError(f"The project has a schedule '{name}' already. Choose another name.") from exc


def _arm(session: Session, schedule: Schedule, after: datetime) -> None:
    """Set the schedule's next tick after ``after``, and when it fires, with jitter."""
    if schedule.cron is None:
        schedule.next_at = schedule.fires_at = None
        return
    schedule.next_at = next(cron.ticks(schedule.cron, schedule.timezone, after))
    schedule.fires_at = schedule.next_at + cron.jitter(schedule.id, schedule.next_at, schedule.jitter_s)
