"""What can be trained beside a frozen base: multipliers of singular values (SVF), cores between the leading singular
vectors (frames and core), or low-rank matrices (LoRA and DoRA).

Three sets of tensors, by name: *parameters* are what the optimiser moves, float32; *values* are made of them and are
what the model follows; what is *exported* goes into an expert's artifact. For SVF the values are ``z - 1`` and the
export is ``z``, one vector a matrix. For the others the three are the same, except that matrices may have parameters
in common, which are values and export of each.

A step of e in every multiplier changes W by the share e of its Frobenius norm, because the change is
``U diag(e s) Vh``. What it is for the others is said in ``cores`` and ``lora``; ``LEARNING_RATES`` in ``zhub.recipes``
begins all of them at about the same change.
"""

import math
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from zhub.errors import TrainingError
from zhub.recipes import FewShotHyperparameters, GradientHyperparameters, Hyperparameters
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.core_model import CoreModel
from zhub_workers.model.cores import CoreKind, CoreSettings
from zhub_workers.model.lora import LoraModel
from zhub_workers.model.moe import MoeMatrix
from zhub_workers.model.svf import sigmoid_multipliers

Values = Mapping[str, Tensor]

TIED = "tied"
PROJECTED_RANK = 2  # of cores of random matrices: the default of TinyLoRA (arXiv:2602.04118)
SIGMOID_START = 0.1  # the authors' mean (arXiv:2501.06252, table 6), without their noise: it would not be the base
BLOCK = re.compile(r"\.(\d+)\.")
MOE_EXPERTS = re.compile(r"(?:^|\.)experts\.")  # not the shared ones, which read every token
# Nemotron-H calls each block's one part its mixer, whatever it is.
MLP_MIXER = r"mixer\.(?:up|down|gate)_proj|mixer\.(?:shared_)?experts"
# Recurrent layers stand where attention does, and are trained with it.
ATTENTION = re.compile(rf"attn|attention|mamba|\.conv\.|temporal_block|(?!{MLP_MIXER})mixer\.")
MLP = re.compile(rf"mlp|feed_forward|ffn|experts|moe|\bfc\d|\.wi|\.wo\b|dense_h_to_4h|dense_4h_to_h|{MLP_MIXER}")


class Adapter(Protocol):
    """One kind of trainable parameters on one base model."""

    base: BaseModel

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Fresh parameters that leave the base as it is, float32, on its device."""

    def values(self, parameters: Values) -> dict[str, Tensor]:
        """What the model follows, differentiable in the parameters."""

    def exported(self, values: Values) -> dict[str, Tensor]:
        """What the artifact holds, float32 on the CPU."""

    def imported(self, exported: Values) -> dict[str, Tensor]:
        """The values that an artifact stands for: exactly what is served."""

    def merged(self, values: Values) -> AbstractContextManager[None]:
        """One set of values folded into the weights; no gradient."""

    def training(self, values: Values) -> AbstractContextManager[None]:
        """Gradients reach the values."""

    def release(self) -> None:
        """Give back the memory of what is kept from one request for the next."""


class SvfAdapter:
    """Multipliers of the singular values of ``names``, for one job; many may share one AdaptedModel."""

    def __init__(self, model: AdaptedModel, names: Collection[str], *, sigmoid: bool) -> None:
        self.model = model
        self.base = model.base
        self._names = sorted(names)
        self._sigmoid = sigmoid

    def initial(self, seed: int) -> dict[str, Tensor]:
        zeros = self.model.zero_delta(self._names)
        return {name: torch.full_like(zero, SIGMOID_START) for name, zero in zeros.items()} if self._sigmoid else zeros

    def values(self, parameters: Values) -> dict[str, Tensor]:
        if not self._sigmoid:
            return dict(parameters)
        singular = {name: self.model.singular_values(name) for name in self._names}
        return {name: sigmoid_multipliers(p, singular[name]) - 1 for name, p in parameters.items()}

    def exported(self, values: Values) -> dict[str, Tensor]:
        return {name: (1 + value.detach()).cpu() for name, value in values.items()}

    def imported(self, exported: Values) -> dict[str, Tensor]:
        return {name: z.to(self.base.device) - 1 for name, z in exported.items()}

    def largest(self, values: Values, share: float) -> dict[str, Tensor]:
        """Masks of the ``share`` of each matrix's multipliers that change it most, by ``|s (z - 1)|``.

        That is what a low-rank export keeps, too: the best rank-k approximation of the change.
        """
        masks = {}
        for name, value in values.items():
            change = (self.model.singular_values(name) * value).abs()
            kept = change.topk(max(1, math.ceil(share * len(change)))).indices
            masks[name] = torch.zeros_like(change).index_fill(0, kept, 1.0)
        return masks

    def merged(self, values: Values) -> AbstractContextManager[None]:
        return self.model.merged({name: 1 + value for name, value in values.items()})

    def training(self, values: Values) -> AbstractContextManager[None]:
        return self.model.training(values)

    def release(self) -> None:
        self.model.drop_merged()


class PlainAdapter:
    """Parameters that are the values themselves, and the artifact: those of cores, or the matrices of a LoRA."""

    def __init__(self, model: CoreModel | LoraModel) -> None:
        self.model = model
        self.base = model.base

    def initial(self, seed: int) -> dict[str, Tensor]:
        return self.model.initial(seed)

    def values(self, parameters: Values) -> dict[str, Tensor]:
        return dict(parameters)

    def exported(self, values: Values) -> dict[str, Tensor]:
        # Copies: the values are the parameters themselves, which the next step moves.
        return {name: value.detach().clone().cpu() for name, value in values.items()}

    def imported(self, exported: Values) -> dict[str, Tensor]:
        return {name: value.to(self.base.device) for name, value in exported.items()}

    def merged(self, values: Values) -> AbstractContextManager[None]:
        return self.model.merged(values)

    def training(self, values: Values) -> AbstractContextManager[None]:
        return self.model.training(values)

    def release(self) -> None:
        """Nothing is kept: what they merge is made of few numbers, and quickly."""


class TiedAdapter(PlainAdapter):
    """Parameters that all matrices have in common: one vector, the value of each."""

    def initial(self, seed: int) -> dict[str, Tensor]:
        return {TIED: next(iter(self.model.initial(seed).values()))}

    def values(self, parameters: Values) -> dict[str, Tensor]:
        return {name: parameters[TIED] for name in self.model.initial(0)}


def make_adapter(model: AdaptedModel, hyper: Hyperparameters) -> Adapter:
    """The adapter that a job asks for, on its base.

    Raises:
        TrainingError: no matrix of this base is among the targets and layers, or the adapter cannot change one.
    """
    if isinstance(hyper, FewShotHyperparameters):
        return SvfAdapter(model, list(model.layers), sigmoid=False)  # those that it mixes say which of them move
    names = target_names(model.layers, hyper.targets, hyper.layers)
    if hyper.adapter == "svf":
        return SvfAdapter(model, names, sigmoid=hyper.parameterisation == "sigmoid")
    _refuse_moe_matrices(model, names, hyper)
    if hyper.adapter == "lora" or hyper.adapter == "dora":
        dora = hyper.adapter == "dora"
        return PlainAdapter(LoraModel(model.base, rank=hyper.lora_rank, alpha=hyper.lora_alpha, names=names, dora=dora))
    cores = CoreModel(model, core_settings(hyper.adapter, adapter_settings(hyper)), names)
    return TiedAdapter(cores) if hyper.core_shared else PlainAdapter(cores)


def adapter_of(model: AdaptedModel, expert: ExpertFile) -> Adapter:
    """The adapter that the file of an expert fits, wherever it was made.

    Raises:
        TrainingError: the base lacks a matrix of it, or no such expert can change one.
    """
    match expert.kind:
        case "svf":
            return SvfAdapter(model, list(expert.tensors), sigmoid=False)
        case "lora" | "dora":
            names = {key.rpartition(".")[0] for key in expert.tensors}
            rank, alpha = int(expert.settings["rank"]), float(expert.settings["alpha"])
            return PlainAdapter(LoraModel(model.base, rank=rank, alpha=alpha, names=names, dora=expert.kind == "dora"))
        case "frames" | "core":
            return PlainAdapter(CoreModel(model, core_settings(expert.kind, expert.settings), list(expert.tensors)))


def adapter_settings(hyper: Hyperparameters) -> dict[str, Any]:
    """What else than its tensors an artifact must say of the adapter that a job trains."""
    if isinstance(hyper, FewShotHyperparameters):
        return {}
    match hyper.adapter:
        case "svf":
            return {}
        case "lora" | "dora":
            return {"rank": hyper.lora_rank, "alpha": hyper.lora_alpha}
        case "frames" | "core":
            rank = hyper.subspace_rank or (PROJECTED_RANK if hyper.core_parameters else 0)
            return {"rank": rank, "parameters": hyper.core_parameters}


def core_settings(kind: CoreKind, settings: Mapping[str, Any]) -> CoreSettings:
    """Read back ``adapter_settings``."""
    return CoreSettings(kind, int(settings["rank"]), int(settings["parameters"]))


def target_names(names: Collection[str], targets: str, layers: tuple[int, int] | None) -> list[str]:
    """The matrices that ``targets`` and ``layers`` mean, by their names: ``model.layers.3.mlp.up_proj``, ``h.0.attn…``.

    Raises:
        TrainingError: none is left.
    """
    chosen = [name for name in sorted(names) if _is_target(name, targets) and _in_range(name, layers)]
    if not chosen:
        where = "" if layers is None else f" in blocks {layers[0]} to {layers[1]}"
        raise TrainingError(
            f"The base has no matrix for targets '{targets}'{where}. It has {len(names)}, such as '{min(names)}'. "
            "Use targets 'all', and layers that it has."
        )
    return chosen


def _refuse_moe_matrices(model: AdaptedModel, names: Collection[str], hyper: GradientHyperparameters) -> None:
    if matrices := [name for name in names if isinstance(model.layers[name], MoeMatrix)]:
        raise TrainingError(
            f"The adapter '{hyper.adapter}' cannot change the experts of a mixture-of-experts base, and targets "
            f"'{hyper.targets}' mean {len(matrices)} of their matrices, such as '{matrices[0]}'. "
            "Use the adapter 'svf', or targets 'attention'."
        )


def _is_target(name: str, targets: str) -> bool:
    if targets == "experts":
        return MOE_EXPERTS.search(name) is not None
    attention = ATTENTION.search(name) is not None
    mlp = MLP.search(name) is not None and not attention
    return targets == "all" or (attention and targets != "mlp") or (mlp and targets != "attention")


def block_of(name: str) -> int | None:
    """The number of the block that a matrix is in; None where it is in none."""
    block = BLOCK.search(name)
    return None if block is None else int(block[1])


def _in_range(name: str, layers: tuple[int, int] | None) -> bool:
    if layers is None:
        return True
    block = block_of(name)
    return block is not None and layers[0] <= block <= layers[1]
