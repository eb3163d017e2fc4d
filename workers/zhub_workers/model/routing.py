"""Which expert should answer a prompt, decided from the base's own hidden states, without a first pass of generation.

An expert is known by where its training prompts lie: the mean of their embeddings, and the few directions in which
they differ from each other. Hidden states are anisotropic (a few dimensions dominate every text), so a plain cosine
calls all texts alike. A distance that weighs each direction by how much the expert's own prompts vary along it asks
instead how unusual a prompt would be among them: leaving their subspace counts most. Prompts unusual for every expert
go to the base, and so do those that are more like the prompts of an expert that may not answer: alone, an expert's
reach is what its own held-out prompts need, and says nothing of who begins there.

Sources: one centroid per adapter as LoRAuter (arXiv:2601.21795); Mahalanobis distance against foreign inputs, Lee et
al., arXiv:1807.03888; the covariance by probabilistic PCA (Tipping and Bishop, 1999), because a dataset may have fewer
prompts than the model has dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import pad_right

EMBEDDING_BATCH_ROWS = 64
EXPLAINED_SHARE = 0.95  # of the training prompts' variance is kept by direction, the rest as noise alike in all others
MAX_DIRECTIONS = 32
NOISE_FLOOR = 1e-3  # of the mean variance: a handful of prompts has no noise left, and any other would be foreign
HELD_OUT_QUANTILE = 0.98  # of the held-out prompts' distances
SAME_KIND = 0.5  # between the mean of one and the other; 0.1 to 0.3 where they are, from 0.7 where the words differ
MARGIN = 1.1  # on that quantile: a small dataset's held-out prompts do not show its whole tail


@dataclass(frozen=True)
class Centroid:
    """Where one expert's prompts lie, float32: a Gaussian, wide along ``directions`` and round across them.

    ``mean (d,)``; ``directions (k, d)`` orthonormal rows with ``variances (k,)``; ``noise`` is the variance in every
    other direction. A prompt farther than ``threshold`` is foreign.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    noise: float
    threshold: float


@dataclass(frozen=True)
class Route:
    """The chosen candidate, or None for the base.

    ``score`` is the distance to the nearest candidate in units of its threshold: at most 1 is a match.
    ``scores`` has one entry per candidate, in their order. ``other``: the one of the others that is nearer, with its
    score, so that the base answers though a candidate would match.
    """

    index: int | None
    score: float
    threshold: float
    scores: list[float]
    other: tuple[int, float] | None = None


@torch.no_grad()
def prompt_embeddings(base: BaseModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean of each prompt's last hidden states, ``(n, d)`` float32 on the CPU.

    Call it while the model is the base: an embedding made through an expert lies elsewhere.
    """
    embeddings = torch.empty(len(prompts), base.model.config.get_text_config().hidden_size)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = EMBEDDING_BATCH_ROWS if base.batching.together else 1
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        ids, mask = pad_right([prompts[row] for row in rows], base.pad_id, base.device)
        hidden = _last_hidden_states(base, ids).float() * mask.unsqueeze(-1)
        embeddings[rows] = (hidden.sum(1) / mask.sum(1, keepdim=True)).cpu()
    return embeddings


def _last_hidden_states(base: BaseModel, ids: Tensor) -> Tensor:
    """``(b, t, d)``, without the logits of a whole prompt, which are never needed."""
    body = base.model.base_model
    if body is not base.model:
        hidden: Tensor = body(input_ids=ids, use_cache=False).last_hidden_state
        return hidden
    # An architecture that does not say which of its parts the body is: what its head is given.
    given: list[Tensor] = []

    def keep(_module: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
        given.append(inputs[0])
        return (inputs[0][:, :1],)

    handle = base.model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        body(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return given[0]


def make_centroid(training: Tensor, held_out: Tensor) -> Centroid:
    """Describe an expert by its training prompts, and set its threshold by prompts that it was not described with.

    Args:
        training: embeddings, ``(n, d)``, n at least 1.
        held_out: embeddings of the same dataset's validation prompts, ``(k, d)``, k at least 1.
    """
    mean = training.mean(0)
    _, singular, directions = torch.linalg.svd(training - mean, full_matrices=False)
    variances = singular.square() / len(training)
    total, width = float(variances.sum()), training.shape[1]
    explained = variances.cumsum(0) / max(total, torch.finfo(torch.float32).tiny)
    kept = min(int((explained < EXPLAINED_SHARE).sum()) + 1, MAX_DIRECTIONS, len(variances) - 1)
    # Equal prompts have no spread at all: one is as good a unit as another then.
    noise = max(float(variances[kept:].sum()) / (width - kept), NOISE_FLOOR * total / width) or 1.0
    fitted = Centroid(mean, directions[:kept].contiguous(), variances[:kept] + noise, noise, 1.0)
    reach = torch.quantile(distances(held_out, fitted), HELD_OUT_QUANTILE)
    return replace(fitted, threshold=MARGIN * float(reach.clamp_min(1.0)))


def route(embedding: Tensor, candidates: Sequence[Centroid], others: Sequence[Centroid] = ()) -> Route:
    """Choose the expert whose own prompts are most like this one, or the base if it is foreign to all.

    Args:
        embedding: of the prompt by ``prompt_embeddings``, ``(d,)``.
        others: experts that may not answer, but draw the line where the prompts of another kind begin. One of the
            same kind as the chosen candidate, such as a trial on the same dataset, draws none.
    """
    scores = [score(embedding, candidate) for candidate in candidates]
    if not scores:
        return Route(None, float("inf"), 1.0, [])
    best = min(range(len(scores)), key=scores.__getitem__)
    if scores[best] > 1.0:
        return Route(None, scores[best], 1.0, scores)
    chosen = candidates[best]
    nearer = [(index, near) for index, c in enumerate(others) if (near := score(embedding, c)) < scores[best]]
    foreign = [(index, near) for index, near in nearer if not are_of_one_kind(others[index], chosen)]
    other = min(foreign, key=lambda pair: pair[1], default=None)
    return Route(best if other is None else None, scores[best], 1.0, scores, other)


def score(embedding: Tensor, centroid: Centroid) -> float:
    """The distance of one prompt, ``(d,)``, in units of the expert's threshold: at most 1 is a match."""
    return float(distances(embedding.unsqueeze(0), centroid)[0]) / centroid.threshold


def are_of_one_kind(one: Centroid, other: Centroid) -> bool:
    """Whether the prompts of one lie amid those of the other: equal datasets, a part of one, or a mixture with it.

    The mean of n prompts of an expert's own kind is about 1/√n away from it, so SAME_KIND is the mean of four.
    """
    apart = (float(distances(of.mean.unsqueeze(0), to)[0]) for of, to in ((one, other), (other, one)))
    return min(apart) < SAME_KIND


def distances(embeddings: Tensor, centroid: Centroid) -> Tensor:
    """Mahalanobis distance over the root of the width, ``(n,)``: about 1 for a prompt of the same kind."""
    offset = embeddings - centroid.mean
    along = offset @ centroid.directions.T
    across = (offset.square().sum(1) - along.square().sum(1)).clamp_min(0)
    squared = (along.square() / centroid.variances).sum(1) + across / centroid.noise
    return (squared / embeddings.shape[1]).sqrt()
