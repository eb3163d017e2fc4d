"""Drawing tokens from logits: each row of a batch at its own temperature and top_p, from random numbers of its own."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

NO_TOKEN = -1  # instead of a token that cannot be chosen


class Drawn(Protocol):
    """What a row's tokens are drawn with: ``uniforms`` has a random number for each, none where it is greedy."""

    temperature: float
    top_p: float
    uniforms: Tensor


class Sampler:
    """Draws the next token of every row in the batch, each at its own temperature and top_p."""

    def __init__(self, rows: Sequence[Drawn], device: torch.device) -> None:
        self.greedy = torch.tensor([row.temperature == 0 for row in rows], device=device)
        self.any_greedy, self.all_greedy = bool(self.greedy.any()), bool(self.greedy.all())
        temperatures = [row.temperature or 1.0 for row in rows]
        self.temperature = torch.tensor(temperatures, device=device).unsqueeze(1)
        self.top_p = torch.tensor([row.top_p for row in rows], device=device).unsqueeze(1)
        self.any_top_p = any(row.top_p < 1 for row in rows)
        if not self.all_greedy:
            # Greedy rows have none, so their padding makes the numbers that they do not use.
            self.uniforms = pad_sequence([row.uniforms for row in rows], batch_first=True).to(device)

    def draw(self, logits: Tensor, step: int) -> Tensor:
        """Return token ids ``(b,)`` from logits ``(b, v)``; NO_TOKEN where they are NaN or infinite.

        A model may forbid tokens by minus infinity, but not all of them.
        """
        return torch.where(logits.amax(1).isfinite(), self._tokens(logits, step), NO_TOKEN)

    def _tokens(self, logits: Tensor, step: int) -> Tensor:
        if self.all_greedy:
            return logits.argmax(1)
        probabilities = (logits.float() / self.temperature).softmax(1)
        if self.any_top_p:
            probabilities = _nucleus(probabilities, self.top_p)
        # Float64, so that the sum over a large vocabulary does not drown its rare tokens.
        cumulative = probabilities.cumsum(1, dtype=torch.float64)
        # The step may be past the limit of a finished row that is still in the batch.
        uniform = self.uniforms[:, min(step, self.uniforms.shape[1] - 1)].unsqueeze(1)
        # Scaled to the sum and strictly below it, so a token of probability zero is never drawn.
        drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
        drawn = drawn.clamp_max(logits.shape[1] - 1)
        return torch.where(self.greedy, logits.argmax(1), drawn) if self.any_greedy else drawn


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zero every token outside of the smallest set that reaches ``top_p``; the likeliest token always stays."""
    ordered, order = probabilities.sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    # Before the first there is nothing, which a top_p below the smallest float32 would reach already.
    outside = (before >= top_p) & (before > 0)
    return torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(outside, 0.0))
