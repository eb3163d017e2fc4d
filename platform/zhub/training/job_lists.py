"""A project's fine-tuning jobs: found by what they are, with the results of those that published a version.

Functions take a Session and never commit.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Text, cast, or_, select, text
from sqlalchemy.orm import Session

from zhub.database.pages import Page, created_since, read_page
from zhub.evaluation.forgetting import forgetting_of
from zhub.manifest import Evaluation
from zhub.models import DatasetVersion, Expert, ExpertVersion, Job
from zhub.queue.statuses import has_status
from zhub.registry import versions
from zhub.tenancy.keys import Caller


@dataclass(frozen=True)
class JobFilter:
    """Which fine-tuning jobs; an attribute that is None, or empty, matches all."""

    status: Sequence[str] = ()
    """Any one of these."""
    method: str | None = None
    expert: str | None = None
    """``<project>.<expert>``, or the expert's name alone."""
    since: datetime | None = None
    metadata: Mapping[str, str] | None = None
    """All of these pairs; an empty mapping: jobs without metadata."""
    archived: bool = False
    """Only those that are archived, instead of only those that are not."""
    search: str | None = None
    """A text in its name, description, metadata, error, base, or file; letters of both cases are equal."""


def list_jobs(session: Session, caller: Caller, wanted: JobFilter, page: Page) -> tuple[list[Job], bool]:
    """The project's fine-tuning jobs that ``wanted`` describes, and whether more follow.

    Raises:
        NotFoundError: there is no such expert.
    """
    # Plan at 10^6 jobs: the next :limit + 1 entries of ix_jobs_project, 0.1 ms; of ix_jobs_failed for what failed.
    # A filter that few of the project's jobs meet reads on until it has found them.
    rows = select(Job).where(Job.project_id == caller.project_id, Job.kind == "train", *_conditions(wanted))
    if wanted.expert is not None:
        name = wanted.expert if "." in wanted.expert else f"{caller.project}.{wanted.expert}"
        rows = rows.where(Job.expert_id == versions.get_expert(session, caller, name).id)
    search = _mentions(caller.project_id, wanted.search) if wanted.search else None
    return read_page(session, rows, Job.id, page, search=search)


def results_of(session: Session, listed: Sequence[Job]) -> dict[uuid.UUID, dict[str, Any]]:
    """For each of these jobs that published a version: its best step, and how base and expert did on test rows.

    ``learned_nothing``: no step was better than what training began from, so the version equals it. ``general`` says
    what the expert does better and worse beside its task, None where that was not measured.
    """
    manifest = ExpertVersion.manifest
    published = session.execute(
        select(ExpertVersion.job_id, manifest["best_step"].as_integer(), manifest["evaluations"]).where(
            ExpertVersion.job_id.in_([job.id for job in listed])
        )
    )
    return {job_id: _result(best_step, evaluations or []) for job_id, best_step, evaluations in published}


def _result(best_step: int, evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    test = next((evaluation for evaluation in evaluations if evaluation["split"] == "test"), None)
    forgetting = forgetting_of(map(Evaluation.model_validate, evaluations))
    general = forgetting.whole.evaluation if forgetting else None
    return {
        "best_step": best_step,
        "learned_nothing": best_step == 0,
        "base_mean": test["base"]["mean"] if test else None,
        "expert_mean": test["expert"]["mean"] if test else None,
        "p_value": test["p_value"] if test else None,
        "general_base_mean": general.base.mean if general else None,
        "general_expert_mean": general.expert.mean if general else None,
        "general": forgetting.sentence if forgetting else None,
    }


def _conditions(wanted: JobFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        Job.archived_at.is_not(None) if wanted.archived else Job.archived_at.is_(None)
    ]
    if wanted.status:
        conditions.append(or_(*map(has_status, wanted.status)))
    if wanted.method is not None:
        conditions.append(Job.request["method"]["type"].astext == wanted.method)
    if wanted.since is not None:
        conditions.append(created_since(Job.created_at, Job.id, wanted.since))
    if wanted.metadata:
        conditions.append(Job.request["metadata"].contains(dict(wanted.metadata)))
    elif wanted.metadata is not None:
        conditions.append(Job.request["metadata"] == text("'{}'::jsonb"))
    return conditions


def _mentions(project_id: uuid.UUID, words: str) -> ColumnElement[bool]:
    experts = select(Expert.id).where(Expert.project_id == project_id, Expert.name.icontains(words, autoescape=True))
    files = select(DatasetVersion.id).where(
        DatasetVersion.project_id == project_id, DatasetVersion.filename.icontains(words, autoescape=True)
    )
    texts = (
        Job.description,
        Job.error["message"].astext,
        Job.request["model"].astext,
        cast(Job.request["metadata"], Text),
    )
    return or_(
        Job.expert_id.in_(experts),
        Job.dataset_version_id.in_(files),
        *(column.icontains(words, autoescape=True) for column in texts),
    )
