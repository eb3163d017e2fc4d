"""Cores: small matrices between the leading singular vectors of a weight, trained instead of its multipliers.

With ``W = U diag(s) Vh`` and its first k singular directions an expert is ``W' = W + U_k C Vh_k``. ``C``, ``(k, k)``,
is made of the parameters in one of three ways:

- ``Frames``: ``C = (R - I) diag(s_k)`` with R orthogonal: the left singular vectors turn within their own span, and
  the singular values stay. ``R = (I - A/2)^-1 (I + A/2)`` is the Cayley transform of a skew A, whose ``k (k - 1) / 2``
  numbers are the parameters. Sources: PSOFT (ICLR 2026) for the rotation of the leading subspace, ISO
  (arXiv:2607.19331) for the thesis that reinforcement moves frames and keeps spectra.
- ``FullCores``: ``C = diag(s_k) M``, and M is the parameters. Source: LoRA-XS (arXiv:2405.17604).
- ``ProjectedCores``: M is a sum of p fixed random matrices with the parameters as weights. Source: TinyLoRA
  (arXiv:2602.04118). Departure: the random entries are signs, drawn by SHAKE-256 from the matrix's name, so that no
  version of any library changes what an expert means.

Scale. A step of Adam moves every parameter by about the learning rate. ``A`` and ``M`` are multiplied by
``|s| / (|s_k| sqrt(k - 1))`` and ``|s| / (|s_k| sqrt(k))``, so that to first order a step of e in every parameter
changes W by the share e of its Frobenius norm, whatever k and the shape. So does a step of e in every multiplier of an
SVF, and one rate suits all of them.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from zhub.errors import TrainingError

CoreKind = Literal["frames", "core"]
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class CoreSettings:
    """What the parameters of an expert mean.

    ``rank`` is k, 0 for the default of the kind and shape (``default_rank``). ``parameters`` is the number p of a
    matrix's random matrices, 0 where its core has none.
    """

    kind: CoreKind
    rank: int = 0
    parameters: int = 0


class Cores(Protocol):
    """One way to make the cores of some matrices from parameters.

    ``leading``: of each of these matrices, the singular values that its core stands between, ``(k,)``.
    """

    leading: Mapping[str, Tensor]

    def initial(self) -> dict[str, Tensor]:
        """Parameters of zeros, float32, whose cores are exactly zero: the base itself."""

    def core(self, name: str, parameters: Parameters) -> Tensor:
        """The core of one matrix, ``(k, k)`` float32, differentiable in the parameters."""


def make_cores(settings: CoreSettings, singular_values: Mapping[str, Tensor]) -> Cores:
    """The cores that ``settings`` describe, of matrices with these singular values, ``(r,)`` descending.

    Raises:
        TrainingError: the settings do not fit a matrix; or there is none.
    """
    leading = {}
    for name, s in singular_values.items():
        rank = min(settings.rank or default_rank(settings, len(s)), len(s))
        # A single direction cannot turn within its own span.
        if settings.kind == "core" or rank > 1:
            leading[name] = s[:rank]
    if not leading:
        raise TrainingError("No matrix has two singular directions that could turn into each other. Use adapter 'svf'.")
    shares = {name: float(s.norm() / singular_values[name].norm()) for name, s in leading.items()}
    if settings.kind == "frames":
        return Frames(leading, shares)
    if settings.parameters:
        return ProjectedCores(leading, shares, settings.parameters)
    return FullCores(leading, shares)


def default_rank(settings: CoreSettings, r: int) -> int:
    """The k for which a matrix with r singular values has about r parameters, as it has under SVF."""
    return round((1 + math.sqrt(1 + 8 * r)) / 2) if settings.kind == "frames" else round(math.sqrt(r))


class Frames:
    """Rotations of the left singular vectors; see the module."""

    def __init__(self, leading: Mapping[str, Tensor], shares: Mapping[str, float]) -> None:
        self.leading = leading
        self._scales = {name: 1 / (shares[name] * math.sqrt(len(s) - 1)) for name, s in leading.items()}

    def initial(self) -> dict[str, Tensor]:
        return {name: s.new_zeros(len(s) * (len(s) - 1) // 2) for name, s in self.leading.items()}

    def core(self, name: str, parameters: Parameters) -> Tensor:
        s = self.leading[name]
        k = len(s)
        rows, columns = torch.triu_indices(k, k, offset=1, device=s.device)
        upper = s.new_zeros(k, k).index_put((rows, columns), self._scales[name] * parameters[name])
        return rotation_change(upper - upper.T) * s


class FullCores:
    """Cores with every entry a parameter; see the module."""

    def __init__(self, leading: Mapping[str, Tensor], shares: Mapping[str, float]) -> None:
        self.leading = leading
        self._scales = {name: 1 / (shares[name] * math.sqrt(len(s))) for name, s in leading.items()}

    def initial(self) -> dict[str, Tensor]:
        return {name: s.new_zeros(len(s), len(s)) for name, s in self.leading.items()}

    def core(self, name: str, parameters: Parameters) -> Tensor:
        return (self._scales[name] * self.leading[name]).unsqueeze(1) * parameters[name]


class ProjectedCores:
    """Cores that are sums of fixed random matrices; see the module."""

    def __init__(self, leading: Mapping[str, Tensor], shares: Mapping[str, float], count: int) -> None:
        self.leading = leading
        self._count = count
        self._scales = {name: 1 / (shares[name] * math.sqrt(len(s) * count)) for name, s in leading.items()}
        self._signs = {name: random_signs(name, count, len(s)).to(s.device) for name, s in leading.items()}

    def initial(self) -> dict[str, Tensor]:
        return {name: s.new_zeros(self._count) for name, s in self.leading.items()}

    def core(self, name: str, parameters: Parameters) -> Tensor:
        mixed = torch.einsum("p,pij->ij", parameters[name], self._signs[name])
        return (self._scales[name] * self.leading[name]).unsqueeze(1) * mixed


def rotation_change(skew: Tensor) -> Tensor:
    """Return ``R - I`` of the Cayley transform R of ``skew``, ``(k, k)``; exactly zero where it is zero.

    ``R - I = (I - A/2)^-1 A``, which subtracts nothing that is nearly equal.
    """
    identity = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
    change: Tensor = torch.linalg.solve(identity - skew / 2, skew)
    return change


def random_signs(name: str, count: int, k: int) -> Tensor:
    """Return ``count`` matrices of signs, ``(count, k, k)`` float32, always the same for one name and shape."""
    entries = count * k * k
    digest = hashlib.shake_256(f"{name}|{count}|{k}".encode()).digest(-(-entries // 8))
    packed = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return (2.0 * bits.flatten()[:entries].float() - 1).view(count, k, k)
