"""A base model tried before it is relied on: which ways of reading several rows leave each as it is alone.

Everything is measured on the model itself, in a few short forwards on the device that it is loaded on, because no
list of architectures says it: recurrent layers may or may not keep padding out of their state, may forget it when
several tokens follow at once, and a cache may or may not be cut to some of its rows.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zhub.errors import NonFiniteLogitsError
from zhub_workers.model.base_model import BaseModel, Batching
from zhub_workers.model.caches import new_cache, select_rows
from zhub_workers.model.rollout import forward_arguments, pad_left, pad_right

PROMPT_LENGTHS = (13, 7, 7)
EQUAL = (1, 2)  # rows of one length
KEPT = (1, 0, 0)  # of these: one row twice, one moved
STEPS = 3
# Largest difference of logits over their spread. Rounding gives 1e-6 in float32 and 1e-2 in bfloat16; a wrong mask,
# position or state gives 0.1 and more.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE_TOLERANCE = 0.08
SEED = 20259
MAX_TOKEN = 50_000
MAX_TOLD = 160  # characters of a library's error, which may go on for pages

# What an architecture's own code raises when it is used in a way that it was not written for.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError)


@dataclass(frozen=True)
class Reading:
    """What a base does with rows of tokens: how they may be batched, and why not otherwise.

    Attributes:
        batching: the ways that leave each row as it is alone.
        refused: for each other way, by its field of ``Batching``, what was found.
        cached: None if token after token with a cache gives what one forward gives, else what was found instead.
    """

    batching: Batching
    refused: dict[str, str]
    cached: str | None


@torch.no_grad()
def try_reading(base: BaseModel) -> Reading:
    """Read a few short rows in each way that training and serving would, and compare with each row alone.

    Raises:
        NonFiniteLogitsError: the logits of a row alone are NaN or infinite.
        FAILURES: the model cannot read even one row.
    """
    rows = sample_rows(base)
    whole = [_whole(base, [row])[0] for row in rows]
    alone = [_stepwise(base, [row])[0] for row in rows]
    # A model may forbid tokens by minus infinity, but not all of them.
    if not all(bool(logits.amax(-1).isfinite().all()) for logits in [*whole, *alone]):
        raise NonFiniteLogitsError
    everything = torch.cat([logits.flatten() for logits in whole])
    spread = float(everything[everything.isfinite()].std())
    tolerance = tolerance_of(base)

    def found(read: Callable[[], Sequence[Tensor]], expected: Sequence[Tensor]) -> str | None:
        try:
            share = max(difference(a, b) for a, b in zip(read(), expected, strict=True)) / spread
        except FAILURES as exc:
            return told(exc)
        return None if share <= tolerance else f"logits differ by {share:.2g} of their spread"

    equal, equal_alone = [rows[row] for row in EQUAL], [alone[row] for row in EQUAL]
    last = [logits[-STEPS - 1 :] for logits in whole]
    cached = found(lambda: alone, last)
    if cached is not None:
        cached = f"token by token with a cache it gives other probabilities than in one forward: {cached}"
    refused = {
        "together": found(lambda: [*_stepwise(base, equal), *_whole(base, rows)], [*equal_alone, *whole]),
        "padded": found(lambda: _stepwise(base, rows), alone),
        "selected": found(lambda: _stepwise(base, equal, kept=KEPT), [equal_alone[row] for row in KEPT]),
        "continued": found(lambda: _continued(base, rows), last) or _found_in_gradients(base, rows, tolerance),
    }
    reasons = {way: reason for way, reason in refused.items() if reason is not None}
    return Reading(Batching(**{way: way not in reasons for way in refused}), reasons, cached)


def tried(base: BaseModel) -> BaseModel:
    """The base with the batching that it allows."""
    return replace(base, batching=try_reading(base).batching)


def sample_rows(base: BaseModel) -> list[list[int]]:
    """Rows of unequal length, of ordinary tokens: prompts, and the STEPS tokens that follow them."""
    special = {*base.stop_ids, base.pad_id, *base.tokenizer.all_special_ids}
    ordinary = [token for token in range(min(len(base.tokenizer), MAX_TOKEN)) if token not in special]
    room = max(PROMPT_LENGTHS) + STEPS if base.context_length is None else base.context_length
    generator = torch.Generator().manual_seed(SEED)
    return [
        [ordinary[index] for index in torch.randint(len(ordinary), (min(length + STEPS, room),), generator=generator)]
        for length in PROMPT_LENGTHS
    ]


def _whole(base: BaseModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits ``(t, v)`` of each row in one forward without a cache, padded on the right."""
    ids, _ = pad_right(rows, base.pad_id, base.device)
    logits = base.model(input_ids=ids, use_cache=False).logits.float()
    return [logits[index, : len(row)] for index, row in enumerate(rows)]


def _stepwise(base: BaseModel, rows: Sequence[Sequence[int]], kept: Sequence[int] | None = None) -> list[Tensor]:
    """Logits ``(STEPS + 1, v)`` of each row's last tokens, each read by itself after the cache of those before.

    ``kept``: the rows that stay in the batch once the prompts are read.
    """
    ids, mask = pad_left([row[:-STEPS] for row in rows], base.pad_id, base.device)
    following = torch.tensor([row[-STEPS:] for row in rows], device=base.device)
    cache = new_cache(base.model)
    logits = [_read(base, ids, mask, cache)]
    if kept is not None:
        at = torch.tensor(kept, device=base.device)
        select_rows(cache, at)
        logits, mask, following = [logits[0][at]], mask[at], following[at]
    for step in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits.append(_read(base, following[:, step : step + 1], mask, cache))
    return list(torch.cat(logits, 1))


def _continued(base: BaseModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The same, the tokens after the prompts read at once."""
    ids, mask = pad_left([row[:-STEPS] for row in rows], base.pad_id, base.device)
    following = torch.tensor([row[-STEPS:] for row in rows], device=base.device)
    cache = new_cache(base.model)
    first = _read(base, ids, mask, cache)
    select_rows(cache, torch.arange(len(rows), device=base.device))
    mask = torch.cat([mask, mask.new_ones(len(mask), STEPS)], 1)
    rest = base.model(**forward_arguments(base, following, mask), past_key_values=cache, use_cache=True).logits
    return list(torch.cat([first, rest.float()], 1))


def _found_in_gradients(base: BaseModel, rows: list[list[int]], tolerance: float) -> str | None:
    """What is wrong with a backward through what is cached; None if nothing is."""
    try:
        gradient, expected = _gradient(base, rows, _continued), _gradient(base, rows, _whole)
    except FAILURES as exc:
        return told(exc)
    share = difference(gradient, expected) / float(expected.std())
    return None if share <= tolerance else f"gradients differ by {share:.2g} of their spread"


@torch.enable_grad()
def _gradient(
    base: BaseModel, rows: list[list[int]], read: Callable[[BaseModel, list[list[int]]], list[Tensor]]
) -> Tensor:
    """The gradient of the last STEPS + 1 logits of each row by its embedded tokens, summed over them: ``(b, d)``."""
    embedded: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some architectures scale it in place

    handle = base.model.get_input_embeddings().register_forward_hook(keep)
    try:
        logits = torch.stack([of_row[-STEPS - 1 :] for of_row in read(base, rows)])
    finally:
        handle.remove()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(SEED)).to(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), embedded)
    return torch.stack([gradient.float().sum(1) for gradient in gradients]).sum(0)


def _read(base: BaseModel, ids: Tensor, mask: Tensor, cache: object) -> Tensor:
    """Logits of the last column, ``(b, 1, v)``."""
    logits = base.model(**forward_arguments(base, ids, mask), past_key_values=cache, use_cache=True).logits
    return logits[:, -1:].float()  # type: ignore[no-any-return]


def tolerance_of(base: BaseModel) -> float:
    """The largest difference of logits, over their spread, that is rounding."""
    return TOLERANCES.get(base.model.dtype, COARSE_TOLERANCE)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest; tokens that both forbid do not differ, and NaN differs from everything."""
    return float(torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def told(exc: BaseException) -> str:
    """What an error of a library says, in one line."""
    return f"{type(exc).__name__}: {textwrap.shorten(str(exc), MAX_TOLD, placeholder=' …')}"
