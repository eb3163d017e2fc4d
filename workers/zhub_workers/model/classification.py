"""Which of a few labels the base gives to a prompt, by constrained decoding: no token outside of a label is possible.

A label's probability is that of greedy or sampled decoding in which only tokens of labels are allowed: at each token
where the labels part, the base's probabilities of those that are possible there, made to sum to one. So a token that
all remaining labels have costs nothing, and a long label is no worse than a short one, which it is by the sum of its
log-probabilities. The labels are scored as answers to one prompt, which is read once.
"""

import math
from collections.abc import Sequence

import torch

from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import Assign, token_logprobs


@torch.no_grad()
def label_probabilities(
    base: BaseModel, prompt: Sequence[int], labels: Sequence[Sequence[int]], *, assign: Assign | None = None
) -> list[float]:
    """The probability of each label as the answer to a prompt; they sum to one.

    Call it while the model is the base, or follows one expert.

    Args:
        prompt: token ids, up to where the answer begins.
        labels: token ids, distinct, at least one label of at least one token.
        assign: in a state of rows, the function that is told which change each follows: all the first.
    """
    # Closed, because one label may begin another: then the base chooses between going on and ending.
    closed = [(*label, base.eos_id) for label in labels]
    owners = None if assign is None else [0] * len(closed)
    scored, _mask = token_logprobs(base, [prompt] * len(closed), closed, owners=owners, assign=assign)
    logprobs = scored.tolist()
    return [math.exp(_constrained(label, closed, logprobs)) for label in closed]


def _constrained(label: tuple[int, ...], labels: Sequence[tuple[int, ...]], logprobs: Sequence[list[float]]) -> float:
    """The log-probability of a label where only tokens of labels are possible."""
    total = 0.0
    for position, token in enumerate(label):
        possible: dict[int, float] = {}
        for other, scores in zip(labels, logprobs, strict=True):
            if other[:position] == label[:position]:
                possible[other[position]] = scores[position]
        highest = max(possible.values())
        normaliser = highest + math.log(sum(math.exp(score - highest) for score in possible.values()))
        total += possible[token] - normaliser
    return total
