"""Answers from a model, and the probability of answers: one path for rollouts and evaluation.

A hand-written loop over transformers' key-value cache and not ``model.generate``, because it can do what training
spends its time on: a prompt that several samples share is read once, and finished rows leave the batch. Nothing of
the model's generation_config is used but its stop tokens: no top_k, no repetition penalty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from zhub.errors import NonFiniteLogitsError, PromptTooLongError
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.caches import new_cache, select_rows
from zhub_workers.model.logprobs import logprobs_at
from zhub_workers.model.sampling import NO_TOKEN, Sampler
from zhub_workers.model.shared_start import saved_tokens, shared_length

FinishReason = Literal["stop", "length"]
Assign = Callable[[Sequence[int]], None]  # AdaptedModel.rows yields one
OwnedPrompt = tuple[int, tuple[int, ...]]
Pair = tuple[int, tuple[int, ...], tuple[int, ...]]  # owner, prompt, completion
# Below it a distribution is its likeliest token, and float32 divides by zero.
MIN_TEMPERATURE = 1e-5
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
    """An answer in the making; its tokens are drawn with ``uniforms``, one random number for each."""

    owner: int
    prompt: tuple[int, ...]
    limit: int
    temperature: float
    top_p: float
    uniforms: Tensor
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, token: int, stop_ids: frozenset[int]) -> None:
        self.token_ids.append(token)
        if token in stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.limit:
            self.finish_reason = "length"


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
    owners: Sequence[int] | None = None,
    assign: Assign | None = None,
) -> list[Completion]:
    """Return one answer to each prompt, from the model in the state that it is in.

    A row depends on its own prompt, seed and settings, not on its batch mates (up to the rounding of padded matrix
    products). Sampling is exact: the row's seed gives one uniform number per token, which the inverse of the
    cumulative distribution maps to a token.

    Args:
        prompts: token ids, each at least one.
        max_new_tokens: at least 1, for all rows or one per row; cut to what fits the context.
        temperature: 0 is greedy, and so is less than MIN_TEMPERATURE; for all rows or one per row.
        seeds: one per row.
        top_p: the smallest set of tokens with this much probability is sampled from; 1 is all.
        on_token: called as (row, token id) for each new token, stop tokens included.
        should_stop: asked before each token; when true, rows that are not done end with reason "length".
        owners, assign: given together, in ``AdaptedModel.rows``: which expert each row follows, and the function that
            is told for the rows of every batch. Equal prompts of one owner are read once.

    Raises:
        PromptTooLongError: a prompt fills the model's context; its ``line`` is the row, from 1.
        NonFiniteLogitsError: the logits of a row are NaN or infinite.
    """
    count = len(prompts)
    limits = _per_row(max_new_tokens, count)
    for index, prompt in enumerate(prompts):
        room = limits[index] if base.context_length is None else base.context_length - len(prompt)
        if room < 1:
            raise PromptTooLongError(index + 1, len(prompt), (base.context_length or 0) - 1)
        limits[index] = min(limits[index], room)
    temperatures = [value if value >= MIN_TEMPERATURE else 0.0 for value in _per_row(temperature, count)]
    top_ps = _per_row(top_p, count)
    uniforms = [_uniforms(seeds[i], limits[i] if temperatures[i] > 0 else 0) for i in range(count)]
    owner_of_row = _per_row(0 if owners is None else owners, count)
    columns = (owner_of_row, map(tuple, prompts), limits, temperatures, top_ps, uniforms)
    rows = [_Row(*settings) for settings in zip(*columns, strict=True)]
    for batch in read_together(base, prompts):
        _decode(base, rows, batch, on_token, should_stop, assign)
    return [_completion(base, row) for row in rows]


def token_logprobs(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    owners: Sequence[int] | None = None,
    assign: Assign | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every token of every completion, from the model in its present state.

    Differentiable where the state is. Equal answers of one owner to one prompt are scored once, gradients too. Prompts
    and answers go through the model in one piece, or each distinct prompt once and the answers on its keys and values,
    whichever reads fewer tokens and the base allows. The log-softmax is float32, and made for scored tokens only.

    Args:
        completions: token ids as they were sampled, stop token included: text is never tokenised again. At least one
            token each.
        temperature: that the tokens were sampled at, so that the scored policy is the one that acted.
        owners, assign: as for ``generate``.

    Returns:
        ``logprobs (b, t)`` float32, zero beyond a completion's end, and ``mask (b, t)`` float32, one on its tokens.
    """
    owned = zip(owners or [0] * len(prompts), prompts, completions, strict=True)
    given = [(owner, tuple(prompt), tuple(completion)) for owner, prompt, completion in owned]
    # By owner, so that the rows of one expert are one block of memory; otherwise as they came.
    pairs = sorted(dict.fromkeys(given), key=lambda pair: pair[0])
    distinct = list(dict.fromkeys((owner, prompt) for owner, prompt, _ in pairs))
    answer = max(len(completion) for _, _, completion in pairs)
    whole_tokens = len(pairs) * max(len(prompt) + len(completion) - 1 for _, prompt, completion in pairs)
    shared_tokens = len(distinct) * max(len(prompt) for _, prompt in distinct) + len(pairs) * (answer - 1)
    shared_tokens -= saved_tokens(distinct, shared_length(base, distinct))
    ways = base.batching
    if not ways.together:
        score = _score_alone
    elif whole_tokens <= shared_tokens or not (ways.padded and ways.selected and ways.continued):
        score = _score_whole
    else:
        score = _score_shared
    logprobs, cells = score(base, pairs, temperature, assign)
    at = tuple(torch.tensor(cells, device=base.device).T)
    table = logprobs.new_zeros(len(pairs), answer)
    mask = table.index_put(at, torch.ones_like(logprobs.detach()))
    where = {pair: row for row, pair in enumerate(pairs)}
    copies = torch.tensor([where[pair] for pair in given], device=base.device)
    return table.index_put(at, logprobs)[copies], mask[copies]


def read_together(base: BaseModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rows of ``prompts`` by the batches that the base may read them in: one, one a length, or each row alone."""
    batches: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        key = row if not base.batching.together else 0 if base.batching.padded else len(prompt)
        batches.setdefault(key, []).append(row)
    return list(batches.values())


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids ``(b, t)`` and mask ``(b, t)``, both int64; answers then begin in one column."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids.to(device), mask.to(device)


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids ``(b, t)`` and mask ``(b, t)``, both int64; without a cache the causal mask keeps padding out."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[*s, *[pad_id] * (width - len(s))] for s in sequences], dtype=torch.int64)
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences], dtype=torch.int64)
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


def _score_whole(
    base: BaseModel, pairs: Sequence[Pair], temperature: float, assign: Assign | None
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Log-probabilities ``(n,)`` of all tokens of all completions, and (row, column) of each."""
    # The last token of a completion predicts nothing that is scored.
    read = [(*prompt, *completion[:-1]) for _, prompt, completion in pairs]
    ids, _ = pad_right(read, base.pad_id, base.device)
    cells = [(row, column) for row, (_, _, completion) in enumerate(pairs) for column in range(len(completion))]
    positions = [row * ids.shape[1] + len(pairs[row][1]) - 1 + column for row, column in cells]
    _follow(assign, [owner for owner, _, _ in pairs])
    arguments = {"input_ids": ids, "use_cache": False}
    return _logprobs(base, arguments, positions, pairs, cells, temperature), cells


def _score_alone(
    base: BaseModel, pairs: Sequence[Pair], temperature: float, assign: Assign | None
) -> tuple[Tensor, list[tuple[int, int]]]:
    """The same, one row after the other."""
    scored = [_score_whole(base, [pair], temperature, assign)[0] for pair in pairs]
    cells = [(row, column) for row, (_, _, completion) in enumerate(pairs) for column in range(len(completion))]
    return torch.cat(scored), cells


def _score_shared(
    base: BaseModel, pairs: Sequence[Pair], temperature: float, assign: Assign | None
) -> tuple[Tensor, list[tuple[int, int]]]:
    """The same, reading each distinct prompt once: the first tokens of all completions, then the rest of each."""
    distinct, which = _unique_prompts([(owner, prompt) for owner, prompt, _ in pairs])
    ids, mask, cache = _read_shared_start(base, distinct, assign)
    cached = {"past_key_values": cache, "use_cache": True}
    firsts = [(row, 0) for row in range(len(pairs))]
    positions = [(prompt + 1) * ids.shape[1] - 1 for prompt in which]
    first = _logprobs(base, forward_arguments(base, ids, mask) | cached, positions, pairs, firsts, temperature)
    ids, rest_mask = pad_right([completion[:-1] for _, _, completion in pairs], base.pad_id, base.device)
    if ids.shape[1] == 0:
        return first, firsts
    copies = torch.tensor(which, device=base.device)
    select_rows(cache, copies)
    _follow(assign, [owner for owner, _, _ in pairs])
    rests = [(row, column) for row, (_, _, completion) in enumerate(pairs) for column in range(1, len(completion))]
    positions = [row * ids.shape[1] + column - 1 for row, column in rests]
    arguments = forward_arguments(base, ids, torch.cat([mask[copies], rest_mask], 1)) | cached
    rest = _logprobs(base, arguments, positions, pairs, rests, temperature)
    return torch.cat([first, rest]), [*firsts, *rests]


def _logprobs(
    base: BaseModel,
    arguments: dict[str, Any],
    positions: Sequence[int],
    pairs: Sequence[Pair],
    cells: Sequence[tuple[int, int]],
    temperature: float,
) -> Tensor:
    tokens = torch.tensor([pairs[row][2][column] for row, column in cells], device=base.device)
    return logprobs_at(base, arguments, torch.tensor(positions, device=base.device), tokens, temperature)


def _follow(assign: Assign | None, owners: Sequence[int]) -> None:
    if assign is not None:
        assign(owners)


def _unique_prompts(owned: Sequence[OwnedPrompt]) -> tuple[list[OwnedPrompt], list[int]]:
    """Return the distinct prompts of each owner, and for each prompt given which of them it is."""
    indices: dict[OwnedPrompt, int] = {}
    which = [indices.setdefault(prompt, len(indices)) for prompt in owned]
    return list(indices), which


def _read_shared_start(
    base: BaseModel, owned: Sequence[OwnedPrompt], assign: Assign | None
) -> tuple[Tensor, Tensor, DynamicCache]:
    """Read what all prompts begin with, once for each owner.

    Returns:
        The tokens of each prompt that are still to be read ``(b, t)``, the mask of all of its tokens, and the cache.
    """
    length = shared_length(base, owned)
    owners = [owner for owner, _ in owned]
    cache = new_cache(base.model)
    ids, mask = pad_left([prompt[length:] for _, prompt in owned], base.pad_id, base.device)
    if length > 0:
        first = {owner: row for row, owner in enumerate(dict.fromkeys(owners))}
        start = torch.tensor(len(first) * [owned[0][1][:length]], device=base.device)
        _follow(assign, list(first))
        _forward(base, start, torch.ones_like(start), cache)
        select_rows(cache, torch.tensor([first[owner] for owner in owners], device=base.device))
        mask = torch.cat([mask.new_ones(len(owned), length), mask], 1)
    _follow(assign, owners)
    return ids, mask, cache


def _decode(
    base: BaseModel,
    rows: Sequence[_Row],
    batch: list[int],
    on_token: Callable[[int, int], None] | None,
    should_stop: Callable[[], bool] | None,
    assign: Assign | None,
) -> None:
    """Add tokens to each row of a batch until it is done. ``batch`` has the indices of those that are read together."""
    # Rows of one owner side by side: their layers' inputs are then one block of memory.
    batch = sorted(batch, key=lambda index: rows[index].owner)
    logits, mask, cache = _read_prompts(base, [rows[index] for index in batch], assign)
    sampler = Sampler([rows[index] for index in batch], base.device)
    for step in range(max(rows[index].limit for index in batch)):
        if should_stop is not None and should_stop():
            return
        tokens = sampler.draw(logits, step)
        for index, token in zip(batch, tokens.tolist(), strict=True):
            row = rows[index]
            if row.finish_reason is not None:
                continue
            if token == NO_TOKEN:
                raise NonFiniteLogitsError
            row.add(token, base.stop_ids)
            if on_token is not None:
                on_token(index, token)
        alive = [position for position, index in enumerate(batch) if rows[index].finish_reason is None]
        if not alive:
            return
        if base.batching.selected and len(batch) - len(alive) >= max(1, DROP_SHARE * len(batch)):
            kept = torch.tensor(alive, device=base.device)
            select_rows(cache, kept)
            tokens, mask = tokens[kept], mask[kept]
            batch = [batch[position] for position in alive]
            sampler = Sampler([rows[index] for index in batch], base.device)
            _follow(assign, [rows[index].owner for index in batch])
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], 1)
        logits = _forward(base, tokens.clamp_min(0).unsqueeze(1), mask, cache)[:, -1]


def _read_prompts(base: BaseModel, rows: Sequence[_Row], assign: Assign | None) -> tuple[Tensor, Tensor, DynamicCache]:
    """Read each distinct prompt of an owner once, where rows can be copied.

    Returns:
        Logits of each row's first token ``(b, v)``, the mask of its prompt ``(b, t)``, and its keys and values.
    """
    owned = [(row.owner, row.prompt) for row in rows]
    distinct, which = _unique_prompts(owned)
    if not base.batching.selected:
        distinct, which = owned, list(range(len(rows)))
    ids, mask, cache = _read_shared_start(base, distinct, assign)
    logits = _forward(base, ids, mask, cache)[:, -1]
    if len(distinct) != len(rows):
        copies = torch.tensor(which, device=base.device)
        select_rows(cache, copies)
        logits, mask = logits[copies], mask[copies]
        _follow(assign, [row.owner for row in rows])
    return logits, mask, cache


def _forward(base: BaseModel, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Logits of at least the last column, ``(b, t, v)``, with the cache grown by ``ids``."""
    arguments = forward_arguments(base, ids, mask)
    if "logits_to_keep" in base.forward_arguments:
        arguments["logits_to_keep"] = 1
    logits: Tensor = base.model(**arguments, past_key_values=cache, use_cache=True).logits
    return logits


def _uniforms(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _per_row(value: Any, count: int) -> list[Any]:
    if isinstance(value, int | float):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} values for {count} rows")
    return list(value)


def _completion(base: BaseModel, row: _Row) -> Completion:
    ended = row.finish_reason == "stop"
    text = base.tokenizer.decode(row.token_ids[:-1] if ended else row.token_ids, skip_special_tokens=True)
    return Completion(row.token_ids, text, row.finish_reason or "length", len(row.prompt))
