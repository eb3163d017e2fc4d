"""The matrices of a LoRA that PEFT wrote, read as an expert of the kind ``lora`` or ``dora``.

PEFT names a matrix by the module that it is beside, and may give each module a rank and a scale of its own. An expert
has one of each: where they differ, the smaller matrices are filled up with zeros, and each scale goes into its B.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import regex
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zhub.errors import UnsupportedAdapterError
from zhub.registry.peft_config import CONFIG_FILE, scaling
from zhub.specs import LoraSettings
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.layers import layer_weight
from zhub_workers.model.moe import MoeMatrix

PREFIX = "base_model.model."
PARTS = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_magnitude_vector": "lora_magnitude_vector",
    ".lora_magnitude_vector.weight": "lora_magnitude_vector",
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PATTERN_TIMEOUT_S = 5.0  # of all that one pattern is tried on: a stranger's regular expression may take for ever

Matrices = dict[str, dict[str, Tensor]]
"""By layer, its tensors by part."""


def read_lora(path: Path, settings: LoraSettings, adapted: AdaptedModel) -> ExpertFile:
    """Read ``adapter_model.safetensors`` for this base; it answers as PEFT has it answer.

    Raises:
        UnsupportedAdapterError: another format, tensors that are no LoRA's, matrices that the base lacks or that no
            expert changes, other shapes or ranks, NaN or infinities.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as exc:
        raise UnsupportedAdapterError(
            f"{path.name} is not a safetensors file, or is cut short: {exc}. Save the adapter again, with "
            "`save_pretrained(..., safe_serialization=True)`.",
            param="files",
        ) from exc
    matrices = _by_layer(tensors, settings)
    _check_layers(matrices, adapted)
    scalings = _scalings(matrices, settings)
    for name, parts in matrices.items():
        _check_shapes(name, parts, adapted)
    return _expert(matrices, scalings, settings)


def _by_layer(tensors: Mapping[str, Tensor], settings: LoraSettings) -> Matrices:
    matrices: Matrices = {}
    for key, tensor in tensors.items():
        suffix = next((end for end in PARTS if key.startswith(PREFIX) and key.endswith(end)), None)
        if suffix is None:
            raise _refused(f"'{key}' is no matrix of a LoRA on a linear layer: an expert changes nothing else")
        if tensor.dtype not in DTYPES:
            raise _refused(f"'{key}' is {tensor.dtype}: float32, bfloat16 and float16 are read")
        if not torch.isfinite(tensor).all():
            raise _refused(f"'{key}' holds NaN or infinite numbers")
        matrices.setdefault(key[len(PREFIX) : -len(suffix)], {})[PARTS[suffix]] = tensor.float()
    if not matrices:
        raise _refused("it holds no matrices")
    expected = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if settings.dora else [])}
    for name, parts in matrices.items():
        if parts.keys() != expected:
            raise _refused(f"'{name}' has {', '.join(sorted(parts))}, expected {', '.join(sorted(expected))}")
    return matrices


def _check_layers(names: Collection[str], adapted: AdaptedModel) -> None:
    for name in sorted(names):
        if name not in adapted.layers:
            raise _refused(
                f"it changes '{name}', and the base has no such matrix, or none that experts change. It has "
                f"{len(adapted.layers)}, such as '{min(adapted.layers)}'. Give the base that it was made on"
            )
        if isinstance(adapted.layers[name], MoeMatrix):
            raise _refused(f"it changes '{name}' of an MoE expert, which multipliers alone can change")


def _check_shapes(name: str, parts: Mapping[str, Tensor], adapted: AdaptedModel) -> None:
    m, n = layer_weight(adapted.linear_layer(name)).shape
    rank = parts["lora_A"].shape[0]
    expected = {"lora_A": (rank, n), "lora_B": (m, rank), "lora_magnitude_vector": (m,)}
    for part, tensor in parts.items():
        if tuple(tensor.squeeze().shape if part == "lora_magnitude_vector" else tensor.shape) != expected[part]:
            raise _refused(
                f"{part} of '{name}' has shape {tuple(tensor.shape)}, and on this base it must be {expected[part]}. "
                "Give the base that it was made on"
            )


def _scalings(matrices: Matrices, settings: LoraSettings) -> dict[str, float]:
    """What each layer's product is multiplied by; the ranks must be those that the configuration says."""
    ranks, alphas = _matching(settings.ranks, matrices), _matching(settings.alphas, matrices)
    scalings = {}
    for name, parts in matrices.items():
        rank = int(ranks.get(name, settings.rank))
        if parts["lora_A"].ndim != 2 or parts["lora_A"].shape[0] != rank:
            raise _refused(
                f"lora_A of '{name}' has shape {tuple(parts['lora_A'].shape)}, and {CONFIG_FILE} says rank {rank}: its "
                "scale is not known"
            )
        scalings[name] = scaling(settings, rank, float(alphas.get(name, settings.alpha)))
    return scalings


def _matching(patterns: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    """The value of the first pattern that each name ends with, as PEFT looks them up (``get_pattern_key``)."""
    values: dict[str, float] = {}
    for pattern, value in patterns.items():
        try:
            compiled = regex.compile(rf"(.*\.)?({pattern})$")
            for name in names:
                if name not in values and compiled.match(name, timeout=PATTERN_TIMEOUT_S / len(names)):
                    values[name] = value
        except (regex.error, TimeoutError) as exc:
            raise _refused(f"the pattern '{pattern[:80]}' of {CONFIG_FILE} cannot be used: {exc}") from exc
    return values


def _expert(matrices: Matrices, scalings: Mapping[str, float], settings: LoraSettings) -> ExpertFile:
    ranks = {name: parts["lora_A"].shape[0] for name, parts in matrices.items()}
    rank = max(ranks.values())
    alike = len(set(ranks.values())) == len(set(scalings.values())) == 1
    tensors: dict[str, Tensor] = {}
    for name, parts in matrices.items():
        down, up = parts["lora_A"], parts["lora_B"]
        if not alike:
            missing = rank - ranks[name]
            down = torch.cat([down, down.new_zeros(missing, down.shape[1])])
            up = torch.cat([scalings[name] * up, up.new_zeros(up.shape[0], missing)], 1)
        tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"] = down, up
        if settings.dora:
            tensors[f"{name}.lora_magnitude_vector"] = parts["lora_magnitude_vector"].flatten()
    alpha = rank * next(iter(scalings.values())) if alike else float(rank)
    return ExpertFile("dora" if settings.dora else "lora", tensors, {"rank": rank, "alpha": alpha})


def _refused(what: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(f"The adapter cannot be imported: {what}.", param="files")
