"""What a training job asks of the device. Each class is one operation: its fields are what the operation takes.

A request is a value that can travel to another process. ``part`` cuts it, so that several processes compute for some
of its rows each, and ``joined`` makes one answer of theirs. How answers are computed is in ``batches``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from zhub.errors import NonFiniteLogitsError
from zhub_workers.compute.losses import Loss
from zhub_workers.compute.vectors import Vectors
from zhub_workers.model.adapters import Values
from zhub_workers.model.rollout import Completion

Tokens = Sequence[Sequence[int]]
AnswerT = TypeVar("AnswerT")


class Request(ABC, Generic[AnswerT]):
    """Something that the model is asked about some rows."""

    @property
    @abstractmethod
    def row_count(self) -> int:
        """How many rows it has to be divided."""

    @property
    def rows_per_unit(self) -> int:
        """So many consecutive rows stay in one part."""
        return 1

    @property
    def operation(self) -> type["Request[Any]"]:
        """Requests of one operation are computed together."""
        return type(self)

    @abstractmethod
    def part(self, rows: slice) -> Self:
        """The same request for some of the rows."""

    @abstractmethod
    def joined(self, answers: Sequence[AnswerT]) -> AnswerT:
        """The answer to this request, made of the answers to its parts in their order."""

    @abstractmethod
    def on(self, device: torch.device | str) -> Self:
        """The same request with its values on a device."""


@dataclass(frozen=True)
class OneModel(Request[AnswerT]):
    """Something about ``prompts``, token ids, by the model that follows ``values``, None for the base."""

    values: Values | None
    prompts: Tokens

    @property
    def row_count(self) -> int:
        return len(self.prompts)

    def on(self, device: torch.device | str) -> Self:
        if self.values is None:
            return self
        return replace(self, values={name: value.to(device) for name, value in self.values.items()})


@dataclass(frozen=True)
class Each(Request[list[AnswerT | NonFiniteLogitsError]]):
    """Several requests of one operation, computed together: each row follows the values of its own request.

    A request whose values make the logits NaN or infinite is answered with that error.
    """

    requests: Sequence[Request[AnswerT]]

    @property
    def row_count(self) -> int:
        return len(self.requests)

    @property
    def operation(self) -> type[Request[Any]]:
        return self.requests[0].operation

    def part(self, rows: slice) -> Self:
        return replace(self, requests=self.requests[rows])

    def joined(self, answers: Sequence[list[AnswerT | NonFiniteLogitsError]]) -> list[AnswerT | NonFiniteLogitsError]:
        return [answer for part in answers for answer in part]

    def on(self, device: torch.device | str) -> Self:
        return replace(self, requests=[request.on(device) for request in self.requests])


@dataclass(frozen=True)
class Generate(OneModel[list[Completion]]):
    """One answer to each prompt, sampled with a seed for each; greedy ones, of temperature 0, need no seeds."""

    max_new_tokens: int
    temperature: float = 0.0
    seeds: Sequence[int] | None = None

    def part(self, rows: slice) -> Self:
        seeds = None if self.seeds is None else self.seeds[rows]
        return replace(self, prompts=self.prompts[rows], seeds=seeds)

    def joined(self, answers: Sequence[list[Completion]]) -> list[Completion]:
        return [completion for part in answers for completion in part]


@dataclass(frozen=True)
class Logprobs(OneModel[list[Tensor]]):
    """The log-probability of every token of every answer, ``(t_i,)`` each, float32 on the CPU; no gradient."""

    answers: Tokens
    temperature: float = 1.0

    def part(self, rows: slice) -> Self:
        return replace(self, prompts=self.prompts[rows], answers=self.answers[rows])

    def joined(self, answers: Sequence[list[Tensor]]) -> list[Tensor]:
        return Vectors(logprobs for part in answers for logprobs in part)


@dataclass(frozen=True)
class Gradient:
    """The gradient of a step's loss by the values, float32, with the loss and what it reports.

    ``logprobs`` are those of the answers' tokens before the step, as ``Logprobs`` gives them. ``token_limit`` is set
    where memory ran out: what a micro-batch may hold from now on.
    """

    values: dict[str, Tensor]
    loss: float
    sums: dict[str, float]
    logprobs: list[Tensor]
    token_limit: int | None = None

    def on_cpu(self) -> "Gradient":
        return replace(self, values={name: value.cpu() for name, value in self.values.items()})


@dataclass(frozen=True)
class Differentiate(OneModel[Gradient]):
    """The gradient of a step's loss by the values, accumulated over micro-batches of answers of like length."""

    answers: Tokens
    loss: Loss
    temperature: float = 1.0

    @property
    def rows_per_unit(self) -> int:
        return self.loss.rows_per_unit

    def part(self, rows: slice) -> Self:
        return replace(self, prompts=self.prompts[rows], answers=self.answers[rows], loss=self.loss.part(rows))

    def joined(self, answers: Sequence[Gradient]) -> Gradient:
        limits = [part.token_limit for part in answers if part.token_limit is not None]
        return Gradient(
            {name: sum_in_order([part.values[name] for part in answers]) for name in answers[0].values},
            sum(part.loss for part in answers),
            {name: sum(part.sums[name] for part in answers) for name in answers[0].sums},
            Vectors(logprobs for part in answers for logprobs in part.logprobs),
            min(limits, default=None),
        )


@dataclass(frozen=True)
class Embed(OneModel[Tensor]):
    """Where the base sees the prompts, ``(n, d)``, see ``prompt_embeddings``. ``values`` are not looked at."""

    @property
    def rows_per_unit(self) -> int:
        # All of them: it is little work, done once in a job.
        return max(1, len(self.prompts))

    def part(self, rows: slice) -> Self:
        return replace(self, prompts=self.prompts[rows])

    def joined(self, answers: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(answers))


def sum_in_order(tensors: Sequence[Tensor]) -> Tensor:
    """The sum on the first one's device, always in this order, so that equal parts give equal bits."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor.to(total.device)
    return total
