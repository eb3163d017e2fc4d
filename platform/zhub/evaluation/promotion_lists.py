"""Promotions as they are looked up, and the versions that they are for."""

import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.errors import NotFoundError
from zhub.evaluation.subjects import Record
from zhub.ids import public_id
from zhub.models import Promotion
from zhub.registry import releases, versions


def get(session: Session, project_id: uuid.UUID, promotion_id: uuid.UUID) -> Promotion:
    """The promotion with this id in the project. Raises NotFoundError."""
    promotion = session.get(Promotion, promotion_id)
    if promotion is None or promotion.project_id != project_id:
        raise NotFoundError("promotion", public_id("promotion", promotion_id))
    return promotion


def list_promotions(
    session: Session, project_id: uuid.UUID, *, after: uuid.UUID | None, limit: int
) -> tuple[list[Promotion], bool]:
    """The project's promotions, newest first, and whether more follow."""
    statement = select(Promotion).where(Promotion.project_id == project_id)
    if after is not None:
        statement = statement.where(Promotion.id < after)
    newest = list(session.scalars(statement.order_by(Promotion.id.desc()).limit(limit + 1)))
    return newest[:limit], len(newest) > limit


def of_trainings(session: Session, job_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
    """The promotion that waits or has waited for each of these trainings, where there is one."""
    rows = session.execute(
        select(Promotion.training_job_id, Promotion.id).where(Promotion.training_job_id.in_(job_ids))
    )
    return {training_id: promotion_id for training_id, promotion_id in rows if training_id is not None}


def model_names(session: Session, listed: Sequence[Promotion]) -> dict[uuid.UUID, str]:
    """The version that each of these promotions is for, where its training has published one already."""
    experts = versions.by_id(session, [promotion.version_id for promotion in listed if promotion.version_id])
    of_releases = releases.by_id(
        session, [promotion.release_version_id for promotion in listed if promotion.release_version_id]
    )
    records: dict[uuid.UUID, Record] = {**experts, **of_releases}
    return {
        promotion.id: records[version_id].name
        for promotion in listed
        if (version_id := promotion.version_id or promotion.release_version_id) is not None
    }
