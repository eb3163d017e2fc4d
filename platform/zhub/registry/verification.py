"""Verify a version as it is kept: its row against its signature, and its files in the store against its manifest.

What is found wrong is marked on the version, where everybody sees it, and taken back once nothing is. Opens sessions of
its own, none of them while it reads the store.
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Engine, update

from zhub.database.sessions import tenant_session
from zhub.errors import ArtifactError, ObjectMissingError
from zhub.manifest import MANIFEST_FILE
from zhub.models import ExpertVersion
from zhub.registry import signing, versions
from zhub.storage.object_store import ObjectStore
from zhub.tenancy.keys import Caller

MAX_HASHED_BYTES = 64 << 20
"""Of one file; of a larger one only the size is looked at here: whoever pulls it checks every byte."""

FileState = Literal["whole", "missing", "changed", "of the right size"]


@dataclass(frozen=True)
class Verification:
    """``problems`` are sentences that name what is wrong; ``signed``: there is a signature, and it was verified."""

    name: str
    signed: bool
    files: Mapping[str, FileState]
    problems: Sequence[str]


def verify(engine: Engine, store: ObjectStore, caller: Caller, name: str, secret_key: str) -> Verification:
    """Verify a version, and mark on it what is wrong.

    Raises:
        NotFoundError: there is no such version.
        ConflictError: it is not signed yet.
        StoreError: the store does not answer, so nothing is known.
    """
    problems = []
    with tenant_session(engine, caller.org_id) as session:
        record = versions.get_version(session, caller.project_id, name)
        version = record.version
        try:
            signing.check(session, record, secret_key)
        except ArtifactError as exc:
            problems.append(str(exc))
    signed = not problems
    expected = {file["name"]: (file["size_bytes"], file["sha256"]) for file in version.manifest["files"]}
    states = {name: _state(store, f"{version.key_prefix}/{name}", *sides) for name, sides in expected.items()}
    states[MANIFEST_FILE] = _state(store, f"{version.key_prefix}/{MANIFEST_FILE}", None, version.digest)
    problems += [f"{record.name}/{file} is {state} in the store." for file, state in states.items() if _is_bad(state)]
    _mark(engine, caller.org_id, version.id, " ".join(problems) or None)
    return Verification(record.name, signed, states, problems)


def mark_missing(engine: Engine, org_id: uuid.UUID, version_id: uuid.UUID, file: str) -> None:
    """Mark that the store has lost a file of a version, which somebody wanted to read."""
    _mark(engine, org_id, version_id, f"{file} is missing in the store.")


def _mark(engine: Engine, org_id: uuid.UUID, version_id: uuid.UUID, damage: str | None) -> None:
    with tenant_session(engine, org_id) as session:
        of_version = (ExpertVersion.id == version_id, ExpertVersion.damage.is_distinct_from(damage))
        session.execute(update(ExpertVersion).where(*of_version).values(damage=damage))


def _state(store: ObjectStore, key: str, size_bytes: int | None, sha256: str) -> FileState:
    try:
        size = store.size(key)
        if size_bytes is not None and size != size_bytes:
            return "changed"
        if size > MAX_HASHED_BYTES:
            return "of the right size"
        digest = hashlib.sha256()
        for piece in store.open(key):
            digest.update(piece)
    except ObjectMissingError:
        return "missing"
    return "whole" if digest.hexdigest() == sha256 else "changed"


def _is_bad(state: FileState) -> bool:
    return state in ("missing", "changed")
