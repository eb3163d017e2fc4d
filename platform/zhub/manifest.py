"""The manifest of an expert version: one canonical document whose SHA-256 names the version."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

MANIFEST_FILE = "manifest.json"
Z_FILE = "z.safetensors"
ROUTING_FILE = "routing.safetensors"
ANSWERS_FILE = "answers.jsonl"
CHUNK_BYTES = 1 << 20


class FileEntry(BaseModel):
    """A file of the version: its name beside the manifest, its size and its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    size_bytes: int
    sha256: str


class Accuracy(BaseModel):
    """A mean reward in [0, 1] over ``n`` held-out rows with its 95 % interval (Wilson for 0/1 rewards)."""

    model_config = ConfigDict(frozen=True)
    mean: float
    low: float
    high: float
    n: int


class Evaluation(BaseModel):
    """The accuracy of base and expert on the same held-out rows.

    ``p_value`` is from the exact two-sided McNemar test on the rows where they differ; for rewards that are not 0/1,
    from a paired sign-flip permutation test.
    """

    model_config = ConfigDict(frozen=True)
    split: str
    base: Accuracy
    expert: Accuracy
    p_value: float


class Manifest(BaseModel):
    """Everything needed to check, load and reproduce an expert version."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    base_model: str
    base_source: str
    weights_fingerprint: str
    basis_fingerprint: str
    dataset_digest: str
    validation_digest: str | None
    job_id: str
    fence: int
    recipe: str
    hyperparameters: dict[str, Any]
    grader: dict[str, Any] | None
    seed: int
    code_version: str
    hardware: str
    best_step: int
    steps: int
    parameters: int
    evaluations: list[Evaluation]
    parent_digest: str | None
    files: list[FileEntry]

    def canonical(self) -> bytes:
        """The bytes that are stored and hashed."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of ``canonical()``: the permanent name of the version."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def file(self, name: str) -> FileEntry:
        return next(entry for entry in self.files if entry.name == name)


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in chunks of ``CHUNK_BYTES``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_entry(path: Path) -> FileEntry:
    return FileEntry(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_file(path))
