"""Log-probabilities of chosen tokens, without a vocabulary of numbers for positions that nobody asks about."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zhub_workers.model.base_model import BaseModel

CHUNK_ELEMENTS = 1 << 20  # of the logits, whose float32 copies live for one chunk only


def logprobs_at(
    base: BaseModel, arguments: dict[str, Any], positions: Tensor, tokens: Tensor, temperature: float
) -> Tensor:
    """Return the log-probabilities of ``tokens`` at ``positions`` of a forward, ``(n,)`` float32, differentiable.

    The head itself is told to read no other position. That works in every architecture, whatever it does to its logits
    afterwards; ``logits_to_keep`` keeps whole columns, and answers do not begin in the same one.

    Args:
        arguments: of the model's forward, over ``(b, t)`` token ids.
        positions: in the flattened batch, ``row * t + column``, ``(n,)`` int64; one may be there several times.
        tokens: ``(n,)`` int64.
    """
    with selecting(base, positions):
        logits = base.model(**arguments).logits
    logprobs: Tensor = _TokenLogprobs.apply(logits, tokens, temperature)  # type: ignore[no-untyped-call]
    return logprobs


@contextmanager
def selecting(base: BaseModel, positions: Tensor) -> Iterator[None]:
    """Let the model's forward give logits ``(n, v)``: those at ``positions`` of the flattened batch."""
    head = base.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (_select(inputs[0], positions),))
    try:
        yield
    finally:
        handle.remove()


def _select(hidden: Tensor, positions: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)


class _TokenLogprobs(torch.autograd.Function):
    """``log_softmax(logits / temperature)`` at one token a row. Kept for the backward: logits, and one number a row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        parts = torch.split(logits, _chunk_rows(logits))
        normaliser = torch.cat([(part.float() / temperature).logsumexp(1) for part in parts])
        ctx.save_for_backward(logits, tokens, normaliser)
        ctx.temperature = temperature
        return logits.gather(1, tokens.unsqueeze(1)).squeeze(1).float() / temperature - normaliser

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, normaliser = ctx.saved_tensors
        scale = (gradient / ctx.temperature).unsqueeze(1)
        below = torch.empty_like(logits)
        rows = _chunk_rows(logits)
        parts = (torch.split(tensor, rows) for tensor in (below, logits, normaliser, scale))
        for out, part, shift, weight in zip(*parts, strict=True):
            probabilities = (part.float() / ctx.temperature).sub_(shift.unsqueeze(1)).exp_()
            out.copy_(probabilities.mul_(-weight))
        return below.scatter_add_(1, tokens.unsqueeze(1), scale.to(below.dtype)), None, None


def _chunk_rows(logits: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // logits.shape[1])
