"""Verification: what rows name is looked for in the store; what is lost is named, and its version marked.

Functions open sessions of their own, a page at a time: the store may be slow, and nothing waits for it in a session.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, select, update

from zhub.database.sessions import system_session
from zhub.errors import DigestMismatchError, ObjectMissingError
from zhub.manifest import MANIFEST_FILE
from zhub.models import BaseModel, Checkpoint, DatasetVersion, Expert, ExpertVersion, Project
from zhub.storage.object_store import ObjectStore, check_digest

PAGE = 200
BASIS_FILE = "basis.json"  # its SHA-256 is the fingerprint of the basis


@dataclass(frozen=True)
class Named:
    """An object that a row names: of what, for people, under which key, in which size (None: not known), its digest."""

    owner: str
    key: str
    size_bytes: int | None
    sha256: str


@dataclass(frozen=True)
class Lost:
    """An object that is not as its row says."""

    named: Named
    why: str


@dataclass
class Verified:
    """What a pass has seen: how many objects, which are lost, which versions are marked now, or whole again."""

    objects: int = 0
    size_bytes: int = 0
    lost: list[Lost] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    whole_again: list[str] = field(default_factory=list)


def verify(
    engine: Engine, store: ObjectStore, *, deep: bool, on_object: Callable[[Named], None] = lambda _named: None
) -> Verified:
    """Look for every object of versions, datasets, checkpoints, bases and their bases of singular vectors.

    A version of which a file is lost is marked (``lost_files``): it answers nothing until the file is back and another
    pass has seen it. ``deep``: read each object and compare its digest, not its size alone.

    Raises:
        StoreError: the store itself does not answer; nothing is called lost for that.
    """
    found = Verified()

    def is_whole(named: Named) -> bool:
        on_object(named)
        found.objects += 1
        found.size_bytes += named.size_bytes or 0
        why = _why_lost(store, named, deep=deep)
        if why is not None:
            found.lost.append(Lost(named, why))
        return why is None

    for versions in _pages(engine, _versions):
        for version_id, name, marked, files in versions:
            lost = [file.key.rpartition("/")[2] for file in files if not is_whole(file)]
            if lost != (marked or []):
                _mark(engine, version_id, lost)
                (found.marked if lost else found.whole_again).append(name)
    for rows in _pages(engine, _datasets):
        for _, named in rows:
            is_whole(named)
    for rows in _pages(engine, _checkpoints):
        for _, named in rows:
            is_whole(named)
    for named in _base_files(engine):
        is_whole(named)
    for index in _bases(engine):
        if is_whole(index):
            for named in _matrices(store, index):
                is_whole(named)
    return found


def _why_lost(store: ObjectStore, named: Named, *, deep: bool) -> str | None:
    try:
        size_bytes = store.size(named.key)
        if named.size_bytes is not None and size_bytes != named.size_bytes:
            return f"it has {size_bytes:,} bytes, expected {named.size_bytes:,}"
        if deep:
            check_digest(store, named.key, sha256=named.sha256)
    except ObjectMissingError:
        return "it is not there"
    except DigestMismatchError as exc:
        return f"it has the sha256 {exc.actual}, expected {named.sha256}"
    return None


def _pages(engine: Engine, read: Callable[..., Sequence[tuple[Any, ...]]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Page after page, each of rows that begin with their id, in its order."""
    after = uuid.UUID(int=0)
    while page := read(engine, after):
        yield page
        after = page[-1][0]


def _versions(engine: Engine, after: uuid.UUID) -> Sequence[tuple[uuid.UUID, str, list[str] | None, list[Named]]]:
    statement = (
        select(ExpertVersion, Expert.name, Project.name)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .where(ExpertVersion.id > after, ExpertVersion.deleted_at.is_(None))
    )
    with system_session(engine) as session:
        rows = session.execute(statement.order_by(ExpertVersion.id).limit(PAGE)).all()
    named = []
    for version, expert, project in rows:
        name = f"{project}.{expert}@v{version.version}"
        files = [Named(name, f"{version.key_prefix}/{MANIFEST_FILE}", None, version.digest)]
        for file in version.manifest.get("files", []):
            files.append(Named(name, f"{version.key_prefix}/{file['name']}", file["size_bytes"], file["sha256"]))
        named.append((version.id, name, version.lost_files, files))
    return named


def _datasets(engine: Engine, after: uuid.UUID) -> Sequence[tuple[uuid.UUID, Named]]:
    statement = select(DatasetVersion).where(DatasetVersion.id > after, DatasetVersion.deleted_at.is_(None))
    with system_session(engine) as session:
        rows = session.scalars(statement.order_by(DatasetVersion.id).limit(PAGE)).all()
    return [(row.id, Named(f"file {row.filename}", row.key, row.size_bytes, row.sha256)) for row in rows]


def _base_files(engine: Engine) -> list[Named]:
    with system_session(engine) as session:
        bases = session.execute(select(BaseModel.name, BaseModel.source)).all()
    return [
        Named(f"base {name}", file["key"], file["size_bytes"], file["sha256"])
        for name, source in bases
        for file in source.get("files", [])
    ]


def _checkpoints(engine: Engine, after: uuid.UUID) -> Sequence[tuple[uuid.UUID, Named]]:
    """Of each its file that serving reads."""
    is_served = Checkpoint.z["name"].astext.is_not(None)
    statement = select(Checkpoint).where(Checkpoint.id > after, Checkpoint.deleted_at.is_(None), is_served)
    with system_session(engine) as session:
        rows = session.scalars(statement.order_by(Checkpoint.id).limit(PAGE)).all()
    return [
        (
            row.id,
            Named(f"checkpoint of job {row.job_id}", f"{row.key_prefix}/{z['name']}", z["size_bytes"], z["sha256"]),
        )
        for row in rows
        for z in [row.z]
    ]


def _bases(engine: Engine) -> list[Named]:
    """The index of each base's basis."""
    statement = select(BaseModel.name, BaseModel.basis_key_prefix, BaseModel.basis_fingerprint)
    with system_session(engine) as session:
        rows = session.execute(statement.where(BaseModel.status == "ready")).all()
    return [Named(f"basis of {name}", f"{prefix}/{BASIS_FILE}", None, str(sha256)) for name, prefix, sha256 in rows]


def _matrices(store: ObjectStore, index: Named) -> list[Named]:
    """The files that the index of a basis lists; none where it cannot be read as one, which ``--deep`` tells."""
    prefix = index.key.removesuffix(f"/{BASIS_FILE}")
    try:
        matrices = json.loads(b"".join(store.open(index.key)))["matrices"]
    except (ValueError, KeyError, TypeError):
        return []
    return [Named(index.owner, f"{prefix}/{matrix['file']}", None, matrix["sha256"]) for matrix in matrices]


def _mark(engine: Engine, version_id: uuid.UUID, lost: list[str]) -> None:
    with system_session(engine) as session:
        changed = update(ExpertVersion).where(ExpertVersion.id == version_id)
        session.execute(changed.values(lost_files=lost or None))
