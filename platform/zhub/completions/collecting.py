"""Versions of datasets that are made of stored completions: asked for here, and written by a scheduler.

The rows go from the database to a file, a few at a time, and from there to the store; then the version is registered
as an uploaded file is. Functions that take a Session never commit.
"""

import contextlib
import hashlib
import logging
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, BinaryIO, cast

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import ColumnElement, Engine, func, or_, select, update
from sqlalchemy.orm import Session

from zhub.completions import conditions, listing
from zhub.completions.dataset_rows import row_of
from zhub.database.pages import Page, read_page
from zhub.database.sessions import now, system_session
from zhub.datasets import files
from zhub.datasets.validation import MAX_FILE_BYTES, MAX_ROWS
from zhub.errors import InvalidRequestError, NotFoundError, StoreError, UnavailableError, ZhubError
from zhub.ids import new_id, public_id
from zhub.manifest import CHUNK_BYTES
from zhub.models import CompletionDataset, DatasetVersion, Feedback, Project, StoredCompletion
from zhub.objects.reservations import reserve
from zhub.recipes import Recipe
from zhub.storage.keys import dataset_key
from zhub.storage.object_store import ObjectStore, put_content
from zhub.tenancy import quotas
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import check_name

KIND = "completion dataset"
DEFAULT_MAX_ROWS = 100_000
WINDOW = 500  # completions of a project that one transaction looks at
FETCHED = 20  # of these that are in memory at a time: each may have a mebibyte
CLAIM = timedelta(minutes=2)
MAX_WAITING = 100  # of one project

log = logging.getLogger("zhub.completions")


class CollectionRequest(Schema):
    """A dataset of stored completions: the newest ones that ``where`` describes."""

    model_config = ConfigDict(extra="forbid")
    dataset: str
    """The dataset's name: this becomes its next version, or its first."""
    where: str = ""
    """Which completions: see the guide. An empty text means all."""
    method: Recipe = "supervised"
    """What will train on it: rows have the form that it reads."""
    max_rows: Annotated[int, Field(strict=True, ge=1, le=MAX_ROWS)] = DEFAULT_MAX_ROWS


@dataclass
class Provenance:
    """What a dataset was made of: the rows, what was left out, and when the oldest and the newest were stored."""

    where: str
    method: str
    rows: int = 0
    left_out: int = 0
    """Completions that are no rows: they have tools, no text or too much of it; for dpo also no better answer."""
    oldest_at: str | None = None
    newest_at: str | None = None
    cut: bool = False
    """Whether there were more than may be."""


def request(session: Session, caller: Caller, wanted: CollectionRequest) -> CompletionDataset:
    """Ask for a version of a dataset.

    Raises:
        InvalidRequestError: the name or the conditions are none, or too many wait.
        NotFoundError: a condition names an expert that is not there.
    """
    check_name(wanted.dataset, "dataset", param="dataset")
    conditions.as_sql(session, caller, conditions.parse(wanted.where))
    waiting = select(func.count()).where(
        CompletionDataset.project_id == caller.project_id, CompletionDataset.status == "queued"
    )
    if session.scalars(waiting).one() >= MAX_WAITING:
        raise InvalidRequestError(
            f"The project waits for {MAX_WAITING} datasets of completions; wait for some of them."
        )
    made = CompletionDataset(org_id=caller.org_id, project_id=caller.project_id, **wanted.model_dump())
    session.add(made)
    session.flush()
    session.refresh(made)
    return made


def get(session: Session, project_id: uuid.UUID, dataset_id: uuid.UUID) -> CompletionDataset:
    """The one with this id in the project. Raises NotFoundError."""
    row = session.scalar(
        select(CompletionDataset).where(CompletionDataset.id == dataset_id, CompletionDataset.project_id == project_id)
    )
    if row is None:
        raise NotFoundError(KIND, public_id(KIND, dataset_id))
    return row


def list_datasets(session: Session, project_id: uuid.UUID, page: Page) -> tuple[list[CompletionDataset], bool]:
    """The project's, and whether more follow."""
    rows = select(CompletionDataset).where(CompletionDataset.project_id == project_id)
    return read_page(session, rows, CompletionDataset.id, page)


def provenance_of(session: Session, versions: Sequence[DatasetVersion]) -> dict[uuid.UUID, dict[str, Any]]:
    """For each of these files that was made of completions, of which."""
    ids = [version.id for version in versions]
    rows = select(CompletionDataset.version_id, CompletionDataset.provenance).where(
        CompletionDataset.version_id.in_(ids)
    )
    return {version_id: told for version_id, told in session.execute(rows) if version_id is not None}


def collect_next(engine: Engine, store: ObjectStore, stopping: threading.Event) -> bool:
    """Write one dataset that was asked for; False if none was. Schedulers call this again and again.

    What cannot be made is failed, with the reason. A scheduler that dies is followed by another after ``CLAIM``.
    """
    claim = new_id()
    with system_session(engine) as session:
        claimed = _claim(session, claim)
    if claimed is None:
        return False
    try:
        with _file_of_rows(engine, claimed, claim, stopping) as (file, provenance):
            if stopping.is_set():
                return True
            _publish(engine, store, claimed, claim, file, provenance)
    except _Lost:
        pass  # another scheduler writes it
    except (UnavailableError, StoreError):
        raise  # tried again when the claim is over
    except Exception as exc:  # one that cannot be made must not stop all others
        _fail(engine, claimed, claim, exc)
    return True


class _Lost(Exception):
    """The claim is another scheduler's."""


def _fail(engine: Engine, wanted: CompletionDataset, claim: uuid.UUID, exc: Exception) -> None:
    why = str(exc)
    if not isinstance(exc, ZhubError):
        why = f"zhub failed to make it ({type(exc).__name__}); the scheduler's log says why."
        extra = {"action": "collect_failed", "org_id": wanted.org_id}
        log.error("dataset %s of completions", wanted.id, exc_info=exc, extra=extra)
    with system_session(engine) as session, contextlib.suppress(_Lost):
        _end(session, wanted.id, claim, status="failed", error=why)


def _claim(session: Session, claim: uuid.UUID) -> CompletionDataset | None:
    free = or_(CompletionDataset.claimed_until.is_(None), CompletionDataset.claimed_until < func.now())
    due = select(CompletionDataset).where(CompletionDataset.status == "queued", free).order_by(CompletionDataset.id)
    row = session.scalar(due.limit(1).with_for_update(skip_locked=True))
    if row is not None:
        row.claim, row.claimed_until = claim, now(session) + CLAIM
        session.flush()
    return row


def _renew(session: Session, dataset_id: uuid.UUID, claim: uuid.UUID) -> None:
    renewed = (
        update(CompletionDataset)
        .where(CompletionDataset.id == dataset_id, CompletionDataset.claim == claim)
        .values(claimed_until=func.now() + CLAIM)
        .returning(CompletionDataset.id)
    )
    if session.scalar(renewed) is None:
        raise _Lost


@contextlib.contextmanager
def _file_of_rows(
    engine: Engine, wanted: CompletionDataset, claim: uuid.UUID, stopping: threading.Event
) -> Iterator[tuple[BinaryIO, Provenance]]:
    """A file on disk with the rows, the newest first, and what they are."""
    provenance = Provenance(wanted.where, wanted.method)
    with tempfile.TemporaryFile() as file:
        after: uuid.UUID | None = None
        while not stopping.is_set() and not provenance.cut:
            with system_session(engine) as session:
                _renew(session, wanted.id, claim)
                project = session.get_one(Project, wanted.project_id)
                caller = Caller(wanted.id, wanted.org_id, wanted.project_id, project.name, frozenset())
                clauses = conditions.as_sql(session, caller, conditions.parse(wanted.where))
                last = _last_of_window(session, wanted.project_id, after)
                if last is None:
                    break
                _write_window(session, wanted, (after, last), clauses, cast(BinaryIO, file), provenance)
            after = last
        file.seek(0)
        yield cast(BinaryIO, file), provenance


def _last_of_window(session: Session, project_id: uuid.UUID, after: uuid.UUID | None) -> uuid.UUID | None:
    """The id at which the next WINDOW completions end, going back in time; None where none is left."""
    ids = listing.visible(session, project_id).with_only_columns(StoredCompletion.id)
    if after is not None:
        ids = ids.where(StoredCompletion.id < after)
    window = ids.order_by(StoredCompletion.id.desc()).limit(WINDOW).subquery()
    return session.scalar(select(window.c.id).order_by(window.c.id).limit(1))


def _write_window(
    session: Session,
    wanted: CompletionDataset,
    window: tuple[uuid.UUID | None, uuid.UUID],
    clauses: Sequence[ColumnElement[bool]],
    file: BinaryIO,
    provenance: Provenance,
) -> None:
    """Write the rows of the completions between two ids, the second one included."""
    after, last = window
    reference = (
        select(Feedback.reference)
        .where(
            Feedback.completion_id == StoredCompletion.id,
            Feedback.choice == func.coalesce(StoredCompletion.rated_choice, 0),
            Feedback.reference.is_not(None),
            Feedback.deleted_at.is_(None),
        )
        .order_by(Feedback.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = (
        listing.visible(session, wanted.project_id).add_columns(reference).where(StoredCompletion.id >= last, *clauses)
    )
    if after is not None:
        rows = rows.where(StoredCompletion.id < after)
    rows = rows.order_by(StoredCompletion.id.desc()).execution_options(yield_per=FETCHED)
    with contextlib.closing(session.execute(rows)) as fetched:
        for completion, right in fetched:
            line = row_of(completion, right, wanted.method)
            if line is None:
                provenance.left_out += 1
                continue
            if provenance.rows == wanted.max_rows or file.tell() + len(line) + 1 > MAX_FILE_BYTES:
                provenance.cut = True
                return
            file.write(line + b"\n")
            _note(provenance, completion.created_at)


def _note(provenance: Provenance, stored_at: datetime) -> None:
    told = stored_at.isoformat()
    provenance.rows += 1
    provenance.oldest_at = min(provenance.oldest_at or told, told)
    provenance.newest_at = max(provenance.newest_at or told, told)


def _publish(
    engine: Engine,
    store: ObjectStore,
    wanted: CompletionDataset,
    claim: uuid.UUID,
    file: BinaryIO,
    provenance: Provenance,
) -> None:
    """Register the file as a version of its dataset, and end what was asked for.

    Raises:
        InvalidRequestError: there are no rows.
        QuotaExceededError: the organisation would store more than it may.
    """
    if provenance.rows == 0:
        raise InvalidRequestError(_why_empty(provenance))
    sha256, size_bytes = _measure(file)
    with system_session(engine) as session:
        quotas.check_bytes(session, wanted.org_id, size_bytes)
        reserve(session, dataset_key(wanted.org_id, sha256))
    # Object first, row second: a crash in between leaves an orphan to collect, never a row without its bytes.
    put_content(store, dataset_key(wanted.org_id, sha256), file, size_bytes=size_bytes)
    with system_session(engine) as session:
        project = session.get_one(Project, wanted.project_id)
        version = files.register(
            session,
            Caller(wanted.id, wanted.org_id, wanted.project_id, project.name, frozenset()),
            filename=f"{wanted.dataset}.jsonl",
            purpose=files.PUSHED,
            size_bytes=size_bytes,
            sha256=sha256,
        )
        _end(session, wanted.id, claim, status="succeeded", version_id=version.id, provenance=asdict(provenance))


def _why_empty(provenance: Provenance) -> str:
    described = f"described by '{provenance.where}'" if provenance.where else "there"
    if not provenance.left_out:
        return f"No stored completion is {described}."
    return (
        f"None of the {provenance.left_out:,} stored completions {described} can be a row for {provenance.method}: "
        "they have tools, no text or too much of it, or for dpo no better answer."
    )


def _measure(file: BinaryIO) -> tuple[str, int]:
    """SHA-256 and size of a file, read in pieces; leaves it rewound."""
    digest = hashlib.sha256()
    while piece := file.read(CHUNK_BYTES):
        digest.update(piece)
    size_bytes = file.tell()
    file.seek(0)
    return digest.hexdigest(), size_bytes


def _end(session: Session, dataset_id: uuid.UUID, claim: uuid.UUID, **values: Any) -> None:
    """Raises _Lost if another scheduler has ended it, or is at it."""
    ended = (
        update(CompletionDataset)
        .where(CompletionDataset.id == dataset_id, CompletionDataset.claim == claim)
        .where(CompletionDataset.status == "queued")
        .values(claim=None, claimed_until=None, **values)
        .returning(CompletionDataset.id)
    )
    if session.scalar(ended) is None:
        raise _Lost
