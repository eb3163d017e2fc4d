"""A project's evaluations, found by what they measured and how far they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from zhub.database.pages import Page, created_since, read_page
from zhub.evaluation import subjects
from zhub.models import BaseModel, Evaluation, ExpertVersion, Job, ReleaseVersion
from zhub.queue.statuses import has_status
from zhub.registry import base_models, releases, versions
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller


@dataclass(frozen=True)
class EvaluationFilter:
    """Which evaluations; an attribute that is None, or empty, matches all."""

    status: Sequence[str] = ()
    """Any one of these."""
    model: str | None = None
    """``<project>.<name>@v<number>`` or ``@<alias>``; ``<project>.<name>``: all versions of an expert or release; or a
    base's name."""
    since: datetime | None = None
    search: str | None = None
    """A text in the name of its file, its grader or its base; letters of both cases are equal."""


def list_evaluations(
    session: Session, caller: Caller, wanted: EvaluationFilter, page: Page
) -> tuple[list[Evaluation], bool]:
    """The project's evaluations that ``wanted`` describes, and whether more follow.

    Raises:
        NotFoundError: there is no such model.
    """
    rows = select(Evaluation).where(Evaluation.project_id == caller.project_id)
    if wanted.status:
        rows = rows.join(Job, Job.id == Evaluation.job_id).where(or_(*map(has_status, wanted.status)))
    if wanted.model is not None:
        rows = rows.where(_measures(session, caller, wanted.model))
    if wanted.since is not None:
        rows = rows.where(created_since(Evaluation.created_at, Evaluation.id, wanted.since))
    return read_page(session, rows, Evaluation.id, page, search=_mentions(wanted.search) if wanted.search else None)


def _measures(session: Session, caller: Caller, model: str) -> ColumnElement[bool]:
    if "@" in model:
        record = subjects.find_version(session, caller.project_id, model)
        measured = Evaluation.version_id if isinstance(record, VersionRecord) else Evaluation.release_version_id
        return measured == record.version.id
    if model.startswith(f"{caller.project}."):
        if (release := releases.named_release(session, caller, model)) is not None:
            of_release = select(ReleaseVersion.id).where(ReleaseVersion.release_id == release.id)
            return Evaluation.release_version_id.in_(of_release)
        expert = versions.get_expert(session, caller, model)
        return Evaluation.version_id.in_(select(ExpertVersion.id).where(ExpertVersion.expert_id == expert.id))
    base = base_models.get(session, caller.org_id, model)
    return (Evaluation.base_model_id == base.id) & subjects.measures_base()


def _mentions(words: str) -> ColumnElement[bool]:
    bases = select(BaseModel.id).where(BaseModel.name.icontains(words, autoescape=True))
    named = (Evaluation.suite["file"]["name"], Evaluation.suite["grader"]["name"])
    return or_(Evaluation.base_model_id.in_(bases), *(name.astext.icontains(words, autoescape=True) for name in named))
