"""The compute of training: answers, log-probabilities and gradients, for one job or for several on one base.

Requests of several jobs are answered together, each row following its own job's expert, so that the base's matrices
are read once for all and small jobs fill the device between them. A request alone gets its expert merged into the
weights. Either way a request is cut into pieces that fit the memory, and into smaller ones where they do not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zhub.errors import OutOfMemoryError
from zhub_workers.compute.losses import Loss
from zhub_workers.model.adapters import Adapter, SvfAdapter, Values
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import Assign, Completion, generate, token_logprobs
from zhub_workers.model.routing import prompt_embeddings

ACTIVATION_BUDGET_BYTES = 2 << 30  # of one micro-batch, where the device does not say what it has
CACHE_BUDGET_BYTES = 4 << 30  # of the keys and values of one batch of answers, likewise
MAX_GENERATION_ROWS = 4096

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)

ShouldStop = Callable[[], bool]
Tokens = Sequence[Sequence[int]]
Place = tuple[int, int]  # which request, and which of its rows


@dataclass(frozen=True)
class Request:
    """What a job asks for: something about ``prompts`` by the model that follows ``values``, None for the base."""

    adapter: Adapter
    values: Values | None
    prompts: Tokens
    should_stop: ShouldStop

    def together_with(self) -> object:
        """Equal for requests that one forward can answer; requests that stand alone give something unequal to all."""
        return id(self.adapter.model) if isinstance(self.adapter, SvfAdapter) else id(self)


@dataclass(frozen=True)
class Generate(Request):
    """One answer to each prompt."""

    max_new_tokens: int
    temperature: float
    seeds: Sequence[int]


@dataclass(frozen=True)
class Logprobs(Request):
    """The log-probability of every token of every answer, ``(t_i,)`` each, float32 on the CPU."""

    answers: Tokens
    temperature: float
    token_limit: int

    def together_with(self) -> object:
        return super().together_with(), self.temperature


@dataclass(frozen=True)
class Differentiate(Logprobs):
    """The gradient of a loss by the values."""

    loss: Loss


@dataclass(frozen=True)
class Embed(Request):
    """Where the base sees the prompts, see ``prompt_embeddings``."""

    def together_with(self) -> object:
        return id(self)


@dataclass(frozen=True)
class Gradient:
    """The gradient of a step's loss by the values, float32, with the loss and what it reports.

    ``token_limit`` is set where memory ran out: what a micro-batch may hold from now on.
    """

    values: dict[str, Tensor]
    loss: float
    sums: dict[str, float]
    token_limit: int | None = None


def answer(requests: Sequence[Request]) -> list[Any]:
    """Answer requests of one kind, together where they can be: a result or the exception of each, in their order."""
    groups: dict[object, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.together_with(), []).append(index)
    outcomes: list[Any] = [None] * len(requests)
    for indices in groups.values():
        for index, outcome in zip(indices, _answer([requests[i] for i in indices]), strict=True):
            outcomes[index] = outcome
    return outcomes


def default_token_limit(base: BaseModel) -> int:
    """How many tokens may go through forward and backward at once.

    A layer keeps 34 bytes per token and unit of width in 16 bit (Korthikanti et al., arXiv:2205.05198, less the
    attention scores, which are not kept); the logits three float32 copies.
    """
    config = base.model.config.get_text_config()
    wide = base.model.dtype.itemsize / 2
    per_token = 34 * wide * config.hidden_size * config.num_hidden_layers + 12 * config.vocab_size
    return max(1, int(_memory(base, ACTIVATION_BUDGET_BYTES) / per_token))


def _answer(requests: Sequence[Any]) -> list[Any]:
    """Answer requests in one forward; when that fails, each alone, so that an error is its own request's."""
    try:
        match requests[0]:
            case Generate():
                return _generate(requests)
            case Differentiate():
                return _differentiate(requests)
            case Logprobs():
                return _logprobs(requests)
            case _:
                return [prompt_embeddings(requests[0].adapter.base, requests[0].prompts)]
    except Exception as exc:
        if len(requests) == 1:
            return [exc]
    return [outcome for request in requests for outcome in _answer([request])]


@torch.no_grad()
def _generate(requests: Sequence[Generate]) -> list[list[Completion]]:
    base = requests[0].adapter.base
    places = [(owner, row) for owner, request in enumerate(requests) for row in range(len(request.prompts))]
    longest = max(len(requests[owner].prompts[row]) + requests[owner].max_new_tokens for owner, row in places)
    size = _generation_rows(base, min(longest, base.context_length or longest))
    places.sort(key=lambda place: len(requests[place[0]].prompts[place[1]]))
    answers: dict[Place, Completion] = {}
    with _following(requests, gradient=False) as (_, assign):
        waiting = [places[start : start + size] for start in range(0, len(places), size)]
        while waiting:
            part = waiting.pop(0)
            owned = [requests[owner] for owner, _ in part]
            try:
                completions = generate(
                    base,
                    [requests[owner].prompts[row] for owner, row in part],
                    max_new_tokens=[request.max_new_tokens for request in owned],
                    temperature=[request.temperature for request in owned],
                    seeds=[requests[owner].seeds[row] for owner, row in part],
                    should_stop=partial(_all_stop, requests, part),
                    owners=[owner for owner, _ in part] if assign else None,
                    assign=assign,
                )
            except OUT_OF_MEMORY as exc:
                waiting = [*_halves(part, 1, exc), *waiting]
                continue
            answers.update(zip(part, completions, strict=True))
    return [[answers[owner, row] for row in range(len(r.prompts))] for owner, r in enumerate(requests)]


@torch.no_grad()
def _logprobs(requests: Sequence[Logprobs]) -> list[list[Tensor]]:
    found: dict[Place, Tensor] = {}
    with _following(requests, gradient=False) as (_, assign):
        waiting = list(_micro_batches(requests, [1] * len(requests)))
        while waiting:
            part = waiting.pop(0)
            if _all_stop(requests, part):
                found.update({(owner, row): torch.zeros(len(requests[owner].answers[row])) for owner, row in part})
                continue
            try:
                logprobs, _ = _score(requests, part, assign)
            except OUT_OF_MEMORY as exc:
                waiting = [*_halves(part, 1, exc), *waiting]
                continue
            for place, values in zip(part, logprobs.cpu(), strict=True):
                found[place] = values[: len(requests[place[0]].answers[place[1]])]
    return [[found[owner, row] for row in range(len(r.prompts))] for owner, r in enumerate(requests)]


def _differentiate(requests: Sequence[Differentiate]) -> list[Gradient]:
    gradients = [{name: torch.zeros_like(value) for name, value in (r.values or {}).items()} for r in requests]
    losses = [0.0] * len(requests)
    sums: list[dict[str, float]] = [{} for _ in requests]
    limit: int | None = None
    unit_rows = [request.loss.rows_per_unit for request in requests]
    with _following(requests, gradient=True) as (leaves, assign):
        waiting = list(_micro_batches(requests, unit_rows))
        while waiting:
            part = waiting.pop(0)
            if _all_stop(requests, part):
                continue
            try:
                logprobs, mask = _score(requests, part, assign)
                total = torch.zeros((), device=logprobs.device)
                for owner in sorted({owner for owner, _ in part}):
                    at = [place for place, (other, _) in enumerate(part) if other == owner]
                    loss, reported = requests[owner].loss(logprobs[at], mask[at], [part[place][1] for place in at])
                    total = total + loss
                    losses[owner] += loss.item()
                    for name, value in reported.items():
                        sums[owner][name] = sums[owner].get(name, 0.0) + value.item()
                # Not backward(): when memory runs out half-way, nothing of this part has been added anywhere.
                found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            except OUT_OF_MEMORY as exc:
                halves = _halves(part, max(unit_rows), exc)
                limit = max(_token_count(requests, half) for half in halves)
                waiting = [*halves, *waiting]
                continue
            for name, gradient in zip(leaves, found, strict=True):
                for owner, own in enumerate(gradients):
                    if gradient is not None and name in own:
                        own[name] += gradient if assign is None else gradient[owner]
    return [Gradient(*made, limit) for made in zip(gradients, losses, sums, strict=True)]


@contextmanager
def _following(requests: Sequence[Request], *, gradient: bool) -> Iterator[tuple[dict[str, Tensor], Assign | None]]:
    """Put the model in the state of these requests, and the base back at the end.

    Yields the tensors that gradients reach, and, where several requests go together, the function that says which of
    them each row follows: their tensors then have a leading axis of requests.
    """
    first = requests[0]
    adapter, values = first.adapter, first.values
    if len(requests) == 1:
        if values is None:
            yield {}, None
            return
        if not gradient:
            with adapter.merged(values):
                yield {}, None
            return
        leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
        with adapter.training(leaves):
            yield leaves, None
        return
    assert isinstance(adapter, SvfAdapter)  # nothing else goes together
    names = sorted({name for request in requests for name in request.values or {}})
    zero = adapter.model.zero_delta(names)
    leaves = {
        name: torch.stack([(request.values or zero).get(name, zero[name]).detach() for request in requests])
        for name in names
    }
    with adapter.model.rows({name: leaf.requires_grad_(gradient) for name, leaf in leaves.items()}) as assign:
        yield leaves, assign


def _all_stop(requests: Sequence[Request], part: Sequence[Place]) -> bool:
    """Whether nobody waits for a piece of work any more; each is asked, because asking shows progress."""
    return all([requests[owner].should_stop() for owner in {owner for owner, _ in part}])


def _score(requests: Sequence[Logprobs], part: Sequence[Place], assign: Assign | None) -> tuple[Tensor, Tensor]:
    first = requests[0]
    return token_logprobs(
        first.adapter.base,
        [requests[owner].prompts[row] for owner, row in part],
        [requests[owner].answers[row] for owner, row in part],
        temperature=first.temperature,
        owners=[owner for owner, _ in part] if assign else None,
        assign=assign,
    )


def _micro_batches(requests: Sequence[Logprobs], unit_rows: Sequence[int]) -> Iterator[list[Place]]:
    """Cut the rows of all requests into pieces that fit, rows of like length and of one prompt together."""
    limit = min(request.token_limit for request in requests)
    units = [
        [(owner, first + place) for place in range(unit_rows[owner])]
        for owner, request in enumerate(requests)
        for first in range(0, len(request.prompts), unit_rows[owner])
    ]

    def lengths(unit: list[Place]) -> tuple[int, Sequence[int], int]:
        owner, row = unit[0]
        request = requests[owner]
        return len(request.prompts[row]), request.prompts[row], len(request.answers[row])

    part: list[Place] = []
    for unit in sorted(units, key=lengths):
        if part and _token_count(requests, [*part, *unit]) > limit:
            yield part
            part = []
        part = [*part, *unit]
    if part:
        yield part


def _token_count(requests: Sequence[Logprobs], part: Sequence[Place]) -> int:
    """Tokens of a piece, padding included."""
    prompt = max(len(requests[owner].prompts[row]) for owner, row in part)
    answer_ = max(len(requests[owner].answers[row]) for owner, row in part)
    return len(part) * (prompt + answer_)


def _halves(part: list[Place], unit_rows: int, exc: BaseException) -> list[list[Place]]:
    if len(part) <= unit_rows:
        raise OutOfMemoryError() from exc
    middle = len(part) // 2 // unit_rows * unit_rows or unit_rows
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [part[:middle], part[middle:]]


def _generation_rows(base: BaseModel, tokens: int) -> int:
    """How many answers of so many tokens, prompts included, have room for their keys and values."""
    config = base.model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    row = 2 * config.num_hidden_layers * kept * head_size * base.model.dtype.itemsize * tokens
    return max(1, min(MAX_GENERATION_ROWS, _memory(base, CACHE_BUDGET_BYTES) // int(row)))


def _memory(base: BaseModel, otherwise: int) -> int:
    """Bytes that a piece of work may take: half of what the device has free, where it says."""
    return int(torch.cuda.mem_get_info(base.device)[0]) // 2 if base.device.type == "cuda" else otherwise
