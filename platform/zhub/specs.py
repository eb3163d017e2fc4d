"""What a job is asked to do: hyper-parameters as users write them, and the specs that workers get.

A spec is complete: every ``"auto"`` is resolved, every name is a digest or a key. Workers need nothing else.
"""

import hashlib
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from zhub.graders import Grader
from zhub.manifest import canonical_json

Recipe = Literal["reinforcement", "supervised", "dpo"]
AdapterKind = Literal["svf", "frames", "core", "lora", "dora"]
Targets = Literal["all", "both", "mlp", "attention", "experts"]
LongRows = Literal["refuse", "skip", "cut"]

MIN_PROMPTS = 10  # distinct ones: fewer cannot be split into train, validation and test

# Ceilings: a step is as long as ``step_kl`` lets it be. The parameters of frames and cores are scaled so that a step
# changes a weight by the same share as a multiplier's does (zhub_workers/model/cores.py); a step of the other two by
# some five times as much (lora.py).
SVF_LEARNING_RATE = 0.1
LORA_LEARNING_RATE = 0.01
LEARNING_RATES: Mapping[AdapterKind, float] = {
    "svf": SVF_LEARNING_RATE,
    "frames": SVF_LEARNING_RATE,
    "core": SVF_LEARNING_RATE,
    "lora": LORA_LEARNING_RATE,
    "dora": LORA_LEARNING_RATE,
}
STEP_KL = 0.02
MAX_STEP_KL = 10.0
MAX_CORE_NUMBERS = 1 << 16  # that are fixed and random, for each matrix of a base


# Strict throughout: "8" and true are not taken for numbers.
class _Hyperparameters(BaseModel):
    """What every recipe has.

    ``adapter`` is what is trained: multipliers of singular values (``svf``), a rotation of the leading singular vectors
    (``frames``), a small matrix between them (``core``), or low-rank matrices beside the weight (``lora``, or with a
    trained length of each row ``dora``; ``lora_rank`` and ``lora_alpha``). ``subspace_rank`` is the number of leading
    singular vectors of ``frames`` and ``core``; 0 gives a matrix about as many parameters as ``svf`` does. With
    ``core_parameters`` a core is a sum of so many fixed random matrices, whose weights are trained, and with
    ``core_shared`` all matrices have the same ones; ``subspace_rank`` 0 is then 2.

    ``targets`` says which matrices: those of the feed-forward blocks (``mlp``), of ``attention``, ``both``, or ``all``;
    or those of a mixture-of-experts base's ``experts`` alone, between which its routers go on to choose as in the base.
    ``layers`` narrows them to blocks ``[first, last]``, from 0. ``sparsity`` is the share of each matrix's multipliers
    that stay at one. ``parameterisation`` ``sigmoid`` is that of the authors' code and keeps every matrix's nuclear
    norm.

    ``learning_rate`` is the ceiling of Adam's rate. What bounds a step is ``step_kl``: it may change the model's
    distributions by about so many nats a token; one that did more is shortened, and the rate falls with it (0: no
    bound). Both fall along a cosine, the rate to a tenth. ``eval_samples`` validation rows are scored every
    ``eval_interval`` steps; after ``patience`` scores without a new best one training ends (0: never). Gradients are
    accumulated over micro-batches of ``micro_batch_tokens`` tokens (0: what the device's memory allows). A checkpoint
    is written every ``checkpoint_interval`` steps (0: with every score), and when training is interrupted.
    ``data_parallel`` processes, each with a device like the worker's, divide the rows between them. With ``warm_start``
    ``nearest`` training begins from the best of the project's experts whose prompts look like these, if one beats the
    base on validation rows.

    Rows that repeat others are trained on once, or with ``duplicates`` ``keep`` as often as they stand in the file;
    validation and test count each once. ``long_rows`` says what becomes of rows with more tokens than the base's
    context: the job fails and names them all (``refuse``), they are left out (``skip``), or they are cut to fit
    (``cut``): the answer at its end, and a prompt that leaves no room for one at its beginning.

    At the end base and expert answer ``general_questions`` questions of the general suite (0: none), all of it unless
    fewer are asked for: what the expert has forgotten.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    adapter: AdapterKind = "svf"
    targets: Targets = "all"
    layers: tuple[Annotated[int, Field(strict=True, ge=0)], Annotated[int, Field(strict=True, ge=0)]] | None = None
    sparsity: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    parameterisation: Literal["multiplier", "sigmoid"] = "multiplier"
    lora_rank: Annotated[int, Field(strict=True, ge=1, le=512)] = 16
    lora_alpha: Annotated[float, Field(strict=True, gt=0, le=4096)] = 32.0
    subspace_rank: Annotated[int, Field(strict=True, ge=0, le=512)] = 0
    core_parameters: Annotated[int, Field(strict=True, ge=0, le=4096)] = 0
    core_shared: Annotated[bool, Field(strict=True)] = False
    batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 32
    n_steps: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=1)] = SVF_LEARNING_RATE
    step_kl: Annotated[float, Field(strict=True, ge=0, le=MAX_STEP_KL)] = STEP_KL
    max_grad_norm: Annotated[float, Field(strict=True, gt=0, le=1e6)] = 1.0
    eval_interval: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 10
    eval_samples: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 200
    patience: Annotated[int, Field(strict=True, ge=0, le=1000)] = 0
    checkpoint_interval: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 0
    micro_batch_tokens: Annotated[int, Field(strict=True, ge=0, le=100_000_000)] = 0
    data_parallel: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    warm_start: Literal["off", "nearest"] = "off"
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=8192)] = 64
    general_questions: Annotated[int, Field(strict=True, ge=0, le=320)] = 320
    duplicates: Literal["drop", "keep"] = "drop"
    long_rows: LongRows = "refuse"

    @model_validator(mode="after")
    def _fits_the_adapter(self) -> "_Hyperparameters":
        if self.adapter != "svf" and self.sparsity:
            raise _conflict("sparsity", "only the adapter 'svf' has it")
        if self.adapter != "svf" and self.parameterisation != "multiplier":
            raise _conflict("parameterisation", "only the adapter 'svf' has it")
        if self.warm_start != "off" and (self.adapter != "svf" or self.parameterisation != "multiplier"):
            raise _conflict("warm_start", "only the adapter 'svf' with the parameterisation 'multiplier' has it")
        if self.sparsity and self.parameterisation == "sigmoid":
            raise _conflict("sparsity", "under the parameterisation 'sigmoid' all multipliers move")
        if self.subspace_rank and self.adapter not in ("frames", "core"):
            raise _conflict("subspace_rank", "only the adapters 'frames' and 'core' have it")
        if self.subspace_rank == 1 and self.adapter == "frames":
            raise _conflict("subspace_rank", "a single direction cannot turn: give 2 or more, or 0")
        if self.core_parameters and self.adapter != "core":
            raise _conflict("core_parameters", "only the adapter 'core' has it")
        if self.core_parameters * max(self.subspace_rank, 2) ** 2 > MAX_CORE_NUMBERS:
            raise _conflict(
                "core_parameters", f"times the square of subspace_rank it may be {MAX_CORE_NUMBERS:,} at most"
            )
        if self.core_shared and not self.core_parameters:
            raise _conflict("core_shared", "give core_parameters: whole cores differ in size from matrix to matrix")
        if self.layers is not None and self.layers[0] > self.layers[1]:
            raise _conflict("layers", f"expected [first, last], got {list(self.layers)}")
        return self


def _conflict(field: str, message: str) -> PydanticCustomError:
    """A value that does not go together with another one."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "field": field})


class ReinforcementHyperparameters(_Hyperparameters):
    """Policy gradient with ``algorithm`` ``grpo``, ``rloo``, or the paper's ``reinforce``.

    ``batch_size`` prompts a step, ``group_size`` samples of each at ``temperature``; ``kl_coef`` weighs the KL
    divergence to the base. ``updates_per_rollout`` steps of the optimiser are taken on the same answers, from the
    second on with importance ratios clipped to ``1 ± clip_ratio``. Before training, the base answers
    ``preflight_prompts`` prompts (0: none), so that a reward that never varies is found at once.
    """

    algorithm: Literal["grpo", "rloo", "reinforce"] = "grpo"
    group_size: Annotated[int, Field(strict=True, ge=1, le=256)] = 8
    temperature: Annotated[float, Field(strict=True, gt=0, le=5)] = 1.0
    kl_coef: Annotated[float, Field(strict=True, ge=0, le=10)] = 0.01
    updates_per_rollout: Annotated[int, Field(strict=True, ge=1, le=16)] = 1
    clip_ratio: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.2
    preflight_prompts: Annotated[int, Field(strict=True, ge=0, le=1024)] = 16

    @model_validator(mode="after")
    def _has_a_baseline(self) -> "ReinforcementHyperparameters":
        if self.algorithm != "reinforce" and self.group_size < 2:
            raise _conflict("group_size", f"'{self.algorithm}' compares samples of one prompt and needs at least 2")
        return self


class SupervisedHyperparameters(_Hyperparameters):
    """Next-token training on the assistant's last message; ``batch_size`` rows a step."""


class DpoHyperparameters(_Hyperparameters):
    """Direct preference optimisation; ``batch_size`` pairs a step, ``beta`` weighs staying near the base."""

    beta: Annotated[float, Field(strict=True, gt=0, le=10)] = 0.1


# In this order: each refuses a name of the next, while the next would fill in what is missing.
Hyperparameters = Annotated[
    SupervisedHyperparameters | DpoHyperparameters | ReinforcementHyperparameters, Field(union_mode="left_to_right")
]

HYPERPARAMETERS: dict[Recipe, type[_Hyperparameters]] = {
    "reinforcement": ReinforcementHyperparameters,
    "supervised": SupervisedHyperparameters,
    "dpo": DpoHyperparameters,
}

RECIPES = tuple(HYPERPARAMETERS)


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
    """Load a base model, refuse what cannot be adapted, and store its basis."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["decompose"] = "decompose"
    base: BaseModelSource


class StartingPoint(BaseModel):
    """An expert version that training may begin from: its model id, its manifest's digest, and its files."""

    model_config = ConfigDict(frozen=True)
    name: str
    digest: str
    key_prefix: str
    z_sha256: str
    routing_sha256: str


class TrainPlan(BaseModel):
    """A training as it is requested. ``basis`` is None until its base is decomposed; a worker gets a ``TrainSpec``.

    ``starts`` are, with the hyper-parameter ``warm_start`` ``nearest``, the versions to choose from; else the one that
    was asked for, if any.
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


class EvaluatedZ(BaseModel):
    """The file of an expert version that is measured, and how it was trained: what kind of adapter it fits."""

    model_config = ConfigDict(frozen=True)
    key: str
    sha256: str
    recipe: str
    hyperparameters: dict[str, Any]


class EvaluateSpec(BaseModel):
    """Measure an expert version, or where ``z`` is None the base: greedily, and by pass@k from ``n`` samples a row.

    ``n`` is 0 where ``k`` is 1: nothing is sampled then.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["evaluate"] = "evaluate"
    base: BaseModelSource
    basis: BasisReference
    z: EvaluatedZ | None
    file: StoredFile
    grader: Grader
    max_new_tokens: int
    k: int
    n: int
    temperature: float
    seed: int


JobSpec = Annotated[
    ValidateSpec | CountTokensSpec | ClassificationSpec | DecomposeSpec | TrainSpec | ImportSpec | EvaluateSpec,
    Field(discriminator="kind"),
]
