"""A base model whose linear layers can follow a LoRA or DoRA expert, and go back to the base. The layers are peft's.

LoRA (arXiv:2106.09685) adds ``(alpha / rank) * B @ A`` to a frozen weight. It is what SVF is compared with, so peft's
own layer computes the training forward and its own product is folded into the weights: whoever doubts the comparison
need not trust a LoRA of ours. Three states of one loaded model, as in ``adapted.py``. Outside of every context it is
the base, untouched. Inside,

- ``merged(values)`` swaps in weights made once: fastest, no gradient;
- ``training(values)`` swaps in peft's layers, so a backward reaches ``values``.

They agree up to rounding in the dtype of the base. There is no dropout, because SVF has none.

DoRA (arXiv:2402.09353) then scales every row of the changed weight to a length of its own, which is trained too. The
length that it is divided by counts as a constant in the gradient, as the paper's section 4.3 has it.

Scale. A step of Adam moves every entry of B by about the learning rate e. From B of zeros, with entries of A of
variance ``1 / (3 n)``, that changes a weight with entries of deviation d by the share ``alpha e / (d sqrt(3 rank n))``
of its Frobenius norm: some 4.6 e for alpha 32, rank 16 and ``d = 1 / sqrt(n)``, and less for a larger rank.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zhub.errors import ArtifactError, TrainingError
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.layers import layer_weight, linear_layers

ADAPTER = "default"  # peft's own name for the only adapter of a layer


class LoraModel:
    """A base model with LoRA matrices beside its linear layers, made and merged by peft.

    A LoRA's values are two float32 tensors a layer: ``<layer>.lora_A``, ``(rank, n)``, and ``<layer>.lora_B``,
    ``(m, rank)``, for a weight of ``(m=out, n=in)``, whatever the dtype of the base. With ``dora`` there is a third,
    the lengths of the rows: ``<layer>.lora_magnitude_vector``, ``(m,)``.

    Raises:
        TrainingError: no layer is named, the base has no such layer, rank or alpha is not positive, or a row of zeros
            has no length to be scaled to.
    """

    def __init__(self, base: BaseModel, *, rank: int, alpha: float, names: Collection[str], dora: bool = False) -> None:
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
        self._peft_layers = {name: _peft_layer(layer, rank, alpha, dora) for name, layer in self.layers.items()}
        self._dora = dora
        self._shapes = matrix_shapes(self.layers, rank, dora=dora)
        for name, layer in self.layers.items():
            if dora and not layer_weight(layer).any(1).all():
                raise TrainingError(f"A row of '{name}' is zero: DoRA cannot scale it. Use the adapter 'lora'.")
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
        if self._dora:
            with torch.no_grad(), self._holding(values):
                for name in self.layers:
                    values[f"{name}.lora_magnitude_vector"] = self._row_lengths(name).float()
        return values

    @contextmanager
    def merged(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Give every layer the weight with its LoRA folded in, and its own weight back at the end.

        A bf16 weight drops the part of the sum that is finer than its own 8 bits, so the two states differ by that.

        Raises:
            ArtifactError: other layers, shapes or dtypes than this LoRA has, NaN or infinities.
        """
        check_matrices(values, self._shapes)
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
                        layer.weight = nn.Parameter(self._folded(name), requires_grad=False)
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
        check_matrices(values, self._shapes)
        with self._entered("training"), self._holding(values):
            try:
                for parent, child, name in self._holders:
                    setattr(parent, child, self._peft_layers[name])
                yield
            finally:
                for parent, child, name in self._holders:
                    setattr(parent, child, self.layers[name])

    def _folded(self, name: str) -> Tensor:
        """The weight of a layer with the values that peft's layer holds, added in float32 and rounded once."""
        layer, peft_layer = self.layers[name], self._peft_layers[name]
        weight: Tensor = layer.weight  # type: ignore[assignment]
        folded = weight + peft_layer.get_delta_weight(ADAPTER)
        if self._dora:
            # Not by peft's merge, which takes the lengths in another layout: they differ by rounding from the initial
            # ones, and a DoRA that has not moved would not be the base.
            wanted: Tensor = peft_layer.lora_magnitude_vector[ADAPTER].weight  # type: ignore[assignment]
            gain = (wanted / self._row_lengths(name)).unsqueeze(1)
            folded = folded * (gain.T if isinstance(layer, Conv1D) else gain)
        return folded.to(weight.dtype)

    def _row_lengths(self, name: str) -> Tensor:
        """Of the weight with the LoRA that peft's layer holds, ``(m,)``, as its forward computes them."""
        layer = self._peft_layers[name]
        dora = layer.lora_magnitude_vector[ADAPTER]
        assert isinstance(dora, DoraLinearLayer)
        change = dora.get_lora_weight(lora_A=layer.lora_A[ADAPTER], lora_B=layer.lora_B[ADAPTER])
        weight = layer.get_base_layer().weight.float()  # peft's forward casts it to the matrices' dtype, too
        lengths: Tensor = dora.get_weight_norm(weight, change, scaling=layer.scaling[ADAPTER])
        return lengths

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
            if self._dora:
                layer.lora_magnitude_vector[ADAPTER].weight = values[f"{name}.lora_magnitude_vector"]
        try:
            yield
        finally:
            for layer in self._peft_layers.values():
                _drop_weights(layer)


def matrix_shapes(layers: Mapping[str, nn.Module], rank: int, *, dora: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of a LoRA's matrices, or a DoRA's, in these layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        m, n = layer_weight(layer).shape
        shapes[f"{name}.lora_A"] = (rank, n)
        shapes[f"{name}.lora_B"] = (m, rank)
        if dora:
            shapes[f"{name}.lora_magnitude_vector"] = (m,)
    return shapes


def check_matrices(values: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ArtifactError unless the values are float32 matrices of these shapes."""
    if values.keys() != shapes.keys():
        odd = sorted(values.keys() ^ shapes.keys())
        raise ArtifactError(
            f"the LoRA has {len(values)} matrices, expected {len(shapes)}; '{odd[0]}' is only in one of them."
        )
    for key, shape in shapes.items():
        if tuple(values[key].shape) != shape:
            raise ArtifactError(f"LoRA '{key}' has shape {tuple(values[key].shape)}, expected {shape}.")
        if values[key].dtype != torch.float32:
            raise ArtifactError(f"LoRA '{key}' is {values[key].dtype}, expected torch.float32.")


def _peft_layer(layer: nn.Module, rank: int, alpha: float, dora: bool) -> PeftLinear:
    """Return peft's layer around ``layer``, which stays as it is, without matrices.

    Injected into a holder of its own: injecting into the model would match layers by the ends of their names and
    leave traces (``peft_config``, changed ``requires_grad``) on a model that serves others next.
    """
    holder = nn.ModuleDict({"layer": layer})
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared int, divided as a float
        lora_dropout=0.0,
        use_dora=dora,
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
    if ADAPTER in layer.lora_magnitude_vector:
        del layer.lora_magnitude_vector[ADAPTER].weight


def _holders(base: BaseModel, layers: Mapping[str, nn.Module]) -> list[tuple[nn.Module, str, str]]:
    """Every module, attribute and layer name such that the attribute is the layer; a shared layer has several."""
    names = {id(layer): name for name, layer in layers.items()}
    return [
        (parent, child, names[id(module)])
        for parent in base.model.modules()
        for child, module in parent.named_children()
        if id(module) in names
    ]
