"""The compute of training: answers, log-probabilities and gradients, for one job or for several on one base.

Requests of several jobs are answered together, each row following its own job's expert, so that the base's matrices
are read once for all and small jobs fill the device between them. A request alone gets its expert merged into the
weights. Either way the rows are cut into batches that fit the memory, and into smaller ones where they do not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from zhub.errors import NonFiniteLogitsError, OutOfMemoryError
from zhub_workers.compute.extent import Extent
from zhub_workers.compute.requests import Differentiate, Each, Embed, Generate, Gradient, Logprobs, Request
from zhub_workers.compute.vectors import Vectors
from zhub_workers.model.adapters import Adapter, SvfAdapter, Values
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import Assign, Completion, generate, token_logprobs
from zhub_workers.model.routing import prompt_embeddings

ACTIVATION_BUDGET_BYTES = 2 << 30  # of one micro-batch, where the device does not say what it has
CACHE_BUDGET_BYTES = 4 << 30  # of the keys and values of one batch of answers, likewise
MAX_GENERATION_ROWS = 4096

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)

ShouldStop = Callable[[], bool]
RequestT = TypeVar("RequestT", bound=Request[Any], covariant=True)
Scored = Logprobs | Differentiate
RowKey = tuple[int, int]  # which task, and which of its rows


@dataclass(frozen=True)
class Task(Generic[RequestT]):
    """A request with its job's adapter, its limit of tokens in a micro-batch, and its stop callback."""

    request: RequestT
    adapter: Adapter
    token_limit: int
    should_stop: ShouldStop


def answer(tasks: Sequence[Task[Any]]) -> list[Any]:
    """Answer requests of one operation, together where they can be: a result or the exception of each, in their order.

    The requests of an ``Each`` are tasks like all others.
    """
    parts = [_parts(task) for task in tasks]
    outcomes = iter(_answer_all([part for of_task in parts for part in of_task]))
    return [
        _outcome_of_each([next(outcomes) for _ in of_task]) if isinstance(task.request, Each) else next(outcomes)
        for task, of_task in zip(tasks, parts, strict=True)
    ]


def _parts(task: Task[Any]) -> list[Task[Any]]:
    return [replace(task, request=part) for part in task.request.requests] if isinstance(task.request, Each) else [task]


def _outcome_of_each(outcomes: list[Any]) -> Any:
    """The outcomes of all parts, or the exception that keeps there from being any."""
    failures = (o for o in outcomes if isinstance(o, Exception) and not isinstance(o, NonFiniteLogitsError))
    return next(failures, outcomes)


def _answer_all(tasks: Sequence[Task[Any]]) -> list[Any]:
    groups: dict[object, list[int]] = {}
    for index, task in enumerate(tasks):
        groups.setdefault(batch_key(task), []).append(index)
    outcomes: list[Any] = [None] * len(tasks)
    for indices in groups.values():
        for index, outcome in zip(indices, _answer([tasks[i] for i in indices]), strict=True):
            outcomes[index] = outcome
    return outcomes


def default_token_limit(base: BaseModel) -> int:
    """How many tokens may go through forward and backward at once."""
    return max(1, int(_memory(base, ACTIVATION_BUDGET_BYTES) / activation_bytes_per_token(base.model)))


def activation_bytes_per_token(model: Any) -> float:
    """What a forward keeps of a token for the backward.

    A layer keeps 34 bytes per token and unit of width in 16 bit (Korthikanti et al., arXiv:2205.05198, less the
    attention scores, which are not kept); the logits three float32 copies.
    """
    config = model.config.get_text_config()
    wide = model.dtype.itemsize / 2
    return float(34 * wide * config.hidden_size * config.num_hidden_layers + 12 * config.vocab_size)


def cache_bytes_per_token(model: Any) -> int:
    """The keys and values of a token in all layers."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * head_size * model.dtype.itemsize)


def batch_key(task: Task[Any]) -> object:
    """A key that is equal for tasks that one forward pass can answer together, and unique for any other task."""
    request = task.request
    if isinstance(request, Embed) or not isinstance(task.adapter, SvfAdapter):
        return id(task)
    temperature = None if isinstance(request, Generate) else request.temperature
    return id(task.adapter.model), temperature


def _answer(tasks: Sequence[Task[Any]]) -> list[Any]:
    """Answer tasks in one forward; when that fails, each alone, so that an error is its own task's."""
    try:
        match tasks[0].request:
            case Generate():
                return _generate(tasks)
            case Differentiate():
                return _differentiate(tasks)
            case Logprobs():
                return _logprobs(tasks)
            case Embed(prompts=prompts):
                return [prompt_embeddings(tasks[0].adapter.base, prompts)]
    except Exception as exc:
        if len(tasks) == 1:
            return [exc]
    return [outcome for task in tasks for outcome in _answer([task])]


@torch.no_grad()
def _generate(tasks: Sequence[Task[Generate]]) -> list[list[Completion]]:
    base, requests = tasks[0].adapter.base, [task.request for task in tasks]
    rows = [(owner, row) for owner, request in enumerate(requests) for row in range(len(request.prompts))]
    longest = max(len(requests[owner].prompts[row]) + requests[owner].max_new_tokens for owner, row in rows)
    size = _generation_rows(base, min(longest, base.context_length or longest))
    rows.sort(key=lambda key: len(requests[key[0]].prompts[key[1]]))
    answers: dict[RowKey, Completion] = {}
    with _following(tasks, gradient=False) as (_, assign):
        waiting = [rows[start : start + size] for start in range(0, len(rows), size)]
        while waiting:
            batch = waiting.pop(0)
            owned = [(requests[owner], row) for owner, row in batch]
            try:
                completions = generate(
                    base,
                    [request.prompts[row] for request, row in owned],
                    max_new_tokens=[request.max_new_tokens for request, _ in owned],
                    temperature=[request.temperature for request, _ in owned],
                    seeds=[0 if request.seeds is None else request.seeds[row] for request, row in owned],
                    should_stop=partial(_all_stop, tasks, batch),
                    owners=[owner for owner, _ in batch] if assign else None,
                    assign=assign,
                )
            except OUT_OF_MEMORY as exc:
                waiting = [*_halves(batch, 1, exc), *waiting]
                continue
            answers.update(zip(batch, completions, strict=True))
    return [[answers[owner, row] for row in range(len(r.prompts))] for owner, r in enumerate(requests)]


@torch.no_grad()
def _logprobs(tasks: Sequence[Task[Logprobs]]) -> list[list[Tensor]]:
    answered: dict[RowKey, Tensor] = {}
    with _following(tasks, gradient=False) as (_, assign):
        waiting = list(_micro_batches(tasks))
        while waiting:
            batch = waiting.pop(0)
            if _all_stop(tasks, batch):
                continue
            try:
                logprobs, _ = _score(tasks, batch, assign)
            except OUT_OF_MEMORY as exc:
                waiting = [*_halves(batch, 1, exc), *waiting]
                continue
            answered.update(_by_row(tasks, batch, logprobs))
    return _of_tasks(tasks, answered)


def _differentiate(tasks: Sequence[Task[Differentiate]]) -> list[Gradient]:
    losses = [task.request.loss for task in tasks]
    unit_rows = max(loss.rows_per_unit for loss in losses)
    gradients = [{name: torch.zeros_like(value) for name, value in (t.request.values or {}).items()} for t in tasks]
    totals = [0.0] * len(tasks)
    sums: list[dict[str, float]] = [{} for _ in tasks]
    scored: dict[RowKey, Tensor] = {}
    limit: int | None = None
    with _following(tasks, gradient=True) as (leaves, assign):
        waiting = list(_micro_batches(tasks))
        while waiting:
            batch = waiting.pop(0)
            if _all_stop(tasks, batch):
                continue
            try:
                logprobs, mask = _score(tasks, batch, assign)
                batch_loss = torch.zeros((), device=logprobs.device)
                for owner in sorted({owner for owner, _ in batch}):
                    at = [index for index, (other, _) in enumerate(batch) if other == owner]
                    loss, reported = losses[owner](logprobs[at], mask[at], [batch[index][1] for index in at])
                    batch_loss = batch_loss + loss
                    totals[owner] += loss.item()
                    for name, value in reported.items():
                        sums[owner][name] = sums[owner].get(name, 0.0) + value.item()
                # Not backward(): when memory runs out half-way, nothing of this batch has been added anywhere.
                by_leaf = torch.autograd.grad(batch_loss, list(leaves.values()), allow_unused=True)
            except OUT_OF_MEMORY as exc:
                halves = _halves(batch, unit_rows, exc)
                limit = max(_extent(tasks, half).tokens for half in halves)
                waiting = [*halves, *waiting]
                continue
            scored.update(_by_row(tasks, batch, logprobs))
            for name, gradient in zip(leaves, by_leaf, strict=True):
                for owner, own in enumerate(gradients):
                    if gradient is not None and name in own:
                        own[name] += gradient if assign is None else gradient[owner]
    made = zip(gradients, totals, sums, _of_tasks(tasks, scored), strict=True)
    return [Gradient(*parts, limit) for parts in made]


@contextmanager
def _following(tasks: Sequence[Task[Any]], *, gradient: bool) -> Iterator[tuple[dict[str, Tensor], Assign | None]]:
    """Let the model follow the values of these tasks, and be the base again at the end.

    Yields the tensors that gradients reach, and, where several tasks go together, the function that says which of
    them each row follows: their tensors then have a leading axis of tasks.
    """
    adapter, values = tasks[0].adapter, [task.request.values for task in tasks]
    if len(tasks) > 1:
        assert isinstance(adapter, SvfAdapter)  # nothing else goes together
        stack = _stack(adapter, values)
        with adapter.model.rows({name: deltas.requires_grad_(gradient) for name, deltas in stack.items()}) as assign:
            yield stack, assign
    elif values[0] is None:
        yield {}, None
    elif gradient:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in values[0].items()}
        with adapter.training(leaves):
            yield leaves, None
    else:
        with adapter.merged(values[0]):
            yield {}, None


def _stack(adapter: SvfAdapter, values: Sequence[Values | None]) -> dict[str, Tensor]:
    """The deltas of K tasks, ``(K, r)`` for each matrix that one of them changes; zeros for a task that does not."""
    names = sorted({name for own in values for name in own or {}})
    zero = adapter.model.zero_delta(names)
    return {name: torch.stack([(own or zero).get(name, zero[name]).detach() for own in values]) for name in names}


def _all_stop(tasks: Sequence[Task[Any]], batch: Sequence[RowKey]) -> bool:
    """Whether every task of a batch should stop. All are asked, because asking shows progress."""
    return all([tasks[owner].should_stop() for owner in {owner for owner, _ in batch}])


def _score(tasks: Sequence[Task[Scored]], batch: Sequence[RowKey], assign: Assign | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities and mask, ``(b, t)`` both, of a batch's answers."""
    owned = [(tasks[owner].request, row) for owner, row in batch]
    return token_logprobs(
        tasks[0].adapter.base,
        [request.prompts[row] for request, row in owned],
        [request.answers[row] for request, row in owned],
        temperature=tasks[0].request.temperature,
        owners=[owner for owner, _ in batch] if assign else None,
        assign=assign,
    )


def _by_row(tasks: Sequence[Task[Scored]], batch: Sequence[RowKey], logprobs: Tensor) -> dict[RowKey, Tensor]:
    """What each row of a batch has of its ``logprobs (b, t)``, on the CPU."""
    rows = zip(batch, logprobs.detach().cpu(), strict=True)
    return {key: values[: len(tasks[key[0]].request.answers[key[1]])] for key, values in rows}


def _of_tasks(tasks: Sequence[Task[Scored]], scored: Mapping[RowKey, Tensor]) -> list[list[Tensor]]:
    """The log-probabilities of each task's answers; zeros for rows of tasks that stopped before."""
    return [
        Vectors(
            scored[owner, row] if (owner, row) in scored else torch.zeros(len(answer_))
            for row, answer_ in enumerate(task.request.answers)
        )
        for owner, task in enumerate(tasks)
    ]


def _micro_batches(tasks: Sequence[Task[Scored]]) -> Iterator[list[RowKey]]:
    """Cut the rows of all tasks into batches that fit, rows of like length and of one prompt together."""
    limit = min(task.token_limit for task in tasks)

    def lengths(unit: list[RowKey]) -> tuple[int, Sequence[int], int]:
        owner, row = unit[0]
        request = tasks[owner].request
        return len(request.prompts[row]), request.prompts[row], len(request.answers[row])

    batch: list[RowKey] = []
    extent = _extent(tasks, [])
    for unit in sorted(_units(tasks), key=lengths):
        _extend(extent, tasks, unit)
        if batch and extent.tokens > limit:
            yield batch
            batch, extent = [], _extent(tasks, unit)
        batch.extend(unit)
    if batch:
        yield batch


def _units(tasks: Sequence[Task[Scored]]) -> Iterator[list[RowKey]]:
    """The units of rows that stay in one batch, task by task."""
    for owner, task in enumerate(tasks):
        size = task.request.rows_per_unit
        for first in range(0, len(task.request.prompts), size):
            yield [(owner, first + offset) for offset in range(size)]


def _extent(tasks: Sequence[Task[Scored]], batch: Sequence[RowKey]) -> Extent:
    base = tasks[0].adapter.base
    # Each layer keeps the keys and values of a prompt, and then those with the answer's.
    copied_token = 2 * cache_bytes_per_token(base.model) / activation_bytes_per_token(base.model)
    extent = Extent(base, copied_token)
    _extend(extent, tasks, batch)
    return extent


def _extend(extent: Extent, tasks: Sequence[Task[Scored]], rows: Sequence[RowKey]) -> None:
    for owner, row in rows:
        request = tasks[owner].request
        extent.add(owner, request.prompts[row], len(request.answers[row]))


def _halves(batch: list[RowKey], unit_rows: int, exc: BaseException) -> list[list[RowKey]]:
    if len(batch) <= unit_rows:
        raise OutOfMemoryError() from exc
    middle = len(batch) // 2 // unit_rows * unit_rows or unit_rows
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [batch[:middle], batch[middle:]]


def _generation_rows(base: BaseModel, tokens: int) -> int:
    """How many answers of so many tokens, prompts included, have room for their keys and values."""
    row = cache_bytes_per_token(base.model) * tokens
    return max(1, min(MAX_GENERATION_ROWS, _memory(base, CACHE_BUDGET_BYTES) // row))


def _memory(base: BaseModel, otherwise: int) -> int:
    """Bytes that a batch may take: half of the device's free memory; ``otherwise`` where that is not known."""
    return int(torch.cuda.mem_get_info(base.device)[0]) // 2 if base.device.type == "cuda" else otherwise
