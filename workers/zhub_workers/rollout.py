"""Answers from a model, and the probability of answers: one path for rollouts, evaluation and serving.

A hand-written loop over transformers' key-value cache and not ``model.generate``, because it can do what training
spends its time on: a prompt that several samples share is read once, and finished rows leave the batch. Nothing of
the model's generation_config is used but its stop tokens: no top_k, no repetition penalty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from zhub.errors import PromptTooLongError
from zhub_workers.base_model import BaseModel

FinishReason = Literal["stop", "length"]
DROP_SHARE = 0.125  # finished rows leave the batch once they are this share of it; each time copies the cache


@dataclass(frozen=True)
class Completion:
    """One answer. ``token_ids`` includes the stop token if there is one; ``text`` does not."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int


@dataclass
class _Row:
    """A row on its way: ``uniforms`` are the random numbers that its tokens are drawn with, one a token."""

    limit: int
    temperature: float
    top_p: float
    uniforms: Tensor
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@torch.no_grad()
def generate(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float | Sequence[float],
    seeds: Sequence[int],
    top_p: float | Sequence[float] = 1.0,
    on_token: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    keep_rows: Callable[[Tensor], None] | None = None,
) -> list[Completion]:
    """Return one answer to each prompt, from the model in the state that it is in.

    A row depends on its own prompt, seed and settings, not on its batch mates (up to the rounding of padded matrix
    products). Sampling is exact: the row's seed gives one uniform number per token, which the inverse of the
    cumulative distribution maps to a token.

    Args:
        prompts: token ids, each at least one.
        max_new_tokens: at least 1, for all rows or one per row; cut to what fits the context.
        temperature: 0 is greedy; for all rows or one per row.
        seeds: one per row.
        top_p: the smallest set of tokens with this much probability is sampled from; 1 is all.
        on_token: called as (row, token id) for each new token, stop tokens included.
        should_stop: asked before each token; when true, rows that are not done end with reason "length".
        keep_rows: given when rows have their own experts (``AdaptedModel.rows``): told which rows stay in the batch.

    Raises:
        PromptTooLongError: a prompt fills the model's context; its ``line`` is the row, from 1.
    """
    count = len(prompts)
    limits = _per_row(max_new_tokens, count)
    for index, prompt in enumerate(prompts):
        room = limits[index] if base.context_length is None else base.context_length - len(prompt)
        if room < 1:
            raise PromptTooLongError(index + 1, len(prompt), (base.context_length or 0) - 1)
        limits[index] = min(limits[index], room)
    temperatures, top_ps = _per_row(temperature, count), _per_row(top_p, count)
    uniforms = [_uniforms(seeds[i], limits[i] if temperatures[i] > 0 else 0) for i in range(count)]
    rows = [_Row(*settings) for settings in zip(limits, temperatures, top_ps, uniforms, strict=True)]
    if count:
        _decode(base, prompts, rows, on_token, should_stop, keep_rows)
    return [_completion(base, row, len(prompt)) for row, prompt in zip(rows, prompts, strict=True)]


def token_logprobs(
    base: BaseModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every token of every completion, from the model in its present state.

    Differentiable where the state is. Equal prompts are read once and their keys and values shared, and equal answers
    to one prompt are scored once, gradients too: with eight short answers to a prompt that is most of the work. The
    log-softmax is float32.

    Args:
        completions: token ids as they were sampled, stop token included: text is never tokenised again.
        temperature: that the tokens were sampled at, so that the scored policy is the one that acted.

    Returns:
        ``logprobs (b, t)`` float32, zero beyond a completion's end, and ``mask (b, t)`` float32, one on its tokens.
    """
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    pairs = zip(prompts, completions, strict=True)
    copies = [places.setdefault((tuple(prompt), tuple(completion)), len(places)) for prompt, completion in pairs]
    ids, mask, which = _unique_prompts(base, [prompt for prompt, _ in places])
    cache = DynamicCache(config=base.model.config)
    first = _forward(base, ids, mask, cache, keep=1)[:, -1]
    cache.batch_select_indices(which)
    tokens, token_mask = _pad_right([completion for _, completion in places], base.pad_id, base.device)
    logits = first[which].unsqueeze(1)
    if tokens.shape[1] > 1:
        # The last token of a completion predicts nothing that is scored.
        seen = torch.cat([mask[which], token_mask[:, :-1].long()], 1)
        rest = _forward(base, tokens[:, :-1], seen, cache, keep=0)
        logits = torch.cat([logits, rest], 1)
    logits = logits.float() / temperature
    chosen = logits.gather(2, tokens.unsqueeze(2)).squeeze(2)
    logprobs = (chosen - logits.logsumexp(2)) * token_mask
    return logprobs[copies], token_mask[copies]


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids ``(b, t)`` and mask ``(b, t)``, both int64; answers then begin in one column."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids.to(device), mask.to(device)


def forward_arguments(base: BaseModel, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Arguments of a forward over ``ids``, the last columns of what ``mask`` covers.

    Positions count a row's own tokens, so padding on the left does not move it; architectures that take no
    position_ids derive them from the mask.
    """
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in base.forward_arguments:
        arguments["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    return arguments


def _decode(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    rows: list[_Row],
    on_token: Callable[[int, int], None] | None,
    should_stop: Callable[[], bool] | None,
    keep_rows: Callable[[Tensor], None] | None,
) -> None:
    if keep_rows is None:
        ids, mask, which = _unique_prompts(base, prompts)
    else:
        # Equal prompts may follow different experts here, so their keys and values differ.
        ids, mask = pad_left(prompts, base.pad_id, base.device)
        which = torch.arange(len(prompts), device=base.device)
    cache = DynamicCache(config=base.model.config)
    logits = _forward(base, ids, mask, cache, keep=1)[:, -1]
    if logits.shape[0] != len(rows):
        cache.batch_select_indices(which)
        logits, mask = logits[which], mask[which]
    batch = list(range(len(rows)))
    sampler = _Sampler([rows[index] for index in batch], base.device)
    for step in range(max(row.limit for row in rows)):
        if should_stop is not None and should_stop():
            return
        tokens = sampler.draw(logits, step)
        for index, token in zip(batch, tokens.tolist(), strict=True):
            row = rows[index]
            if row.finish_reason is not None:
                continue
            row.token_ids.append(token)
            if token in base.stop_ids:
                row.finish_reason = "stop"
            elif len(row.token_ids) == row.limit:
                row.finish_reason = "length"
            if on_token is not None:
                on_token(index, token)
        alive = [place for place, index in enumerate(batch) if rows[index].finish_reason is None]
        if not alive:
            return
        if len(batch) - len(alive) >= max(1, DROP_SHARE * len(batch)):
            kept = torch.tensor(alive, device=base.device)
            cache.batch_select_indices(kept)
            tokens, mask = tokens[kept], mask[kept]
            batch = [batch[place] for place in alive]
            sampler = _Sampler([rows[index] for index in batch], base.device)
            if keep_rows is not None:
                keep_rows(kept)
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], 1)
        logits = _forward(base, tokens.unsqueeze(1), mask, cache, keep=1)[:, -1]


class _Sampler:
    """Draws the next token of every row in the batch, each at its own temperature and top_p."""

    def __init__(self, rows: Sequence[_Row], device: torch.device) -> None:
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
        """Return token ids ``(b,)`` from logits ``(b, v)``."""
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
    return torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(before >= top_p, 0.0))


def _forward(base: BaseModel, ids: Tensor, mask: Tensor, cache: DynamicCache, *, keep: int) -> Tensor:
    """Logits ``(b, t, v)`` of the last ``keep`` columns (0: all), with the cache grown by ``ids``."""
    arguments = forward_arguments(base, ids, mask)
    if keep and "logits_to_keep" in base.forward_arguments:
        arguments["logits_to_keep"] = keep
    logits: Tensor = base.model(**arguments, past_key_values=cache, use_cache=True).logits
    return logits


def _unique_prompts(base: BaseModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and mask of the distinct prompts, and for each prompt which of them it is, ``(b,)``."""
    places: dict[tuple[int, ...], int] = {}
    which = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    ids, mask = pad_left(list(places), base.pad_id, base.device)
    return ids, mask, torch.tensor(which, device=base.device)


def _pad_right(completions: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(completion) for completion in completions)
    tokens = torch.tensor([[*c, *[pad_id] * (width - len(c))] for c in completions])
    mask = torch.tensor([[1.0] * len(c) + [0.0] * (width - len(c)) for c in completions])
    return tokens.to(device), mask.to(device)


def _uniforms(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _per_row(value: Any, count: int) -> list[Any]:
    if isinstance(value, int | float):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} values for {count} rows")
    return list(value)


def _completion(base: BaseModel, row: _Row, prompt_tokens: int) -> Completion:
    ended = row.finish_reason == "stop"
    text = base.tokenizer.decode(row.token_ids[:-1] if ended else row.token_ids, skip_special_tokens=True)
    return Completion(row.token_ids, text, row.finish_reason or "length", prompt_tokens)
