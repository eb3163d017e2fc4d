"""Shadows: a version of a release that answers a share of an alias's requests beside it, and whose answers nobody gets.

A trial says how often both answered alike, chose the same experts, and what each took. It ends with the next move of
the alias, and its row stays. Functions take a Session and never commit.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from zhub.errors import ConflictError
from zhub.models import Alias, Release, ShadowTrial
from zhub.registry import releases
from zhub.registry.names import ALIAS_NAME
from zhub.registry.releases import ReleaseRecord


@dataclass(frozen=True)
class Side:
    """What an answer took: tokens of all its choices, and seconds from the request to its end."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a shadow did with one request. ``alike``: None where answers are drawn at random, and differ anyhow."""

    live: Side
    shadow: Side
    same_experts: bool
    alike: bool | None


def start(session: Session, alias: Alias, to: ReleaseRecord, share: float, *, by: str) -> ShadowTrial:
    """Let ``to`` answer ``share`` of an alias's requests too, in (0, 1]. A trial that runs ends.

    Raises:
        ConflictError: the alias points to nothing, or to this version.
        NotFoundError: the version was deleted meanwhile.
    """
    releases.keep(session, to)
    session.refresh(alias, with_for_update=True)
    if alias.release_version_id in (None, to.version.id):
        points = "nothing" if alias.release_version_id is None else f"{to.name} already"
        raise ConflictError(f"'@{alias.name}' points to {points}: there is no other version to answer beside.")
    end(session, alias.id)
    trial = ShadowTrial(
        org_id=alias.org_id,
        alias_id=alias.id,
        live_version_id=alias.release_version_id,
        shadow_version_id=to.version.id,
        share=share,
        by=by,
    )
    session.add(trial)
    session.flush()
    session.refresh(trial)
    return trial


def end(session: Session, alias_id: uuid.UUID) -> None:
    """End the trial that runs on an alias, if one does."""
    running = (ShadowTrial.alias_id == alias_id, ShadowTrial.ended_at.is_(None))
    session.execute(update(ShadowTrial).where(*running).values(ended_at=func.now()))


def trials(session: Session, alias_id: uuid.UUID, *, limit: int) -> list[ShadowTrial]:
    """Those of an alias, the newest first."""
    of_alias = select(ShadowTrial).where(ShadowTrial.alias_id == alias_id)
    return list(session.scalars(of_alias.order_by(ShadowTrial.id.desc()).limit(limit)))


def drawn(
    session: Session, project_id: uuid.UUID, alias: str, live: ReleaseRecord, request_id: str
) -> tuple[uuid.UUID, ReleaseRecord] | None:
    """The trial, and its shadow, that gets a request which ``live`` answers as ``<project>.<release>@<alias>``."""
    match = ALIAS_NAME.fullmatch(alias)
    if match is None:
        return None
    running = (
        select(ShadowTrial)
        .join(Alias, Alias.id == ShadowTrial.alias_id)
        .join(Release, Release.id == Alias.release_id)
        .where(Release.project_id == project_id, Release.name == match["expert"], Alias.name == match["alias"])
        .where(ShadowTrial.ended_at.is_(None), ShadowTrial.live_version_id == live.version.id)
    )
    trial = session.scalar(running)
    if trial is None:
        return None
    digest = hashlib.sha256(f"{trial.id}:{request_id}".encode("utf-8", "surrogatepass")).digest()
    if int.from_bytes(digest[:8]) / 2**64 >= trial.share:
        return None
    return trial.id, releases.by_id(session, [trial.shadow_version_id])[trial.shadow_version_id]


def record(session: Session, trial_id: uuid.UUID, outcomes: Sequence[Outcome], *, failed: int, left_out: int) -> None:
    """Add to a trial what its shadow did: what it answered, where it failed, and what it was too busy for."""
    comparable = [outcome for outcome in outcomes if outcome.alike is not None]
    added = {
        ShadowTrial.answered: len(outcomes),
        ShadowTrial.failed: failed,
        ShadowTrial.left_out: left_out,
        ShadowTrial.same_experts: sum(outcome.same_experts for outcome in outcomes),
        ShadowTrial.comparable: len(comparable),
        ShadowTrial.alike: sum(bool(outcome.alike) for outcome in comparable),
        ShadowTrial.live_tokens: sum(outcome.live.tokens for outcome in outcomes),
        ShadowTrial.shadow_tokens: sum(outcome.shadow.tokens for outcome in outcomes),
        ShadowTrial.live_seconds: sum(outcome.live.seconds for outcome in outcomes),
        ShadowTrial.shadow_seconds: sum(outcome.shadow.seconds for outcome in outcomes),
    }
    values = {column: column + amount for column, amount in added.items() if amount}
    if values:
        session.execute(update(ShadowTrial).where(ShadowTrial.id == trial_id).values(values))
