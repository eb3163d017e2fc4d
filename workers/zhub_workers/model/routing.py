"""Which expert should answer a prompt, decided from the base's own hidden states, without a first pass of generation.

An expert is known by where its training prompts lie: the mean of their embeddings, and the few directions in which
they differ from each other. Hidden states are anisotropic (a few dimensions dominate every text), so a plain cosine
calls all texts alike. A distance that weighs each direction by how much the expert's own prompts vary along it asks
instead how unusual a prompt would be among them: leaving their subspace counts most. Prompts unusual for every expert
go to the base.

Sources: one centroid per adapter as LoRAuter (arXiv:2601.21795); Mahalanobis distance against foreign inputs, Lee et
al., arXiv:1807.03888; the covariance by probabilistic PCA (Tipping and Bishop, 1999), because a dataset may have fewer
prompts than the model has dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import forward_arguments, pad_left

EMBEDDING_BATCH_ROWS = 64
EXPLAINED_SHARE = 0.95  # of the training prompts' variance is kept by direction, the rest as noise alike in all others
MAX_DIRECTIONS = 32
NOISE_FLOOR = 1e-3  # of the mean variance: a handful of prompts has no noise left, and any other would be foreign
HELD_OUT_QUANTILE = 0.98  # of the held-out prompts' distances
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
    ``scores`` has one entry per candidate, in their order.
    """

    index: int | None
    score: float
    threshold: float
    scores: list[float]


@torch.no_grad()
def prompt_embeddings(base: BaseModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean of each prompt's last hidden states, ``(n, d)`` float32 on the CPU.

    Call it while the model is the base: an embedding made through an expert lies elsewhere.
    """
    embeddings = torch.empty(len(prompts), base.model.config.get_text_config().hidden_size)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), EMBEDDING_BATCH_ROWS):
        rows = order[start : start + EMBEDDING_BATCH_ROWS]
        ids, mask = pad_left([prompts[row] for row in rows], base.pad_id, base.device)
        # The body without the output embedding: the logits of a whole prompt are never needed.
        out = base.model.base_model(**forward_arguments(base, ids, mask), use_cache=False)
        hidden = out.last_hidden_state.float() * mask.unsqueeze(-1)
        embeddings[rows] = (hidden.sum(1) / mask.sum(1, keepdim=True)).cpu()
    return embeddings


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


def route(embedding: Tensor, candidates: Sequence[Centroid]) -> Route:
    """Choose the expert whose own prompts are most like this one, or the base if it is foreign to all.

    Args:
        embedding: of the prompt by ``prompt_embeddings``, ``(d,)``.
    """
    scores = [float(distances(embedding.unsqueeze(0), c)[0]) / c.threshold for c in candidates]
    if not scores:
        return Route(None, float("inf"), 1.0, [])
    best = min(range(len(scores)), key=scores.__getitem__)
    return Route(best if scores[best] <= 1.0 else None, scores[best], 1.0, scores)


def distances(embeddings: Tensor, centroid: Centroid) -> Tensor:
    """Mahalanobis distance over the root of the width, ``(n,)``: about 1 for a prompt of the same kind."""
    offset = embeddings - centroid.mean
    along = offset @ centroid.directions.T
    across = (offset.square().sum(1) - along.square().sum(1)).clamp_min(0)
    squared = (along.square() / centroid.variances).sum(1) + across / centroid.noise
    return (squared / embeddings.shape[1]).sqrt()
