"""Rows for classifiers and the versions that are trained on them, made as workers make them."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claims import admit_queued, claim_one
from sqlalchemy import Engine, update
from suites import manifest_of

from zhub.database.sessions import system_session
from zhub.ids import parse_id
from zhub.kinds.outcomes import record_success
from zhub.models import Job
from zhub.registry.publish import publish
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.attempts.log import AttemptLog
from zhub_workers.worker import light_runner


def prompts(word: str, count: int = 60) -> bytes:
    """A dataset file whose prompts begin with a word."""
    rows = ({"messages": [{"role": "user", "content": f"{word} {number}"}], "answer": "x"} for number in range(count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Classifying:
    """Stands in for agent and workers: versions of experts on files, rows for a classifier, and the classifier."""

    def __init__(
        self, engine: Engine, store: DirectoryStore, cache_dir: Path, caller: Caller, make_job: Callable[..., uuid.UUID]
    ) -> None:
        self._engine = engine
        self._store = store
        self._cache_dir = cache_dir
        self.caller = caller
        self._make_job = make_job

    def publish(self, expert: str, file_id: str | None, *, validation: str | None = None, **changed: Any) -> str:
        """A version of an expert that was trained on a file; its name."""
        job_id = self._make_job(self.caller, expert=expert)
        with system_session(self._engine) as session:
            files = {"dataset_version_id": file_id, "validation_version_id": validation}
            ids = {column: parse_id("file", named) if named else None for column, named in files.items()}
            session.execute(update(Job).where(Job.id == job_id).values(**ids))
            admit_queued(session)
            claim = claim_one(session, "train")
            assert claim is not None and claim.job_id == job_id
            version = publish(session, job_id, claim.fence, manifest_of(job_id, **changed), "k", 7)
            return f"main.{expert}@v{version.version}"

    def make_rows(self) -> None:
        """Do what the light worker does with the dataset that waits, at once."""
        with system_session(self._engine) as session:
            admit_queued(session)
            claim = claim_one(session, "classification_rows")
        assert claim is not None
        key, uri = AttemptKey(claim.job_id, claim.fence), self._store.root.as_uri()
        attempt = Attempt(key, claim.org_id, claim.spec, uri, self._cache_dir, None)
        result = light_runner.run(attempt, AttemptContext(AttemptLog(1)))
        with system_session(self._engine) as session:
            record_success(session, claim.job_id, claim.fence, result)
