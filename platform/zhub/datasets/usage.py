"""What needs a dataset file, so that nobody deletes it without knowing: versions, jobs, gates, schedules."""

import uuid
from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, Select, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from zhub.errors import ConflictError
from zhub.ids import public_id
from zhub.models import DatasetVersion, Evaluation, Expert, ExpertVersion, Job, Project, Promotion, Schedule
from zhub.queue.desired import request_cancel

NAMED = 3
OWN_KINDS = ("validate", "count_tokens")
"""Jobs that are about the file itself: with it, their results are gone too."""
# A job that is to be cancelled may still run for a moment. The bytes of its file stay in the store.
GOES_ON = (Job.finished_at.is_(None), Job.desired != "cancel")


def refuse_used(session: Session, file: DatasetVersion, *, also_trained: bool) -> None:
    """Refuse to delete a file that something needs; also one that a published version was trained on.

    ``also_trained``: delete it although published versions were trained on it. What still has to run keeps it.

    Raises:
        ConflictError: names what needs it, and says what to do.
    """
    needs = [*_jobs(session, file), *_gates(session, file), *_schedules(session, file)]
    if not also_trained:
        needs += _versions(session, file)
    if needs:
        name = f"'{file.filename}' v{file.version} ({public_id('file', file.id)})"
        raise ConflictError(f"{name} cannot be deleted. {' '.join(needs)}")


def detach(session: Session, file: DatasetVersion) -> None:
    """Cancel the jobs and gates that need a file, and pause its schedules with the reason."""
    for job_id in session.scalars(_needing(file)).all():
        request_cancel(session, job_id)
    for job_id in session.scalars(_measuring(file).with_only_columns(Job.id)).all():
        request_cancel(session, job_id)
    name = f"'{file.filename}' v{file.version}"
    why = f"{name}, which it needs, was deleted. Change the files that it names, and resume it."
    schedules = _scheduled(file).with_only_columns(Schedule.id)
    session.execute(update(Schedule).where(Schedule.id.in_(schedules)).values(paused_because=why))
    session.flush()


def _needing(file: DatasetVersion) -> Select[uuid.UUID]:
    """Trainings and evaluations that run or wait to run."""
    of_file = or_(Job.dataset_version_id == file.id, Job.validation_version_id == file.id)
    return select(Job.id).where(of_file, Job.kind.not_in(OWN_KINDS), *GOES_ON).order_by(Job.id)


def _measuring(file: DatasetVersion) -> Select[uuid.UUID]:
    """Promotions that are not decided yet."""
    return (
        select(Promotion.id)
        .join(Job, Job.id == Promotion.job_id)
        .where(Promotion.project_id == file.project_id, *GOES_ON)
        .where(Promotion.gate["suites"].contains([_suite(file)]))
        .order_by(Promotion.id)
    )


def _jobs(session: Session, file: DatasetVersion) -> Iterator[str]:
    """Trainings and evaluations that run or wait to run."""
    with_evaluations = _needing(file).add_columns(Evaluation.id)
    rows = session.execute(with_evaluations.outerjoin(Evaluation, Evaluation.job_id == Job.id)).all()
    ids = [
        public_id("fine-tuning job", job_id) if evaluation_id is None else public_id("evaluation", evaluation_id)
        for job_id, evaluation_id in rows
    ]
    if ids:
        yield f"{_named(ids)} {_still(ids, 'needs', 'need')} it: wait for the end, or cancel the job."


def _gates(session: Session, file: DatasetVersion) -> Iterator[str]:
    """Promotions that are not decided yet."""
    gates = [public_id("promotion", gate) for gate in session.scalars(_measuring(file))]
    if gates:
        yield f"{_named(gates)} {_still(gates, 'measures', 'measure')} on it: cancel the promotion, or wait for it."


def _scheduled(file: DatasetVersion) -> Select[str]:
    """Schedules whose request names the file, or whose dataset would be left without a version to train on.

    Not those that are paused: they are told when they fire again.
    """
    other = aliased(DatasetVersion)
    usable = (other.purpose == "fine-tune", other.status == "processed", other.deleted_at.is_(None))
    has_others = exists().where(other.dataset_id == file.dataset_id, other.id != file.id, *usable)
    is_last: ColumnElement[bool] = (Schedule.dataset_id == file.dataset_id) & ~has_others
    named = or_(
        Schedule.request["promotion"]["suites"].contains([_suite(file)]),
        Schedule.request["validation_file"].astext == public_id("file", file.id),
    )
    needed = or_(named, is_last) if file.purpose == "fine-tune" and file.status == "processed" else named
    going_on = (
        Schedule.project_id == file.project_id,
        Schedule.deleted_at.is_(None),
        Schedule.paused_because.is_(None),
    )
    return select(Schedule.name).where(*going_on, needed).order_by(Schedule.name)


def _schedules(session: Session, file: DatasetVersion) -> Iterator[str]:
    names = list(session.scalars(_scheduled(file)))
    if names:
        quoted = [f"'{name}'" for name in names]
        what = "The schedule" if len(names) == 1 else "The schedules"
        yield f"{what} {_named(quoted)} {_still(names, 'needs', 'need')} it: delete or change that first."


def _versions(session: Session, file: DatasetVersion) -> Iterator[str]:
    trained = (Job.dataset_version_id == file.id) | (Job.validation_version_id == file.id)
    statement = (
        select(Project.name, Expert.name, ExpertVersion.version, func.count().over())
        .join(Job, Job.id == ExpertVersion.job_id)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .where(trained, ExpertVersion.deleted_at.is_(None))
        .order_by(ExpertVersion.id.desc())
        .limit(NAMED)
    )
    rows = session.execute(statement).all()
    if rows:
        names = [f"{project}.{expert}@v{version}" for project, expert, version, _count in rows]
        were = "was" if rows[0][3] == 1 else "were"
        yield (
            f"{_named(names, rows[0][3])} {were} trained on it, and would name data that "
            "nobody can look up any more: keep it, or delete it all the same with 'force'."
        )


def _suite(file: DatasetVersion) -> dict[str, str]:
    return {"file": public_id("file", file.id)}


def _named(names: Sequence[str], count: int | None = None) -> str:
    more = (count or len(names)) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _still(names: Sequence[str], one: str, several: str) -> str:
    return f"still {one if len(names) == 1 else several}"
