"""A base model whose linear layers can follow a LoRA expert, and go back to the base. The layers are peft's.

LoRA (arXiv:2106.09685) adds ``(alpha / rank) * B @ A`` to a frozen weight. It is what SVF is compared with, so peft's
own layer computes the training forward and its own product is folded into the weights: whoever doubts the comparison
need not trust a LoRA of ours. Three states of one loaded model, as in ``adapted.py``. Outside of every context it is
the base, untouched. Inside,

- ``merged(values)`` swaps in weights made once: fastest, no gradient;
- ``training(values)`` swaps in peft's layers, so a backward reaches ``values``.

They agree up to rounding in the dtype of the base. There is no dropout, because SVF has none.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zhub.errors import ArtifactError, TrainingError
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.layers import layer_weight, linear_layers

ADAPTER = "default"  # peft's own name for the only adapter of a layer


class LoraModel:
    """A base model with LoRA matrices beside its linear layers, made and merged by peft.

    A LoRA's values are two float32 tensors a layer: ``<layer>.lora_A``, ``(rank, n)``, and ``<layer>.lora_B``,
    ``(m, rank)``, for a weight of ``(m=out, n=in)``, whatever the dtype of the base.

    Raises:
        TrainingError: no layer is named, the base has no such layer, or rank or alpha is not positive.
    """

    def __init__(self, base: BaseModel, *, rank: int, alpha: float, names: Collection[str]) -> None:
        if rank < 1 or not (math.isfinite(alpha) and alpha > 0):
            raise TrainingError(f"LoRA with rank {rank} and alpha {alpha}: both must be positive.")
        layers = linear_layers(base.model)
        if unknown := sorted(set(names) - layers.keys()):
            raise TrainingError(
                f"the base model has no linear layer '{unknown[0]}'; the first it has: '{min(layers)}'."
            )
        if not names:
            raise TrainingError("LoRA on no layer has nothing to train; name at least one.")
        self.base = base
        self.layers = {name: layers[name] for name in sorted(set(names))}
        self._peft_layers = {name: _peft_layer(layer, rank, alpha) for name, layer in self.layers.items()}
        self._shapes: dict[str, tuple[int, int]] = {}
        for name, layer in self.layers.items():
            m, n = layer_weight(layer).shape
            self._shapes[f"{name}.lora_A"] = (rank, n)
            self._shapes[f"{name}.lora_B"] = (m, rank)
        self._holders = _holders(base, self.layers)
        self._state = "base"

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return values to start from, on the base's device: peft's default, where B is zero and the model the base.

        A is uniform in ``±1/sqrt(n)``. Drawn on the CPU, so that a seed means the same values on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        values: dict[str, Tensor] = {}
        for key, shape in self._shapes.items():
            value = torch.zeros(shape)
            if key.endswith(".lora_A"):
                nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
            values[key] = value.to(self.base.device)
        return values

    @contextmanager
    def merged(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Give every layer the weight with its LoRA folded in, and its own weight back at the end.

        A bf16 weight drops the part of the sum that is finer than its own 8 bits, so the two states differ by that.

        Raises:
            ArtifactError: other layers, shapes or dtypes than this LoRA has, NaN or infinities.
        """
        self._check(values)
        for key, value in values.items():
            if not torch.isfinite(value).all():
                raise ArtifactError(f"LoRA '{key}' holds NaN or infinite numbers.")
        moved = {key: value.detach().to(self.base.device) for key, value in values.items()}
        with self._entered("merged"):
            # peft's own unmerge subtracts what merge added, and a float sum does not give the old weight back
            # (github.com/huggingface/peft/issues/1388, 2502). Keeping the originals does, bit for bit.
            kept = {name: layer.weight for name, layer in self.layers.items()}
            try:
                with torch.no_grad(), self._holding(moved):
                    for name, layer in self.layers.items():
                        weight: Tensor = layer.weight  # type: ignore[assignment]
                        # Added in float32 and rounded once.
                        folded = weight + self._peft_layers[name].get_delta_weight(ADAPTER)
                        layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
                yield
            finally:
                for name, layer in self.layers.items():
                    layer.weight = kept[name]

    @contextmanager
    def training(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Put peft's layers in place of the model's, with ``values``, on the base's device, as their matrices.

        With B of zeros the logits are the base's bit for bit.

        Raises:
            ArtifactError: other layers, shapes or dtypes than this LoRA has.
        """
        self._check(values)
        with self._entered("training"), self._holding(values):
            try:
                for parent, child, name in self._holders:
                    setattr(parent, child, self._peft_layers[name])
                yield
            finally:
                for parent, child, name in self._holders:
                    setattr(parent, child, self.layers[name])

    @contextmanager
    def _entered(self, state: str) -> Iterator[None]:
        if self._state != "base":
            raise RuntimeError(f"the model is already in the state '{self._state}', leave it before '{state}'")
        self._state = state
        try:
            yield
        finally:
            self._state = "base"

    @contextmanager
    def _holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Lend the caller's own tensors to peft's layers.

        As plain attributes: an nn.Parameter made of them would be another leaf, and the gradient would end there.
        """
        for name, layer in self._peft_layers.items():
            layer.lora_A[ADAPTER].weight = values[f"{name}.lora_A"]
            layer.lora_B[ADAPTER].weight = values[f"{name}.lora_B"]
        try:
            yield
        finally:
            for layer in self._peft_layers.values():
                _drop_weights(layer)

    def _check(self, values: Mapping[str, Tensor]) -> None:
        if values.keys() != self._shapes.keys():
            odd = sorted(values.keys() ^ self._shapes.keys())
            raise ArtifactError(
                f"the LoRA has {len(values)} matrices, expected {len(self._shapes)}; '{odd[0]}' is only in one of them."
            )
        for key, shape in self._shapes.items():
            if tuple(values[key].shape) != shape:
                raise ArtifactError(f"LoRA '{key}' has shape {tuple(values[key].shape)}, expected {shape}.")
            if values[key].dtype != torch.float32:
                raise ArtifactError(f"LoRA '{key}' is {values[key].dtype}, expected torch.float32.")


def _peft_layer(layer: nn.Module, rank: int, alpha: float) -> PeftLinear:
    """Return peft's layer around ``layer``, which stays as it is, without matrices.

    Injected into a holder of its own: injecting into the model would match layers by the ends of their names and
    leave traces (``peft_config``, changed ``requires_grad``) on a model that serves others next.
    """
    holder = nn.ModuleDict({"layer": layer})
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared int, divided as a float
        lora_dropout=0.0,
        target_modules=["layer"],
        fan_in_fan_out=isinstance(layer, Conv1D),
    )
    # low_cpu_mem_usage leaves peft's matrices on the meta device: no memory, and no draw from the global generator.
    inject_adapter_in_model(config, holder, ADAPTER, low_cpu_mem_usage=True)
    made = holder["layer"]
    assert isinstance(made, PeftLinear)
    _drop_weights(made)
    return made


def _drop_weights(layer: PeftLinear) -> None:
    del layer.lora_A[ADAPTER].weight
    del layer.lora_B[ADAPTER].weight


def _holders(base: BaseModel, layers: Mapping[str, nn.Module]) -> list[tuple[nn.Module, str, str]]:
    """Every module, attribute and layer name such that the attribute is the layer; a shared layer has several."""
    names = {id(layer): name for name, layer in layers.items()}
    return [
        (parent, child, names[id(module)])
        for parent in base.model.modules()
        for child, module in parent.named_children()
        if id(module) in names
    ]
