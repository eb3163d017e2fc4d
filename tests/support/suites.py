"""A suite of forty rows, versions to measure on it, and workers that only pretend to."""

import io
import json
import uuid
from collections.abc import Callable
from typing import Any

from claims import admit_queued, claim_one
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.kinds.outcomes import record_success
from zhub.manifest import ROUTING_FILE, Z_FILE, FileEntry, Manifest
from zhub.specs import EvaluateSpec
from zhub.storage.directory import DirectoryStore


def sums(count: int) -> bytes:
    """A dataset file of so many rows with the right answers."""
    return b"".join(
        json.dumps({"messages": [{"role": "user", "content": f"{n} + 1 ="}], "answer": str(n + 1)}).encode() + b"\n"
        for n in range(count)
    )


N = 40
ROWS = sums(N)
GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
METHOD: Any = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}


def manifest_of(job_id: uuid.UUID, **changed: Any) -> Manifest:
    values: dict[str, Any] = {
        "base_model": "tiny",
        "base_source": "made here",
        "weights_fingerprint": "w" * 64,
        "basis_fingerprint": "b" * 64,
        "dataset_digest": "d",
        "validation_digest": None,
        "job_id": str(job_id),
        "fence": 1,
        "recipe": "supervised",
        "hyperparameters": {"n_steps": 1},
        "grader": None,
        "seed": 1,
        "code_version": "0",
        "hardware": "cpu",
        "best_step": 1,
        "steps": 1,
        "parameters": 1,
        "evaluations": [],
        "parent_digest": None,
        "files": [FileEntry(name=name, size_bytes=1, sha256="e" * 64) for name in (Z_FILE, ROUTING_FILE)],
    }
    return Manifest(**(values | changed))


def run(engine: Engine, store: DirectoryStore, rewards: Callable[[EvaluateSpec], list[float]]) -> int:
    """Do what workers do with every evaluation in the queue; return how many there were."""
    done = 0
    while True:
        with system_session(engine) as session:
            admit_queued(session)
            claim = claim_one(session, "evaluate")
        if claim is None:
            return done
        key = f"t/{claim.org_id.hex}/jobs/{claim.job_id.hex}/attempts/{claim.fence}/rows.jsonl"
        store.put(key, io.BytesIO(b'{"line": 1}\n'))
        rewards_of_rows = rewards(EvaluateSpec.model_validate(claim.spec))
        parsed = [reward > 0 for reward in rewards_of_rows]
        report = {"rewards": rewards_of_rows, "parsed": parsed, "pass_at_k": None, "rows_key": key}
        with system_session(engine) as session:
            record_success(session, claim.job_id, claim.fence, report)
        done += 1


def right_in(count: int) -> list[float]:
    return [1.0] * count + [0.0] * (N - count)
