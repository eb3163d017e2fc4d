"""Which of some keys of the store a row names, or something that is going on may come to name.

What is not known here is never called unnamed: a newer release may have stored it.
"""

import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, or_, select, text
from sqlalchemy.orm import Session

from zhub.manifest import MANIFEST_FILE
from zhub.models import BaseModel, Checkpoint, DatasetVersion, Evaluation, ExpertExport, ExpertVersion, Job

_DATASET = re.compile(r"t/([0-9a-f]{32})/datasets/sha256/[0-9a-f]{64}")
_BASE_FILE = re.compile(r"bases/files/sha256/[0-9a-f]{64}")
_OF_JOB = re.compile(r"t/[0-9a-f]{32}/jobs/([0-9a-f]{32})/.+")
# A job has a sweep of its own for its logs, which knows how long they are kept.
_LOG = re.compile(r"/attempts/\d+/logs/")
_KEYS_IN_SPECS = text(
    "SELECT DISTINCT found #>> '{}' FROM jobs, jsonb_path_query(spec, '$.**.key') AS found"
    " WHERE org_id = ANY(:organizations) AND (finished_at IS NULL OR finished_at > now() - :grace)"
)
ROWS_OF_WORKERS = ("classification_rows",)
"""Kinds of jobs that store a file under its digest, without a reservation: workers know no database."""


def unnamed(session: Session, keys: Collection[str], *, grace: timedelta) -> set[str]:
    """Those of the keys that no row names. Objects of a job that runs, or ended within ``grace``, count as named.

    A basis never does: it takes hours to compute, and whoever adds the same base again finds it.
    """
    datasets = [key for key in keys if _DATASET.fullmatch(key)]
    base_files = [key for key in keys if _BASE_FILE.fullmatch(key)]
    by_job: dict[uuid.UUID, list[str]] = {}
    for key in keys:
        if match := _OF_JOB.fullmatch(key):
            by_job.setdefault(uuid.UUID(match[1]), []).append(key)
    found = set(datasets) - _named_datasets(session, datasets, grace) if datasets else set()
    if base_files:
        found |= set(base_files) - _named_base_files(session)
    if by_job:
        found |= _unnamed_of_jobs(session, by_job, grace)
    return found


def is_known(key: str) -> bool:
    """Whether ``unnamed`` could ever call the key so."""
    return any(pattern.fullmatch(key) for pattern in (_DATASET, _BASE_FILE, _OF_JOB))


def _named_datasets(session: Session, keys: Sequence[str], grace: timedelta) -> set[str]:
    of_rows = select(DatasetVersion.key).where(DatasetVersion.key.in_(keys), DatasetVersion.deleted_at.is_(None))
    named = set(session.scalars(of_rows))
    if named.issuperset(keys):
        return named
    organizations = {uuid.UUID(key.split("/")[1]) for key in keys}
    live = (Job.org_id.in_(organizations), _is_live(grace))
    making = set(session.scalars(select(Job.org_id).where(*live, Job.kind.in_(ROWS_OF_WORKERS))))
    named |= {key for key in keys if uuid.UUID(key.split("/")[1]) in making}
    found = session.scalars(_KEYS_IN_SPECS, {"organizations": list(organizations), "grace": grace})
    return named | set(found)


def _named_base_files(session: Session) -> set[str]:
    return {file["key"] for source in session.scalars(select(BaseModel.source)) for file in source.get("files", [])}


def _unnamed_of_jobs(session: Session, by_job: Mapping[uuid.UUID, Sequence[str]], grace: timedelta) -> set[str]:
    ids = list(by_job)
    named: dict[uuid.UUID, set[str]] = {job_id: set() for job_id in ids}
    kept: set[uuid.UUID] = set(session.scalars(select(Job.id).where(Job.id.in_(ids), _is_live(grace))))
    known = set()
    for job_id, spec in session.execute(select(Job.id, Job.spec).where(Job.id.in_(ids))):
        known.add(job_id)
        named[job_id].update(_keys_in(spec))
    versions = select(ExpertVersion).where(ExpertVersion.job_id.in_(ids), ExpertVersion.swept_at.is_(None))
    for version in session.scalars(versions):
        names = [file["name"] for file in version.manifest.get("files", [])]
        named[version.job_id].update(f"{version.key_prefix}/{name}" for name in (*names, MANIFEST_FILE))
    exports = select(ExpertExport).where(ExpertExport.job_id.in_(ids), ExpertExport.swept_at.is_(None))
    for export in session.scalars(exports):
        named[export.job_id].update(f"{export.key_prefix}/{file['name']}" for file in export.files or [])
    rows = select(Evaluation.job_id, Evaluation.rows_key).where(Evaluation.job_id.in_(ids))
    for job_id, key in session.execute(rows):
        named[job_id].add(key or "")
    prefixes: dict[uuid.UUID, list[str]] = {}
    for job_id, prefix in session.execute(
        select(Checkpoint.job_id, Checkpoint.key_prefix).where(Checkpoint.job_id.in_(ids))
    ):
        prefixes.setdefault(job_id, []).append(f"{prefix}/")
    return {
        key
        for job_id, keys in by_job.items()
        if job_id not in kept
        for key in keys
        if key not in named[job_id]
        and not any(key.startswith(prefix) for prefix in prefixes.get(job_id, ()))
        and not (job_id in known and _LOG.search(key))
    }


def _is_live(grace: timedelta) -> Any:
    return or_(Job.finished_at.is_(None), Job.finished_at > func.now() - grace)


def _keys_in(value: Any) -> Iterator[str]:
    """The keys of stored files anywhere in a spec."""
    if isinstance(value, dict):
        if isinstance(value.get("key"), str):
            yield value["key"]
        for inner in value.values():
            yield from _keys_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys_in(inner)
