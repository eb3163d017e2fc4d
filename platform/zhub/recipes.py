"""How an expert is made: the recipes, and their hyper-parameters as users write them."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Recipe = Literal["reinforcement", "supervised", "dpo", "few_shot"]
AdapterKind = Literal["svf", "frames", "core", "lora", "dora"]
Targets = Literal["all", "both", "mlp", "attention", "experts"]
LongRows = Literal["refuse", "skip", "cut"]
Granularity = Literal["global", "layer", "matrix"]

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
MAX_MIXTURE_WEIGHT = 4.0  # of an expert, either way: farther out it outgrows the base, and answers become noise


# Strict throughout: "8" and true are not taken for numbers.
class _Hyperparameters(BaseModel):
    """What every recipe has.

    ``eval_samples`` validation rows are scored every ``eval_interval`` of the ``n_steps`` steps; after ``patience``
    scores without a new best one training ends (0: never). A checkpoint is written every ``checkpoint_interval`` steps
    (0: with every score), and when training is interrupted. What goes through the model at once has
    ``micro_batch_tokens`` tokens (0: what the device's memory allows). ``data_parallel`` processes, each with a device
    like the worker's, divide the rows between them.

    Rows that repeat others are trained on once, or with ``duplicates`` ``keep`` as often as they stand in the file;
    validation and test count each once. ``long_rows`` says what becomes of rows with more tokens than the base's
    context: the job fails and names them all (``refuse``), they are left out (``skip``), or they are cut to fit
    (``cut``): the answer at its end, and a prompt that leaves no room for one at its beginning.

    At the end base and expert answer ``general_questions`` questions of the general suite (0: none), all of it unless
    fewer are asked for: what the expert has forgotten.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    n_steps: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    eval_interval: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 10
    eval_samples: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 200
    patience: Annotated[int, Field(strict=True, ge=0, le=1000)] = 0
    checkpoint_interval: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 0
    micro_batch_tokens: Annotated[int, Field(strict=True, ge=0, le=100_000_000)] = 0
    data_parallel: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=8192)] = 64
    general_questions: Annotated[int, Field(strict=True, ge=0, le=320)] = 320
    duplicates: Literal["drop", "keep"] = "drop"
    long_rows: LongRows = "refuse"


class _GradientHyperparameters(_Hyperparameters):
    """What every recipe has that trains parameters by their gradient.

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
    bound). Both fall along a cosine, the rate to a tenth. Gradients are accumulated over micro-batches. With
    ``warm_start`` ``nearest`` training begins from the best of the project's experts whose prompts look like these, if
    one beats the base on validation rows.
    """

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
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=1)] = SVF_LEARNING_RATE
    step_kl: Annotated[float, Field(strict=True, ge=0, le=MAX_STEP_KL)] = STEP_KL
    max_grad_norm: Annotated[float, Field(strict=True, gt=0, le=1e6)] = 1.0
    warm_start: Literal["off", "nearest"] = "off"

    @model_validator(mode="after")
    def _fits_the_adapter(self) -> "_GradientHyperparameters":
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


class ReinforcementHyperparameters(_GradientHyperparameters):
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


class SupervisedHyperparameters(_GradientHyperparameters):
    """Next-token training on the assistant's last message; ``batch_size`` rows a step."""


class DpoHyperparameters(_GradientHyperparameters):
    """Direct preference optimisation; ``batch_size`` pairs a step, ``beta`` weighs staying near the base."""

    beta: Annotated[float, Field(strict=True, gt=0, le=10)] = 0.1


class FewShotHyperparameters(_Hyperparameters):
    """The cross-entropy method over the weights of a mixture, ``z = 1 + Σ α_k (z_k − 1)``, with the paper's defaults.

    A step answers ``shots`` training rows with ``population`` mixtures, whose weights are drawn around a mean and cut
    to ``min_weight`` and ``max_weight``; the best ``elite_share`` of them are the next mean and deviation. Each expert
    has one weight (``granularity`` ``global``), one for each block, ``layer``, or one for each ``matrix``. The mean
    begins at equal parts (``start`` ``uniform``), or where one ``gradient`` of the right answers' likelihood says that
    experts help; the deviation begins at ``deviation``. With ``n_steps`` 0 nothing is searched: the best of the base,
    of each expert alone and of what the mean begins at is taken.
    """

    adapter: ClassVar[AdapterKind] = "svf"
    n_steps: Annotated[int, Field(strict=True, ge=0, le=10_000)] = 50
    shots: Annotated[int, Field(strict=True, ge=1, le=1000)] = 10
    population: Annotated[int, Field(strict=True, ge=2, le=1024)] = 32
    elite_share: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.2
    granularity: Granularity = "global"
    start: Literal["uniform", "gradient"] = "uniform"
    deviation: Annotated[float, Field(strict=True, gt=0, le=MAX_MIXTURE_WEIGHT)] = 0.5
    min_weight: Annotated[float, Field(strict=True, ge=-MAX_MIXTURE_WEIGHT, le=MAX_MIXTURE_WEIGHT)] = 0.0
    max_weight: Annotated[float, Field(strict=True, ge=-MAX_MIXTURE_WEIGHT, le=MAX_MIXTURE_WEIGHT)] = 1.0

    @model_validator(mode="after")
    def _can_search(self) -> "FewShotHyperparameters":
        if self.elites < 2:
            raise _conflict("elite_share", "of this population it has to be 2 mixtures or more: one has no deviation")
        if self.min_weight >= self.max_weight:
            raise _conflict("max_weight", "it has to be above min_weight")
        return self

    @property
    def elites(self) -> int:
        """How many of the population the next one is drawn around."""
        return round(self.elite_share * self.population)


GradientHyperparameters = SupervisedHyperparameters | DpoHyperparameters | ReinforcementHyperparameters
# In this order: each refuses a name of the next, while the next would fill in what is missing.
Hyperparameters = Annotated[
    SupervisedHyperparameters | DpoHyperparameters | ReinforcementHyperparameters | FewShotHyperparameters,
    Field(union_mode="left_to_right"),
]

HYPERPARAMETERS: dict[Recipe, type[_Hyperparameters]] = {
    "reinforcement": ReinforcementHyperparameters,
    "supervised": SupervisedHyperparameters,
    "dpo": DpoHyperparameters,
    "few_shot": FewShotHyperparameters,
}

RECIPES = tuple(HYPERPARAMETERS)
