"""The manifest of an expert version: one canonical document whose SHA-256 names the version."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from zhub.recipes import Granularity

MANIFEST_FILE = "manifest.json"
Z_FILE = "z.safetensors"
ROUTING_FILE = "routing.safetensors"
ANSWERS_FILE = "answers.jsonl"
STRENGTH_FILE = "strength.json"
CHANGE_FILE = "change.safetensors"
CHUNK_BYTES = 1 << 20
FAR_KL = 5.0  # nats a token; a judgement: a training moves a base by a few hundredths in each step


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


class Probe(BaseModel):
    """How far an imported expert moves the base, in nats a token, over the base's answers to a few fixed prompts."""

    model_config = ConfigDict(frozen=True)
    prompts: int
    tokens: int
    mean_kl: float
    max_kl: float

    @property
    def changes_nothing(self) -> bool:
        return self.max_kl == 0

    @property
    def is_far(self) -> bool:
        return self.mean_kl > FAR_KL

    @property
    def sentence(self) -> str:
        if self.changes_nothing:
            return f"It changes nothing: on {self.prompts} prompts it answers as the base does."
        moved = f"{self.mean_kl:.3g} nats a token from the base (at most {self.max_kl:.3g})"
        far = " That is very far: it may belong to another base." if self.is_far else ""
        return f"Tried on {self.prompts} prompts, its answers are {moved}.{far}"


class Origin(BaseModel):
    """Where an imported version comes from: nothing here trained it, and what it says of itself is only told.

    ``config`` is what came with the weights, ``files`` what was sent, ``base_check`` what is known of the base that it
    was made on. ``routing_dataset`` is the digest of the file whose prompts are taken to be the expert's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["peft", "zhub"]
    imported_by: str
    base_check: str
    config: dict[str, Any]
    files: list[FileEntry]
    routing_dataset: str | None
    probe: Probe


class MixedExpert(BaseModel):
    """An expert version of a mixture: its model id then, its digest, and its weight in each group of matrices.

    Matrices are grouped as the mixture's ``granularity`` says: ``all`` of them, by the number of their block, or each
    by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    digest: str
    weights: dict[str, float]


class Mixture(BaseModel):
    """What a few-shot search mixed into one z, ``1 + Σ weight · (z_k − 1)``; all weights are 0 where it is the base.

    ``shots``: the lines of the training file that it searched on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    granularity: Granularity
    experts: list[MixedExpert]
    shots: list[int]


class Manifest(BaseModel):
    """Everything needed to check, load and reproduce an expert version.

    Of an imported LoRA, whose training is not known, ``steps`` is 0 and ``best_step`` is -1, or 0 where it answers as
    the base does; and there is no ``dataset_digest``. Of a mixture that a few-shot search had before its first step,
    ``best_step`` is -1 too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    base_model: str
    base_source: str
    weights_fingerprint: str
    basis_fingerprint: str
    dataset_digest: str | None
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
    origin: Origin | None = None
    mixture: Mixture | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A version that was trained here has no origin: its bytes are those that every release writes and reads.
        fields: dict[str, Any] = serialize(self)
        later = ("origin", "mixture")
        return {name: value for name, value in fields.items() if name not in later or value is not None}

    def canonical(self) -> bytes:
        """The bytes that are stored and hashed."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of ``canonical()``: the permanent name of the version."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def file(self, name: str) -> FileEntry:
        return next(entry for entry in self.files if entry.name == name)

    @property
    def routing(self) -> FileEntry | None:
        """Where its prompts lie; None for an imported version that nobody said that of."""
        return next((entry for entry in self.files if entry.name == ROUTING_FILE), None)


class MatrixStrength(BaseModel):
    """What a version changes of one matrix: the Frobenius norms of the change and of the weight.

    ``distance`` is ``‖z − 1‖``, where there are multipliers.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    layer: int | None
    norm: float
    weight_norm: float
    distance: float | None


class Strengths(BaseModel):
    """What a version changes, by matrix; of those that it leaves alone there is nothing."""

    model_config = ConfigDict(frozen=True)
    matrices: list[MatrixStrength]

    def canonical(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


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
