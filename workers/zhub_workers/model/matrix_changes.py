"""What an expert adds to each matrix of its base, as one matrix: ``W' - W``, made of its file and the basis alone.

No model is loaded for it, so that an expert can be folded into weights that do not fit into memory.
"""

import torch
from torch import Tensor

from zhub.errors import ArtifactError
from zhub_workers.model.adapters import core_settings
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.basis import Basis
from zhub_workers.model.cores import make_cores


class MatrixChanges:
    """The changes of one expert, of any kind, on the basis that it belongs to.

    Raises:
        ArtifactError: it changes a matrix that the basis lacks.
    """

    def __init__(self, expert: ExpertFile, basis: Basis) -> None:
        self._expert, self._basis = expert, basis
        low_rank = expert.kind in ("lora", "dora")
        self.names = sorted({key.rpartition(".")[0] if low_rank else key for key in expert.tensors})
        if unknown := sorted(set(self.names) - basis.factors.keys()):
            raise ArtifactError(f"The expert changes the matrix '{unknown[0]}', which the basis lacks.")

    @torch.no_grad()
    def of(self, name: str, weight: Tensor) -> Tensor:
        """What is added to ``weight``, ``(m, n)`` float32.

        Raises:
            ArtifactError: the expert's tensors do not fit the matrix.
        """
        try:
            change = self._low_rank(name, weight) if self._expert.kind in ("lora", "dora") else self._within(name)
        except RuntimeError as exc:
            raise ArtifactError(f"The expert does not fit '{name}' of shape {tuple(weight.shape)}: {exc}") from exc
        if change.shape != weight.shape:
            raise ArtifactError(f"The expert's '{name}' is {tuple(change.shape)}, the base's {tuple(weight.shape)}.")
        return change

    def _within(self, name: str) -> Tensor:
        """Between the singular vectors: of multipliers ``U diag(s (z - 1)) Vh``, of a core ``U_k C Vh_k``."""
        u, s, vh = self._basis.factors[name]
        if self._expert.kind == "svf":
            return (u * (s * (self._expert.tensors[name] - 1))) @ vh
        assert self._expert.kind in ("frames", "core")
        cores = make_cores(core_settings(self._expert.kind, self._expert.settings), {name: s})
        core = cores.core(name, self._expert.tensors)
        return u[:, : len(core)] @ core @ vh[: len(core)]

    def _low_rank(self, name: str, weight: Tensor) -> Tensor:
        tensors, settings = self._expert.tensors, self._expert.settings
        scale = float(settings["alpha"]) / int(settings["rank"])
        change: Tensor = scale * tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"]
        if self._expert.kind == "lora":
            return change
        changed = weight + change
        gain = tensors[f"{name}.lora_magnitude_vector"] / torch.linalg.norm(changed, dim=1)
        scaled: Tensor = gain.unsqueeze(1) * changed
        return scaled - weight
