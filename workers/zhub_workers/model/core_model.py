"""A base model whose linear layers can follow an expert's cores, and go back to the base.

States as in ``adapted.py``: ``merged(parameters)`` swaps in weights made once, without gradient; in
``training(parameters)`` each layer adds ``U_k (C (Vh_k x))`` to its output, and a backward reaches the parameters. That
takes ``2 k (m + n + k)`` operations a token beside the ``2 m n`` of the layer, as many again for the gradient of C, and
keeps k numbers a token: no matrix of a weight's size is made. Both agree up to float rounding, and with parameters of
zeros both give the base's logits bit for bit.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from zhub.errors import ArtifactError
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.cores import CoreSettings, Parameters, make_cores
from zhub_workers.model.layers import is_transposed, layer_weight


class CoreModel:
    """An adapted model with cores in the matrices ``names``.

    Raises:
        TrainingError: the settings do not fit a matrix.
    """

    def __init__(self, adapted: AdaptedModel, settings: CoreSettings, names: Collection[str]) -> None:
        self.base = adapted.base
        self._adapted = adapted
        self._cores = make_cores(settings, {name: adapted.singular_values(name) for name in sorted(names)})
        self._shapes = {name: tuple(value.shape) for name, value in self._cores.initial().items()}

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Parameters of zeros. No seed changes them: their gradients differ without random numbers."""
        return self._cores.initial()

    @torch.no_grad()
    def cores(self, parameters: Parameters) -> dict[str, Tensor]:
        """The core of every matrix, ``(k, k)``.

        Raises:
            ArtifactError: other parameters than these cores have, NaN or infinities among them.
        """
        self._check(parameters)
        for name, value in parameters.items():
            if not torch.isfinite(value).all():
                raise ArtifactError(f"The core parameters of '{name}' hold NaN or infinite numbers.")
        moved = {name: value.detach().to(self.base.device) for name, value in parameters.items()}
        return {name: self._cores.core(name, moved) for name in self._cores.leading}

    def merged(self, parameters: Parameters) -> AbstractContextManager[None]:
        """Give every layer the weight with its core folded in, and its own weight back at the end.

        Raises:
            ArtifactError: as ``cores``.
        """
        weights = {name: self._merged_weight(name, core) for name, core in self.cores(parameters).items()}
        return self._adapted.replaced("merged", weights=weights)

    def training(self, parameters: Parameters) -> AbstractContextManager[None]:
        """Follow one expert, with gradients for its parameters.

        Raises:
            ArtifactError: other parameters than these cores have.
        """
        self._check(parameters)
        forwards = {name: self._forward(name, parameters) for name in self._cores.leading}
        return self._adapted.replaced("training", forwards=forwards)

    @torch.no_grad()
    def _merged_weight(self, name: str, core: Tensor) -> Tensor:
        layer = self._adapted.layers[name]
        weight: Tensor = layer.weight  # type: ignore[assignment]
        u, vh = self._adapted.leading(name, len(core))
        change = u @ core @ vh
        # Added in float32 and rounded once: a core of zeros gives the weight back bit for bit in every dtype.
        return (weight.float() + (change.T if is_transposed(layer) else change)).to(weight.dtype)

    def _forward(self, name: str, parameters: Parameters) -> Callable[[Tensor], Tensor]:
        layer = self._adapted.linear_layer(name)
        dtype = layer_weight(layer).dtype
        u, vh = (factor.to(dtype) for factor in self._adapted.leading(name, len(self._cores.leading[name])))

        def forward(x: Tensor) -> Tensor:
            # The core is made anew in each forward: a backward frees what the one before was made with.
            y: Tensor = type(layer).forward(layer, x)
            return y + core_change(x, u, self._cores.core(name, parameters), vh)

        return forward

    def _check(self, parameters: Mapping[str, Tensor]) -> None:
        if parameters.keys() != self._shapes.keys():
            odd = sorted(parameters.keys() ^ self._shapes.keys())
            raise ArtifactError(
                f"The expert has core parameters of {len(parameters)} matrices, expected {len(self._shapes)}; "
                f"'{odd[0]}' is only in one of them."
            )
        for name, shape in self._shapes.items():
            value = parameters[name]
            if tuple(value.shape) != shape or value.dtype != torch.float32:
                raise ArtifactError(
                    f"The core parameters of '{name}' are {tuple(value.shape)} {value.dtype}, expected {shape} float32."
                )


def core_change(x: Tensor, u: Tensor, core: Tensor, vh: Tensor) -> Tensor:
    """Return ``U_k (C (Vh_k x))``: what a core, or each row's own core, adds to a layer's output.

    Args:
        x: ``(..., n)``; with a core for each row ``(b, t, n)``.
        u, vh: ``(m, k)`` and ``(k, n)``, in the dtype of ``x``.
        core: ``(k, k)`` or ``(b, k, k)``, float32; zeros add exactly zero.
    """
    inner = (x @ vh.T).to(core.dtype) @ core.transpose(-2, -1)
    return inner.to(x.dtype) @ u.T
