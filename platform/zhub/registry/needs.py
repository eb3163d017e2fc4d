"""What needs an expert version: aliases, releases, gates, evaluations, jobs and schedules; and how each is detached.

A version is deleted or yanked once nothing needs it. Who asks for it may have the needs detached: an alias then points
to nothing, a job or gate is cancelled, a schedule is paused with the reason. Functions take a Session and never commit.
"""

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sqlalchemy import ColumnElement, Select, and_, cast, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import ConflictError
from zhub.ids import public_id
from zhub.models import Alias, Evaluation, Expert, ExpertVersion, Job, Project, Promotion, Schedule
from zhub.queue.desired import request_cancel
from zhub.registry import aliases, metadata, releases, shadows
from zhub.registry.releases import ReleaseRecord
from zhub.registry.versions import find_version

Action = Literal["delete", "yank"]
RELEASE_REMEDY: dict[Action, str] = {
    "delete": "Delete that release version first (DELETE /v1/releases/{version}), or archive the expert version "
    "instead.",
    "yank": "Move the release's aliases to another version of it first (PUT /v1/releases/{release}/aliases/{alias}).",
}
GOING_ON = (Job.finished_at.is_(None), Job.desired != "cancel")


@dataclass(frozen=True)
class Need:
    """One thing that needs a version of an expert, or the expert itself.

    ``needed`` is the name of what is needed, ``sentence`` tells people what needs it and what they can do.
    """

    kind: Literal["alias", "release", "promotion", "evaluation", "fine-tuning job", "schedule"]
    name: str
    needed: str
    sentence: str
    detach: Callable[[Session, str], None]
    """Called with why, in a sentence."""


def of_versions(
    session: Session, expert: Expert, which: Sequence[ColumnElement[bool]], action: Action, *, by: str
) -> Iterator[Need]:
    """What needs one of these versions of an expert. ``by``: who would detach it, for the history of aliases."""
    full_name = f"{session.get_one(Project, expert.project_id).name}.{expert.name}"
    names = {
        version_id: f"{full_name}@v{number}"
        for version_id, number in session.execute(select(ExpertVersion.id, ExpertVersion.version).where(*which))
    }
    ids = ExpertVersion.id.in_(list(names))
    for alias in session.scalars(select(Alias).where(Alias.version_id.in_(names)).order_by(Alias.name)):
        needed = names[alias.version_id] if alias.version_id else full_name
        yield Need(
            "alias",
            f"{full_name}@{alias.name}",
            needed,
            f"'@{alias.name}' points to {needed}. Move it to another version "
            "(PUT /v1/experts/{expert}/aliases/{alias}), or remove it (DELETE /v1/experts/{expert}/aliases/{alias}).",
            partial(_remove_alias, alias=alias, by=by),
        )
    for version_id, release in releases.pinning(session, list(names)):
        # A release that pins a yanked version stays, and answers nothing: only what asks it is in the way.
        if action == "delete" or releases.sending(session, release):
            yield Need(
                "release",
                release.name,
                names[version_id],
                f"The release {release.name} pins {names[version_id]}. {RELEASE_REMEDY[action]}",
                partial(_detach_release, record=release, action=action, by=by),
            )
    for version_id, promotion_id, job_id in session.execute(_gates(ids, expert)):
        gate = public_id("promotion", promotion_id)
        yield Need(
            "promotion",
            gate,
            names[version_id],
            f"The gate of {gate} decides about {names[version_id]}. Wait for it, or cancel it "
            "(POST /v1/promotions/{promotion_id}/cancel).",
            partial(_cancel, job_id=job_id),
        )
    for version_id, evaluation_id, job_id in session.execute(_evaluations(ids, expert)):
        evaluation = public_id("evaluation", evaluation_id)
        sentence = f"{evaluation} measures {names[version_id]}. Wait until it has ended."
        yield Need("evaluation", evaluation, names[version_id], sentence, partial(_cancel, job_id=job_id))
    yield from _beginning(session, expert, names)
    yield from _scheduled(session, expert, set(names.values()))


def of_expert(session: Session, expert: Expert) -> Iterator[Need]:
    """What trains an expert: jobs that have not ended, and schedules."""
    full_name = f"{session.get_one(Project, expert.project_id).name}.{expert.name}"
    for job_id in session.scalars(select(Job.id).where(Job.expert_id == expert.id, *GOING_ON).order_by(Job.id)):
        job = public_id("fine-tuning job", job_id)
        sentence = f"{job} trains '{expert.name}' and has not ended. Wait for it, or cancel it."
        yield Need("fine-tuning job", job, full_name, sentence, partial(_cancel, job_id=job_id))
    by_feedback = select(Schedule).where(Schedule.feedback_expert_id == expert.id, Schedule.deleted_at.is_(None))
    for schedule in (*metadata.trained_by(session, expert), *session.scalars(by_feedback)):
        if schedule.paused_because is None:
            yield Need(
                "schedule",
                schedule.name,
                full_name,
                f"The schedule '{schedule.name}' trains '{expert.name}'. Remove the schedule first "
                "(DELETE /v1/schedules/{schedule_id}).",
                partial(_pause, schedule=schedule),
            )


def lock(session: Session, which: ColumnElement[bool]) -> None:
    """Nothing comes to need these versions from here on: what does, locks their rows first (``versions.keep``)."""
    session.execute(select(ExpertVersion.id).where(which).order_by(ExpertVersion.id).with_for_update())


def refuse(needs: Iterable[Need]) -> None:
    """Raise ConflictError, with what to do, for the first of these."""
    for need in needs:
        raise ConflictError(f"{need.sentence} Or have all that needs it detached (`detach`).")


def detach(session: Session, needs: Iterable[Need], why: str) -> None:
    """Detach all of these. Before the versions are locked: who fires a schedule locks it before the versions it needs.

    Raises:
        ConflictError: an alias is watched by a schedule, or protected.
    """
    for need in list(needs):
        need.detach(session, why)
    session.flush()


def _gates(ids: ColumnElement[bool], expert: Expert) -> Select[uuid.UUID, uuid.UUID, uuid.UUID]:
    """Gates that are not decided, also of a training that has published and not been looked at since."""
    is_decided_for = or_(Promotion.version_id == ExpertVersion.id, Promotion.training_job_id == ExpertVersion.job_id)
    return (
        select(ExpertVersion.id, Promotion.id, Job.id)
        .join(Promotion, and_(Promotion.project_id == expert.project_id, is_decided_for))
        .join(Job, Job.id == Promotion.job_id)
        .where(ids, Job.org_id == expert.org_id, Job.state == states.WAITING, Job.desired != "cancel")
    )


def _evaluations(ids: ColumnElement[bool], expert: Expert) -> Select[uuid.UUID, uuid.UUID, uuid.UUID]:
    of_project = Evaluation.project_id == expert.project_id
    return (
        select(ExpertVersion.id, Evaluation.id, Job.id)
        .join(Evaluation, and_(of_project, Evaluation.version_id == ExpertVersion.id))
        .join(Job, Job.id == Evaluation.job_id)
        .where(ids, *GOING_ON)
    )


def _beginning(session: Session, expert: Expert, names: Mapping[uuid.UUID, str]) -> Iterator[Need]:
    """Trainings that have not ended and may begin from one of the versions."""
    starts = Job.spec["starts"]
    live = select(Job.id, starts).where(
        Job.org_id == expert.org_id,
        Job.project_id == expert.project_id,
        Job.kind == "train",
        *GOING_ON,
        starts != cast([], JSONB),
    )
    jobs = [(start["digest"], job_id) for job_id, listed in session.execute(live) for start in listed or []]
    digests = dict(
        session.execute(
            select(ExpertVersion.digest, ExpertVersion.id).where(
                ExpertVersion.id.in_(names), ExpertVersion.digest.in_([digest for digest, _ in jobs])
            )
        ).all()
    )
    for digest, job_id in jobs:
        if digest in digests:
            job, needed = public_id("fine-tuning job", job_id), names[digests[digest]]
            sentence = f"{job} may begin from {needed}. Wait for it, or cancel it."
            yield Need("fine-tuning job", job, needed, sentence, partial(_cancel, job_id=job_id))


def _scheduled(session: Session, expert: Expert, names: Collection[str]) -> Iterator[Need]:
    """Schedules whose trainings begin from one of the versions; one that is paused is told when it fires again."""
    of_project = (Schedule.project_id == expert.project_id, Schedule.deleted_at.is_(None))
    going_on = select(Schedule).where(*of_project, Schedule.paused_because.is_(None))
    for schedule in session.scalars(going_on.order_by(Schedule.name)):
        named = find_version(session, expert.project_id, str(schedule.request.get("model")))
        if named is not None and named.name in names:
            yield Need(
                "schedule",
                schedule.name,
                named.name,
                f"The trainings of the schedule '{schedule.name}' begin from {named.name}. Remove the schedule first "
                "(DELETE /v1/schedules/{schedule_id}).",
                partial(_pause, schedule=schedule),
            )


def _remove_alias(session: Session, why: str, *, alias: Alias, by: str) -> None:
    aliases.remove(session, alias, by=by, reason=why)


def _detach_release(session: Session, why: str, *, record: ReleaseRecord, action: Action, by: str) -> None:
    """Let no alias send requests to the release version; it is deleted with what it pins, and otherwise stays."""
    for alias in releases.sending(session, record):
        if alias.release_version_id == record.version.id or alias.release_version_id is None:
            aliases.remove(session, alias, by=by, reason=why)
            continue
        if alias.canary_version_id == record.version.id:
            stays = releases.by_id(session, [alias.release_version_id])[alias.release_version_id]
            aliases.move(session, alias.name, stays, by=by, reason=why)
        shadows.end(session, alias.id)
    if action == "delete":
        releases.delete(session, record)


def _cancel(session: Session, _why: str, *, job_id: uuid.UUID) -> None:
    request_cancel(session, job_id)


def _pause(session: Session, why: str, *, schedule: Schedule) -> None:
    session.execute(
        update(Schedule)
        .where(Schedule.id == schedule.id, Schedule.paused_because.is_(None))
        .values(paused_because=f"{why} Change what it begins from, and resume it.")
    )
