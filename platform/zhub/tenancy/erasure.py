"""Erase an organisation with all that it has, in the database and in the store; a signed proof of that stays.

It is done in bounded steps, each of which notes in its own transaction what it removed. Whoever calls again after a
crash goes on where it stopped. The proof has the organisation's id, which nobody else gets, and not its name; counts of
rows and objects, and a digest over the ids and keys of all of them. Opens sessions of its own.
"""

import hashlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from sqlalchemy import Column, Engine, Table, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub import attestation, states
from zhub.attestation import PLATFORM, STATEMENT_TYPE
from zhub.database.sessions import system_session
from zhub.errors import NotFoundError, NotReadyError
from zhub.ids import new_id, public_id
from zhub.models import ApiKey, Base, BaseModel, Erasure, ExpertVersion, Job, Organization
from zhub.storage.object_store import ObjectStore

BATCH_ROWS = 2000
BATCH_OBJECTS = 500
PREDICATE_TYPE = "urn:zhub:erasure:v1"

log = logging.getLogger("zhub.tenancy")


def begin(engine: Engine, organization: str, *, by: str, reason: str | None) -> uuid.UUID:
    """Let an organisation do nothing more, and note that it is erased; return its id. Again, it is the same erasure.

    ``organization``: its name, or the public id of one whose erasure has begun.

    Raises:
        NotFoundError: there is no such organisation.
        NotReadyError: workers still run jobs of it, which are being cancelled now.
    """
    with system_session(engine) as session:
        org_id = session.scalar(select(Organization.id).where(Organization.name == organization))
        if org_id is None:
            raise NotFoundError("organization", organization)
        row = {"id": new_id(), "erased_org_id": org_id, "by": by, "reason": reason}
        session.execute(insert(Erasure).values(row).on_conflict_do_nothing())
        keys = (ApiKey.org_id == org_id, ApiKey.revoked_at.is_(None))
        session.execute(update(ApiKey).where(*keys).values(revoked_at=func.now()))
        going_on = (Job.org_id == org_id, Job.finished_at.is_(None))
        session.execute(update(Job).where(*going_on, Job.desired != "cancel").values(desired="cancel"))
        running = session.scalar(select(func.count()).where(*going_on, Job.state.in_(states.ACTIVE))) or 0
    if running:
        raise NotReadyError(
            f"{running} jobs of '{organization}' still run, and are being cancelled. Its keys are revoked. Call again "
            "in a minute."
        )
    return org_id


def erase(engine: Engine, store: ObjectStore, org_id: uuid.UUID, secret_key: str) -> Erasure:
    """Remove all that an organisation has, whose erasure has begun; return the erasure with its signed proof.

    Raises:
        NotFoundError: its erasure has not begun.
        StoreError: the store does not answer; the rest is removed by another call.
    """
    with system_session(engine) as session:
        erasure = session.scalar(select(Erasure).where(Erasure.erased_org_id == org_id))
        if erasure is None:
            raise NotFoundError("organization", public_id("organization", org_id), "Its erasure has not begun.")
        if erasure.proof is not None:
            return erasure
        prefixes = [f"t/{org_id.hex}/", *_private_prefixes(session, org_id)]
    for prefix in prefixes:
        while keys := list(islice(store.keys(prefix), BATCH_OBJECTS)):
            for key in keys:
                store.delete(key)
            with system_session(engine) as session:
                _note(session, org_id, "", keys, objects=len(keys))
    for table, column in _owned():
        while _delete_some(engine, org_id, table, column):
            pass
    with system_session(engine) as session:
        session.execute(update(BaseModel).where(BaseModel.owner_org_id == org_id).values(owner_org_id=None))
        session.execute(delete(Organization).where(Organization.id == org_id))
        _prove(session, org_id, secret_key)
        log.info("erased %s", org_id, extra={"action": "organization_erased", "org_id": org_id})
        return session.scalars(select(Erasure).where(Erasure.erased_org_id == org_id)).one()


def _owned() -> Iterator[tuple[Table, Column[Any]]]:
    """Every table whose rows belong to an organisation, by the column that says to which: those that point to others
    first."""
    for table in reversed(Base.metadata.sorted_tables):
        for key in table.foreign_keys:
            if key.column.table.name == "organizations" and len(key.constraint.columns if key.constraint else ()) == 1:
                yield table, key.parent


def _delete_some(engine: Engine, org_id: uuid.UUID, table: Table, column: Column[Any]) -> bool:
    """Delete a batch of a table's rows, and note it; False once there are none."""
    rows = column == org_id
    if table.name == BaseModel.__tablename__:
        rows = rows & table.c.private
    with system_session(engine) as session:
        session.execute(text("SELECT set_config('zhub.erasing', :org, true)"), {"org": str(org_id)})
        if table.name == ExpertVersion.__tablename__:
            # A version may be the successor of one of another batch.
            session.execute(update(table).where(rows, table.c.successor_id.is_not(None)).values(successor_id=None))
        batch = select(table.c.id).where(rows).limit(BATCH_ROWS)
        ids = session.scalars(delete(table).where(table.c.id.in_(batch)).returning(table.c.id)).all()
        if ids:
            _note(session, org_id, table.name, sorted(map(str, ids)))
    return bool(ids)


def _note(session: Session, org_id: uuid.UUID, table: str, names: Sequence[str], *, objects: int = 0) -> None:
    """Add to the proof what was removed: its digest is that of the one before and the names of these."""
    erasure = session.scalars(select(Erasure).where(Erasure.erased_org_id == org_id).with_for_update()).one()
    chained = hashlib.sha256("\n".join([erasure.digest, table, *names]).encode("utf-8", "surrogatepass"))
    erasure.digest = chained.hexdigest()
    erasure.objects += objects
    if table:
        erasure.counts = erasure.counts | {table: erasure.counts.get(table, 0) + len(names)}


def _private_prefixes(session: Session, org_id: uuid.UUID) -> list[str]:
    """Where objects of the organisation's private base models lie that no other base has."""
    owned = (BaseModel.owner_org_id == org_id, BaseModel.private)
    own = session.scalars(select(BaseModel).where(*owned)).all()
    others = session.scalars(select(BaseModel).where(BaseModel.id.not_in([base.id for base in own]))).all()

    def keys(bases: Sequence[BaseModel]) -> set[str]:
        files = {file["key"] for base in bases for file in base.source.get("files", [])}
        return files | {f"{base.basis_key_prefix}/" for base in bases if base.basis_key_prefix}

    return sorted(keys(own) - keys(others))


def _prove(session: Session, org_id: uuid.UUID, secret_key: str) -> None:
    """Sign what was removed, with the platform's key: the organisation's went with it."""
    erasure = session.scalars(select(Erasure).where(Erasure.erased_org_id == org_id).with_for_update()).one()
    erasure.finished_at = datetime.now(UTC)
    erasure.counts = erasure.counts | {"organizations": 1}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": public_id("organization", org_id), "digest": {"sha256": erasure.digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "rows": erasure.counts,
            "objects": erasure.objects,
            "by": erasure.by,
            "reason": erasure.reason,
            "runDetails": {
                "metadata": {
                    "startedOn": erasure.started_at.astimezone(UTC).isoformat(),
                    "finishedOn": erasure.finished_at.isoformat(),
                }
            },
        },
    }
    erasure.proof = attestation.sign(attestation.private_key(PLATFORM, 1, secret_key), statement).model_dump()
    session.flush()
