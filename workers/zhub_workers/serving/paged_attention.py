"""Attention over keys and values in blocks: tokens of many sequences in one row, none of which sees another's.

The model is called with the tokens of a step as one row. All it does is per token, but for its attention, which this
function does in its place (transformers' attention interface): it puts the new keys and values into their blocks and
lets each sequence attend to its own. No sequence is padded to another's length, and no cache is copied when one comes
or goes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from zhub_workers.serving.blocks import BLOCK_TOKENS

NAME = "zhub_paged"
# What may be read of padding in one layer before sequences attend in another group: reading costs memory traffic, and
# a group costs calls.
PADDING_BYTES = 1 << 20
# What the attention of a token does not depend on, here: nothing is trained, and who sees whom is known.
IGNORED = ("position_ids", "use_cache", "past_key_values", "is_causal", "output_router_logits")


@dataclass(frozen=True)
class Span:
    """Some tokens of one sequence in a step: ``count`` from position ``start`` on, and the blocks up to their end."""

    start: int
    count: int
    blocks: Sequence[int]


class Pages:
    """The keys and values of ``count`` blocks, of each layer ``(count, BLOCK_TOKENS, heads, dim)``, made on first use.

    Memory that nobody has written to yet is promised only, on a CPU.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer whose new ones are ``key`` and ``value``, ``(1, heads, tokens, dim)``."""
        if layer not in self._layers:
            self._layers[layer] = tuple(  # type: ignore[assignment]
                new.new_zeros(self._count, BLOCK_TOKENS, new.shape[1], new.shape[3]) for new in (key, value)
            )
        return self._layers[layer]

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks: what is not finite would be NaN for whoever has them next, times a weight of zero."""
        for layer in self._layers.values():
            for kept in layer:
                kept[list(blocks)] = 0

    @property
    def block_bytes(self) -> int:
        """Of one block in all layers that were read."""
        return sum(kept[0].nbytes for layer in self._layers.values() for kept in layer)

    @property
    def padding_blocks(self) -> int:
        """How many blocks of one layer may be read for nothing."""
        return PADDING_BYTES * len(self._layers) // self.block_bytes if self._layers else 0


@dataclass
class _Group:
    """Sequences that attend together: ``b`` of them with ``t`` new tokens each, and ``w`` positions of blocks.

    Attributes:
        tokens: their columns in the step, ``(b * t,)``; None where they are all of it, in order.
        blocks: ``(b * w / BLOCK_TOKENS,)``.
        positions: of their tokens, ``(b, t, 1)``.
    """

    tokens: Tensor | None
    blocks: Tensor
    positions: Tensor
    width: int
    masks: dict[tuple[int | None, int | None], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, chunk: int | None) -> Tensor:
        """``(b, 1, t, w)``, true where a token sees a position: of itself and before, no further than the layer."""
        if (window, chunk) not in self.masks:
            columns = torch.arange(self.width, device=self.positions.device)
            seen = columns <= self.positions
            if window is not None:
                seen &= columns > self.positions - window
            if chunk is not None:
                seen &= columns // chunk == self.positions // chunk
            self.masks[window, chunk] = seen.unsqueeze(1)
        return self.masks[window, chunk]


@dataclass
class _Step:
    pages: Pages
    slots: Tensor
    groups: list[_Group]
    layer_types: Sequence[str] | None
    window: int | None
    chunk: int | None

    def limits(self, layer: int) -> tuple[int | None, int | None]:
        """How far back a layer sees, and the pieces that it sees nothing beyond."""
        if self.layer_types is None:
            return self.window, None
        match self.layer_types[layer]:
            case "sliding_attention":
                return self.window, None
            case "chunked_attention":
                return None, self.chunk
            case _:
                return None, None


_STEP: ContextVar[_Step] = ContextVar("step")


@contextmanager
def reading(pages: Pages, spans: Sequence[Span], config: Any, device: torch.device) -> Iterator[None]:
    """Let a model whose attention is ``NAME`` read the tokens of these spans, side by side in one row."""
    slots = [
        span.blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        for span in spans
        for position in range(span.start, span.start + span.count)
    ]
    types = getattr(config, "layer_types", None)
    windowed = types is not None or getattr(config, "use_sliding_window", True)
    step = _Step(
        pages,
        torch.tensor(slots, device=device),
        _groups(spans, pages.padding_blocks, device),
        types,
        getattr(config, "sliding_window", None) if windowed else None,
        getattr(config, "attention_chunk_size", None),
    )
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


def _groups(spans: Sequence[Span], padding_blocks: int, device: torch.device) -> list[_Group]:
    columns, first = [], 0
    for span in spans:
        columns.append(range(first, first + span.count))
        first += span.count
    # Each part of a prompt alone; those with one new token together, as long as their lengths waste little.
    together: list[list[int]] = [[index] for index, span in enumerate(spans) if span.count > 1]
    single = [index for index, span in enumerate(spans) if span.count == 1]
    group: list[int] = []
    padding = 0
    for index in sorted(single, key=lambda index: -len(spans[index].blocks)):
        padding += len(spans[group[0]].blocks) - len(spans[index].blocks) if group else 0
        if padding > padding_blocks:
            together.append(group)
            group, padding = [], 0
        group.append(index)
    if len(group) == len(spans):
        return [_group(spans, None, device)]
    if group:
        together.append(group)
    return [
        _group([spans[i] for i in indices], [column for i in indices for column in columns[i]], device)
        for indices in together
    ]


def _group(spans: Sequence[Span], columns: Sequence[int] | None, device: torch.device) -> _Group:
    most = max(len(span.blocks) for span in spans)
    blocks = [[*span.blocks, *[span.blocks[0]] * (most - len(span.blocks))] for span in spans]
    positions = [list(range(span.start, span.start + span.count)) for span in spans]
    return _Group(
        None if columns is None else torch.tensor(columns, device=device),
        torch.tensor(blocks, device=device).flatten(),
        torch.tensor(positions, device=device).unsqueeze(2),
        most * BLOCK_TOKENS,
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions: ``query (1, heads, n, d)`` to ``(1, n, heads, d)``.

    Raises:
        NotImplementedError: the architecture asks for something else that changes what its tokens see.
    """
    unknown = sorted(name for name, value in others.items() if value is not None and name not in IGNORED)
    if unknown or attention_mask is not None or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'a mask of its own'}")
    step = _STEP.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = step.pages.of(layer, key, value)
    for new, kept in ((key, keys), (value, values)):
        kept.view(-1, *kept.shape[2:]).index_copy_(0, step.slots, new[0].transpose(0, 1))
    window, chunk = step.limits(layer)
    queries = query[0].transpose(0, 1)
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    for group in step.groups:
        own = queries if group.tokens is None else queries.index_select(0, group.tokens)
        mask = group.mask(sliding_window or window, chunk)
        answered = _attend(group, own, keys, values, mask, scaling, softcap, s_aux)
        if group.tokens is None:
            out = answered
        else:
            out.index_copy_(0, group.tokens, answered)
    return out.unsqueeze(0), None


def _attend(
    group: _Group,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """``query (b * t, heads, d)`` to ``(b * t, heads, d)``."""
    b, t = mask.shape[0], mask.shape[2]
    heads, shared = query.shape[1], keys.shape[2]
    k, v = (
        kept.index_select(0, group.blocks).view(b, group.width, shared, -1).transpose(1, 2) for kept in (keys, values)
    )
    # The queries that share a head of the keys side by side, as if they were as many tokens: nothing is repeated.
    q, seen = query.reshape(b, t, shared, heads // shared, -1).transpose(1, 2), mask
    if t > 1:
        q, seen = q.transpose(2, 3), mask.repeat(1, 1, heads // shared, 1)
    q = q.reshape(b, shared, heads // shared * t, -1)
    if softcap is None and s_aux is None:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)
    else:
        scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~seen, -torch.inf)
        if s_aux is not None:  # a position that takes attention and gives nothing
            sink = s_aux.view(1, shared, -1, 1).expand(b, -1, -1, t).reshape(b, shared, -1, 1).to(scores.dtype)
            scores = torch.cat([scores, sink], -1)
        y = scores.softmax(-1, dtype=torch.float32).to(v.dtype)[..., : group.width] @ v
    if t > 1:
        y = y.view(b, shared, heads // shared, t, -1).permute(0, 3, 1, 2, 4)
    return y.reshape(b * t, heads, -1)


AttentionInterface.register(NAME, attend)
