"""Which existing experts a new one may begin from: those of datasets that look alike, each with something of its own.

An expert of the same basis is a point in the space that training searches. Sources: the adapter itself as the embedding
of its task, and transfer from the most similar one, SPoT (Vu et al., arXiv:2110.07904); priors for similar future
tasks, arXiv:2501.06252, §5. Likeness of datasets is that of prompts, as routing measures it
(``zhub_workers.model.routing``): it needs no training. What is on the shortlist is then measured on validation rows,
and only the best of it is used.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zhub.datasets.splits import Split
from zhub.errors import TrainingError
from zhub.recipes import FewShotHyperparameters
from zhub_workers.evaluation.grading import EncodedRow
from zhub_workers.model.routing import Centroid, distances
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.state import TrainState

SHORTLIST = 3  # each costs one score of the validation rows
DOUBLE = 0.9  # z-cosine from which two experts are one for this purpose, such as two of one dataset


@dataclass(frozen=True)
class Start:
    """A version that training may begin from, with the manifest's ``digest``.

    ``centroid``: which prompts are its own; None where nobody knows.
    """

    name: str
    digest: str
    z: Mapping[str, Tensor]
    centroid: Centroid | None


@dataclass(frozen=True)
class Beginning:
    """What training begins from, and its rewards on the validation rows."""

    start: Start
    rewards: list[float]


def choose(
    job: TrainingJob, starts: Sequence[Start], base: TrainState, rows: Mapping[Split, Sequence[EncodedRow]]
) -> Beginning | None:
    """Choose what to begin from: the only start, or with ``warm_start`` the best of the nearest, if it beats the base.

    None means the base. ``base`` is the state of the base, whose parameters and rewards are compared with.

    Raises:
        TrainingError: the only start changes matrices that training does not move.
    """
    nearest = not isinstance(job.hyper, FewShotHyperparameters) and job.hyper.warm_start == "nearest"

    def measured(start: Start) -> Beginning:
        rewards = job.score(job.member.adapter.imported(start.z), rows["validation"])
        message = f"{start.name} scores {statistics.fmean(rewards):.3f} on these validation rows."
        job.on_event("info", message, None)
        return Beginning(start, rewards)

    if not starts and not nearest:
        return None
    fitting = [start for start in starts if start.z.keys() <= base.parameters.keys()]
    if not nearest:
        if not fitting:
            raise TrainingError(
                f"'{starts[0].name}' changes matrices that this job's targets and layers leave out. "
                "Use targets 'all' and no layers."
            )
        return measured(fitting[0])
    near = [measured(start) for start in shortlist(job.embeddings(rows["train"]), fitting)]
    best = max(near, key=lambda beginning: statistics.fmean(beginning.rewards), default=None)
    if best is None or statistics.fmean(best.rewards) <= statistics.fmean(base.base_rewards):
        why = "no expert of the project has prompts like these" if best is None else "none beats it"
        job.on_event("info", f"Warm start: training begins from the base, because {why}.", None)
        return None
    job.on_event("info", f"Warm start: training begins from {best.start.name}.", None)
    return best


def shortlist(embeddings: Tensor, starts: Sequence[Start]) -> list[Start]:
    """At most SHORTLIST starts whose prompts look like these, the nearest first, none a double of a nearer one.

    A dataset looks alike when half of its prompts or more would be routed to the expert.

    Args:
        embeddings: of the new dataset's prompts, ``(n, d)``.
    """
    reach = [
        (float(distances(embeddings, start.centroid).median()) / start.centroid.threshold, start)
        for start in starts
        if start.centroid is not None
    ]
    listed: list[Start] = []
    for near, start in sorted(reach, key=lambda pair: pair[0]):
        if near <= 1 and len(listed) < SHORTLIST and all(z_cosine(start.z, other.z) < DOUBLE for other in listed):
            listed.append(start)
    return listed


def z_cosine(z: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Cosine of two experts' ``z - 1``; a matrix that only one of them has is unchanged by the other."""
    dot = sum(float(((z[name] - 1) * (other[name] - 1)).sum()) for name in z.keys() & other.keys())
    norms = [math.sqrt(sum(float((values - 1).square().sum()) for values in of.values())) for of in (z, other)]
    return dot / max(norms[0] * norms[1], torch.finfo(torch.float32).tiny)
