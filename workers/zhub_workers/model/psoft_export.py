"""An SVF expert as PSOFT adapters, which PEFT loads as they are: ``W' = W + B (R - I) A`` on the SVD of the weight.

With ``R = diag(z)`` that is SVF, exactly: PEFT's parameters are a rotation, of zeros here, and a vector ``b``, which is
z. A rotation of r directions is stored as ``r (r - 1) / 2`` zeros, so that the file grows with the square of r.
Read of peft 0.21 (``peft/tuners/psoft``).

PEFT computes the SVD again wherever it loads the adapter: directions whose singular values are equal up to rounding may
come in another order there. The folder has logits to compare with.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PsoftConfig
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from zhub.errors import UnsupportedAdapterError
from zhub.specs import BaseModelSource
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.lora_export import check_layers, write_peft_weights

MAX_BYTES = 1 << 30
ROTATION_DTYPE = torch.float16  # of zeros, which are the same in all


def psoft_bytes(z: Mapping[str, Tensor]) -> int:
    """What the adapters take on disk."""
    numbers = [len(values) for values in z.values()]
    return sum(r * (r - 1) // 2 * ROTATION_DTYPE.itemsize + r * torch.float32.itemsize for r in numbers)


def write_psoft(directory: Path, expert: ExpertFile, adapted: AdaptedModel, base: BaseModelSource) -> list[str]:
    """Write one adapter for each number of directions that matrices have: PEFT has one of a whole adapter.

    Returns:
        The folders of the adapters within ``directory``; ``.`` where there is one.

    Raises:
        UnsupportedAdapterError: no SVF expert, or none of plain linear layers, or one whose rotations are too large.
    """
    _check(expert, adapted)
    by_size: dict[int, dict[str, Tensor]] = {}
    for name, z in sorted(expert.tensors.items()):
        by_size.setdefault(len(z), {})[name] = z
    folders = {r: "." if len(by_size) == 1 else f"rank-{r}" for r in sorted(by_size)}
    for r, folder in folders.items():
        (directory / folder).mkdir(exist_ok=True)
        _write(directory / folder, r, by_size[r], base)
    return list(folders.values())


def _check(expert: ExpertFile, adapted: AdaptedModel) -> None:
    if expert.kind != "svf":
        raise UnsupportedAdapterError(
            f"Only experts of the kind 'svf' are PSOFT adapters, and this version is of the kind '{expert.kind}'. "
            "Export it as 'lora', which is exact for it, or as 'merged'.",
            param="format",
        )
    check_layers(expert, adapted, "PSOFT")
    if of_other := [name for name in sorted(expert.tensors) if isinstance(adapted.layers[name], Conv1D)]:
        raise UnsupportedAdapterError(
            f"PSOFT adapts torch.nn.Linear alone, and '{of_other[0]}' is a Conv1D. Export the version as 'lora' or "
            "'merged'.",
            param="format",
        )
    size = psoft_bytes(expert.tensors)
    if size > MAX_BYTES:
        largest = max(len(z) for z in expert.tensors.values())
        raise UnsupportedAdapterError(
            f"As PSOFT the version takes {size / 1e9:.2f} GB, more than the {MAX_BYTES / 1e9:.2f} GB that are written: "
            f"r (r - 1) / 2 zeros for each of its {len(expert.tensors)} matrices, r up to {largest:,}. Export it as "
            "'lora' or 'merged'.",
            param="format",
        )


def _write(directory: Path, r: int, z: Mapping[str, Tensor], base: BaseModelSource) -> None:
    config = PsoftConfig(
        r=r,
        psoft_alpha=r,  # of which PEFT makes the scale alpha / r
        target_modules=sorted(z),
        psoft_mag_b=True,
        psoft_mag_a=False,
        # One term is the identity, which the Cayley transform of zeros is: no linear system is solved for it.
        use_cayley_neumann=True,
        num_cayley_neumann_terms=2,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base.hub_id or base.name,
        revision=base.hub_revision,
    )
    config.save_pretrained(str(directory))
    tensors: dict[str, Tensor] = {}
    for name, multipliers in z.items():
        tensors[f"{name}.psoft_R.weight"] = torch.zeros(r * (r - 1) // 2, dtype=ROTATION_DTYPE)
        tensors[f"{name}.psoft_R.vector_b"] = multipliers
    write_peft_weights(directory, tensors)
