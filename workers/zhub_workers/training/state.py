"""The state of training after a step, in memory and in a file: all that is needed to resume without a difference."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from zhub.errors import ArtifactError
from zhub.manifest import canonical_json
from zhub_workers.model.basis import replace_file
from zhub_workers.training.course import Course

STATE_FORMAT = "zhub-state-1"


@dataclass
class TrainState:
    """Everything that a step depends on.

    ``parameters`` are what the optimiser moves, ``first_moments`` and ``second_moments`` Adam's, by the same names,
    float32; ``updates`` counts its steps. ``current`` is what they export, the expert after ``step``. ``generator`` is
    the state of the random numbers then, ``order`` the training rows that were shuffled and not yet used. ``kept``
    marks the multipliers that may move, once a sparse expert has chosen them. ``best`` is what would be published now,
    ``best_rewards`` its rewards on the validation rows and ``base_rewards`` those of the base; ``scores_since_best``
    counts towards ``patience``. ``parent`` is the digest of the version that training began from, "" for the base.
    ``course`` says how the steps have gone, and ``anchor`` holds the parameters that reinforcement returns to where it
    has collapsed: those with the best rewards so far. A few-shot search moves no parameters: what it has come to is in
    ``search``, float64, and ``best_step`` is -1 for a mixture that was there before its first step.
    """

    step: int
    updates: int
    parameters: dict[str, Tensor]
    first_moments: dict[str, Tensor]
    second_moments: dict[str, Tensor]
    current: dict[str, Tensor]
    generator: Tensor
    order: list[int]
    kept: dict[str, Tensor]
    best: dict[str, Tensor]
    best_step: int
    best_rewards: list[float]
    base_rewards: list[float]
    scores_since_best: int
    trained_tokens: int
    parent: str = ""
    course: Course = field(default_factory=Course)
    anchor: dict[str, Tensor] = field(default_factory=dict)
    search: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_base(self) -> bool:
        """Whether the best is the base: no step beat it, and neither did the expert that training began from."""
        if self.best_step != 0:
            return False
        return not self.parent or all(bool((z == 1).all()) for z in self.best.values())


TENSORS = ("parameters", "current", "first_moments", "second_moments", "kept", "best", "anchor", "search")
NUMBERS = ("step", "updates", "best_step", "scores_since_best", "trained_tokens")


def write_state(path: Path, state: TrainState, *, spec_digest: str) -> None:
    """Write a state, whole or not at all. ``spec_digest`` names the job that it belongs to."""
    tensors = {f"{group}/{name}": value for group in TENSORS for name, value in getattr(state, group).items()}
    tensors |= {
        "generator": state.generator,
        "order": torch.tensor(state.order, dtype=torch.int64),
        "best_rewards": torch.tensor(state.best_rewards, dtype=torch.float64),
        "base_rewards": torch.tensor(state.base_rewards, dtype=torch.float64),
    }
    description: dict[str, Any] = {name: getattr(state, name) for name in NUMBERS}
    description |= {"format": STATE_FORMAT, "spec_digest": spec_digest, "parent": state.parent}
    description["course"] = {name: repr(value) for name, value in asdict(state.course).items()}
    # Copies, because the best expert may be the present one, and the format takes no tensor twice.
    content = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    replace_file(path, save(content, metadata={"zhub": canonical_json(description).decode()}))


def read_state(path: Path, *, spec_digest: str) -> TrainState:
    """Read a state whose bytes are known to be the ones that were written; nothing in it is executed.

    Raises:
        ArtifactError: not a state, or that of another job.
    """
    raw = path.read_bytes()
    try:
        tensors = load(raw)
        header_size = int.from_bytes(raw[:8], "little")
        description = json.loads(json.loads(raw[8 : 8 + header_size])["__metadata__"]["zhub"])
        if description["format"] != STATE_FORMAT or description["spec_digest"] != spec_digest:
            raise ArtifactError(f"{path.name}: it is not a checkpoint of this job.")
        groups: dict[str, Any] = {group: {} for group in TENSORS}
        for name, value in tensors.items():
            group, slash, key = name.partition("/")
            if slash:
                groups[group][key] = value
        numbers: dict[str, Any] = {name: int(description[name]) for name in NUMBERS}
        return TrainState(
            **groups,
            **numbers,
            generator=tensors["generator"],
            order=tensors["order"].tolist(),
            best_rewards=tensors["best_rewards"].tolist(),
            base_rewards=tensors["base_rewards"].tolist(),
            parent=str(description.get("parent", "")),
            course=_course(description.get("course", {})),
        )
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise ArtifactError(f"{path.name}: not a training state that zhub wrote: {exc}") from exc


def _course(texts: dict[str, str]) -> Course:
    """JSON has no NaN or infinity, so numbers are written as text; ``repr`` gives every float back bit for bit."""
    kinds = {name: type(value) for name, value in asdict(Course()).items()}
    return Course(**{name: kinds[name](text) for name, text in texts.items()})
