"""What a job is asked to do: the specs that workers get.

A spec is complete: every ``"auto"`` is resolved, every name is a digest or a key. Workers need nothing else.
"""

import hashlib
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from zhub.answering import Answering, Attested
from zhub.graders import Grader
from zhub.manifest import canonical_json
from zhub.recipes import Hyperparameters, Recipe


class StoredFile(BaseModel):
    """A file in the object store: fetched by ``key``, refused unless its bytes have ``sha256``."""

    model_config = ConfigDict(frozen=True)
    name: str
    key: str
    sha256: str
    size_bytes: int


class BaseModelSource(BaseModel):
    """Where a base model's files come from: the object store, or the Hugging Face hub at a pinned revision."""

    model_config = ConfigDict(frozen=True)
    name: str
    files: list[StoredFile] = []
    hub_id: str | None = None
    hub_revision: str | None = None

    @property
    def digest(self) -> str:
        """Names the model as it answers: weights, template, configuration, stop tokens. A basis names weights."""
        if self.hub_id is not None:
            content: Any = [self.hub_id, self.hub_revision]
        else:
            content = sorted([file.name, file.sha256] for file in self.files)
        return hashlib.sha256(canonical_json(content)).hexdigest()


class BasisReference(BaseModel):
    """A decomposed base: fingerprints of weights and basis, and the prefix that holds the factors."""

    model_config = ConfigDict(frozen=True)
    weights_fingerprint: str
    basis_fingerprint: str
    key_prefix: str


class ValidateSpec(BaseModel):
    """Check a dataset file's rows."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["validate"] = "validate"
    file: StoredFile


class CountTokensSpec(BaseModel):
    """Find the rows of a file that have more tokens than the context of a base."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["count_tokens"] = "count_tokens"
    base: BaseModelSource
    file: StoredFile


class PromptFiles(BaseModel):
    """What an expert was trained on: its prompts are those of the rows that are trained on."""

    model_config = ConfigDict(frozen=True)
    training: StoredFile
    validation: StoredFile | None = None


class LabelledPrompts(PromptFiles):
    """The prompts of one expert version, which are to have its ``label``."""

    label: str
    model: str
    version_id: uuid.UUID


class ClassificationSpec(BaseModel):
    """Make the rows that a classifier learns from: of prompts of experts, and of ``others`` that are none of theirs.

    A prompt that one of ``excluded`` has is left out: it is there to evaluate with.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["classification_rows"] = "classification_rows"
    name: str
    labels: list[LabelledPrompts]
    others: list[PromptFiles]
    excluded: list[StoredFile]
    rows_per_label: int
    seed: int


class DecomposeSpec(BaseModel):
    """Load a base model, refuse what cannot be adapted, and store its basis.

    ``rank``: of how many leading singular directions of each matrix; None: of all.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["decompose"] = "decompose"
    base: BaseModelSource
    rank: int | None = None


class StartingPoint(BaseModel):
    """An expert version that training may begin from: its model id, its manifest's digest, and its files.

    ``routing_sha256`` is None where nobody knows which prompts are its own.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    digest: str
    key_prefix: str
    z_sha256: str
    routing_sha256: str | None
    attested: Attested | None = None
    """What its files are verified by before they are loaded; None: it is not signed yet."""


class TrainPlan(BaseModel):
    """A training as it is requested. ``basis`` is None until its base is decomposed; a worker gets a ``TrainSpec``.

    ``starts`` are, with the hyper-parameter ``warm_start`` ``nearest``, the versions to choose from, and for
    ``few_shot`` those to mix; else the one that was asked for, if any.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["train"] = "train"
    expert: str
    base: BaseModelSource
    basis: BasisReference | None
    training_file: StoredFile
    validation_file: StoredFile | None
    recipe: Recipe
    hyperparameters: Hyperparameters
    grader: Grader | None
    seed: int
    starts: list[StartingPoint] = []


class TrainSpec(TrainPlan):
    """Train one expert and measure it."""

    basis: BasisReference


class LoraSettings(BaseModel):
    """What of the ``adapter_config.json`` of a LoRA that PEFT wrote decides how it answers.

    ``ranks`` and ``alphas`` are its ``rank_pattern`` and ``alpha_pattern``: for matrices whose names end as a key says,
    a regular expression, in place of ``rank`` and ``alpha``.
    """

    model_config = ConfigDict(frozen=True)
    rank: int
    alpha: float
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    rank_stabilised: bool = False
    dora: bool = False


class ImportSpec(BaseModel):
    """Check an expert that was made elsewhere, and make a version of it.

    ``lora`` is None where the files are those of a version of another zhub. ``config`` is what came with the weights:
    ``adapter_config.json``, or the version's ``manifest.json``. The prompts of ``dataset`` say which prompts are the
    expert's.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["import"] = "import"
    expert: str
    base: BaseModelSource
    basis: BasisReference
    lora: LoraSettings | None
    config: dict[str, Any]
    files: list[StoredFile]
    dataset: StoredFile | None
    imported_by: str
    base_check: str


ExportFormat = Literal["merged", "lora", "psoft", "zhub"]


class ExportSpec(BaseModel):
    """Write an expert version in a form that other software reads.

    ``name`` is its model id, ``digest`` its manifest's; ``files`` are the manifest and what it lists. ``rank``: of a
    LoRA, at most; None: see ``lora_export``.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["export"] = "export"
    name: str
    digest: str
    files: list[StoredFile]
    base: BaseModelSource
    basis: BasisReference
    format: ExportFormat
    rank: int | None


class EvaluatedZ(BaseModel):
    """The file of an expert version that is measured, and how it was trained: what kind of adapter it fits."""

    model_config = ConfigDict(frozen=True)
    key: str
    sha256: str
    recipe: str
    hyperparameters: dict[str, Any]
    attested: Attested | None = None


class EvaluateSpec(BaseModel):
    """Measure an expert version, a release version, or where ``z`` and ``release`` are None the base.

    Greedily, and by pass@k from ``n`` samples a row; ``n`` is 0 where ``k`` is 1: nothing is sampled then.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["evaluate"] = "evaluate"
    base: BaseModelSource
    basis: BasisReference
    z: EvaluatedZ | None
    release: Answering | None = None
    file: StoredFile
    grader: Grader
    max_new_tokens: int
    k: int
    n: int
    temperature: float
    seed: int


JobSpec = Annotated[
    ValidateSpec
    | CountTokensSpec
    | ClassificationSpec
    | DecomposeSpec
    | TrainSpec
    | ImportSpec
    | ExportSpec
    | EvaluateSpec,
    Field(discriminator="kind"),
]
