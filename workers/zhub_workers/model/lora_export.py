"""An expert as a LoRA that PEFT loads: exactly where it is low-rank already, else its best approximation of a rank.

The change of an SVF expert is ``U diag(s (z - 1)) Vh``, whose singular values are ``|s (z - 1)|``: the k largest of
them, with their vectors, are the best approximation of rank k (Eckart-Young), and no SVD is computed for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from zhub.errors import UnsupportedAdapterError
from zhub.registry.peft_config import WEIGHTS_FILE
from zhub.specs import BaseModelSource
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import core_settings
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.basis import replace_file
from zhub_workers.model.core_model import CoreModel
from zhub_workers.model.moe import MoeMatrix
from zhub_workers.model.peft_weights import PREFIX

DEFAULT_RANK = 64  # of an SVF expert, whose own rank is that of the weights


@dataclass(frozen=True)
class LoraExport:
    """The matrices of a LoRA as artifacts name them: ``<layer>.lora_A (rank, n)``, ``<layer>.lora_B (m, rank)``.

    ``error``: the Frobenius norm of what is left out, as a share of the whole change; 0 where nothing is.
    """

    tensors: dict[str, Tensor]
    rank: int
    alpha: float
    dora: bool
    error: float


@dataclass(frozen=True)
class _Factors:
    """``up (m, r)`` and ``down (r, n)``, strongest first, and the singular values of their product, ``(r,)``."""

    up: Tensor
    down: Tensor
    strengths: Tensor


@torch.no_grad()
def as_lora(expert: ExpertFile, adapted: AdaptedModel, rank: int | None) -> LoraExport:
    """The LoRA of at most this rank; ``rank`` None: that of the expert where it has one, else ``DEFAULT_RANK``.

    Raises:
        UnsupportedAdapterError: it changes MoE experts, or is a DoRA of a higher rank, which no smaller one is near.
    """
    check_layers(expert, adapted, "a LoRA")
    if expert.kind in ("lora", "dora"):
        own = int(expert.settings["rank"])
        if rank is None or rank >= own:
            return LoraExport(
                dict(expert.tensors), own, float(expert.settings["alpha"]), expert.kind == "dora", error=0.0
            )
        if expert.kind == "dora":
            raise UnsupportedAdapterError(
                f"The expert is a DoRA of rank {own}, whose rows have lengths of their own: a smaller rank is not near "
                f"it. Leave the rank out, or give {own}.",
                param="rank",
            )
    factors = _factors(expert, adapted)
    largest = max(len(pair.strengths) for pair in factors.values())
    kept = min(largest, rank or (DEFAULT_RANK if expert.kind == "svf" else largest))
    tensors: dict[str, Tensor] = {}
    left_out = whole = 0.0
    for name, pair in factors.items():
        missing = kept - min(kept, len(pair.strengths))
        up = torch.nn.functional.pad(pair.up[:, :kept], (0, missing))
        down = torch.nn.functional.pad(pair.down[:kept], (0, 0, 0, missing))
        tensors |= {f"{name}.lora_A": down.contiguous().cpu(), f"{name}.lora_B": up.contiguous().cpu()}
        squares = pair.strengths.double().square()
        left_out, whole = left_out + float(squares[kept:].sum()), whole + float(squares.sum())
    return LoraExport(tensors, kept, float(kept), False, math.sqrt(left_out / whole) if whole else 0.0)


def check_layers(expert: ExpertFile, adapted: AdaptedModel, what: str) -> None:
    """Raise UnsupportedAdapterError where the expert changes matrices of MoE experts, which no ``what`` reaches."""
    changed = [name for name in sorted(expert.tensors) if isinstance(adapted.layers.get(name), MoeMatrix)]
    if changed:
        raise UnsupportedAdapterError(
            f"The version changes {len(changed)} matrices of MoE experts, such as '{changed[0]}', beside which "
            f"{what} of PEFT has none. Export it as 'merged', or as 'zhub'.",
            param="format",
        )


def write_lora(directory: Path, export: LoraExport, adapted: AdaptedModel, base: BaseModelSource) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does."""
    names = sorted({key.rpartition(".")[0] for key in export.tensors})
    config = LoraConfig(
        r=export.rank,
        lora_alpha=export.alpha,  # type: ignore[arg-type]  # declared int, divided as a float
        lora_dropout=0.0,
        use_dora=export.dora,
        target_modules=names,
        fan_in_fan_out=any(isinstance(adapted.layers[name], Conv1D) for name in names),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base.hub_id or base.name,
        revision=base.hub_revision,
    )
    config.save_pretrained(str(directory))
    write_peft_weights(directory, {_peft_key(key): tensor for key, tensor in export.tensors.items()})


def write_peft_weights(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's tensors, by their names within the base, under PEFT's."""
    content = {f"{PREFIX}{key}": tensor.contiguous() for key, tensor in sorted(tensors.items())}
    replace_file(directory / WEIGHTS_FILE, save(content, metadata={"format": "pt"}))


def _peft_key(key: str) -> str:
    return key if key.endswith("lora_magnitude_vector") else f"{key}.weight"


def _factors(expert: ExpertFile, adapted: AdaptedModel) -> dict[str, _Factors]:
    match expert.kind:
        case "svf":
            return {name: _of_multipliers(adapted, name, z) for name, z in expert.tensors.items()}
        case "lora":
            scale = float(expert.settings["alpha"]) / int(expert.settings["rank"])
            names = sorted({key.rpartition(".")[0] for key in expert.tensors})
            pairs = {name: (expert.tensors[f"{name}.lora_B"], expert.tensors[f"{name}.lora_A"]) for name in names}
            return {name: _sorted(scale * up, torch.eye(up.shape[1]), down) for name, (up, down) in pairs.items()}
        case _:
            assert expert.kind in ("frames", "core")
            model = CoreModel(adapted, core_settings(expert.kind, expert.settings), list(expert.tensors))
            found = {}
            for name, core in model.cores(expert.tensors).items():
                u, vh = adapted.leading(name, len(core))
                found[name] = _between(u, core, vh)
            return found


def _of_multipliers(adapted: AdaptedModel, name: str, z: Tensor) -> _Factors:
    u, s, vh = adapted.basis.factors[name]
    change = s * (z - 1)
    order = change.abs().argsort(descending=True, stable=True)
    root = change[order].abs().sqrt()
    return _Factors(u[:, order] * (root * change[order].sign()), root.unsqueeze(1) * vh[order], root.square())


def _between(u: Tensor, core: Tensor, vh: Tensor) -> _Factors:
    """Of ``U C Vh`` with orthonormal U and Vh."""
    left, strengths, right = torch.linalg.svd(core)
    root = strengths.sqrt()
    return _Factors(u @ (left * root), root.unsqueeze(1) * (right @ vh), strengths)


def _sorted(up: Tensor, middle: Tensor, down: Tensor) -> _Factors:
    """Of ``up middle down``, by a QR of each side."""
    q, upper = torch.linalg.qr(up)
    p, lower = torch.linalg.qr(down.T)
    return _between(q, upper @ middle @ lower.T, p.T)
