"""Random experts of each kind, and what serving answers with them."""

from pathlib import Path

import torch
from following import as_z, changed_logits, random_delta
from torch import Tensor

from zhub.manifest import sha256_file
from zhub.recipes import SupervisedHyperparameters
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import adapter_settings, make_adapter
from zhub_workers.model.artifact import ExpertFile, write_expert
from zhub_workers.model.changes import Change, read_change

KINDS = ("svf", "frames", "core", "lora", "dora")


def expert_of(adapted: AdaptedModel, kind: str, *, targets: str = "attention") -> ExpertFile:
    """An expert that changes much; of the kind ``svf`` every matrix."""
    if kind == "svf":
        return ExpertFile("svf", as_z(random_delta(adapted, 3)), {})
    hyper = SupervisedHyperparameters.model_validate({"adapter": kind, "targets": targets, "n_steps": 1})
    adapter = make_adapter(adapted, hyper)
    generator = torch.Generator().manual_seed(7)
    values = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in adapter.initial(0).items()
    }
    return ExpertFile(hyper.adapter, adapter.exported(adapter.values(values)), adapter_settings(hyper))


def change_of(adapted: AdaptedModel, expert: ExpertFile, path: Path) -> Change:
    """What serving reads of the expert's file."""
    write_expert(path, expert, basis_fingerprint=adapted.basis.fingerprint, base_model="tiny")
    return read_change(path, sha256=sha256_file(path), adapted=adapted)


def followed(adapted: AdaptedModel, expert: ExpertFile, path: Path) -> Tensor:
    """The logits of serving, of ``following.IDS``."""
    return changed_logits(adapted, change_of(adapted, expert, path))
