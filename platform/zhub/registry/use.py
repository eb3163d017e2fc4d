"""How much each version is used, which the catalogue sorts by: added where tokens are metered."""

import uuid
from collections import Counter
from collections.abc import Iterable

from sqlalchemy import bindparam, select, tuple_, update
from sqlalchemy.orm import Session

from zhub.models import CatalogueEntry, Expert, ExpertVersion, Project
from zhub.registry.names import VERSION_NAME


def add(session: Session, used: Iterable[tuple[str, int]]) -> None:
    """Add tokens to versions of the session's organisation, by what ``TokenUsage.experts`` has; other names are left
    out. The caller commits.
    """
    tokens: Counter[tuple[str, str, int]] = Counter()
    for experts, count in used:
        for name in experts.split(" + "):
            if match := VERSION_NAME.fullmatch(name):
                tokens[match["project"], match["expert"], int(match["number"])] += count
    if not tokens:
        return
    named = tuple_(Project.name, Expert.name, ExpertVersion.version)
    rows = session.execute(
        select(ExpertVersion.id, Project.name, Expert.name, ExpertVersion.version)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .where(named.in_(list(tokens)))
    )
    add_to_versions(
        session, [(version_id, tokens[project, expert, number]) for version_id, project, expert, number in rows]
    )


def add_to_versions(session: Session, used: Iterable[tuple[uuid.UUID, int]]) -> None:
    """Add tokens to versions of the session's organisation. The caller commits."""
    by_version: Counter[uuid.UUID] = Counter()
    for version_id, count in used:
        by_version[version_id] += count
    # In one order, or two processes could each wait for a row of the other's.
    locked = select(CatalogueEntry.version_id).where(CatalogueEntry.version_id.in_(by_version))
    found = session.scalars(locked.order_by(CatalogueEntry.version_id).with_for_update()).all()
    if found:
        of_version = update(CatalogueEntry).where(CatalogueEntry.version_id == bindparam("used_version"))
        added = of_version.values(used_tokens=CatalogueEntry.used_tokens + bindparam("used_more"))
        session.connection().execute(
            added, [{"used_version": version_id, "used_more": by_version[version_id]} for version_id in found]
        )
