"""The jobs of one process, which share its device and step through training together.

A job is a thread that runs ``train`` and asks its ``Member`` for one thing after another. A request waits until every
member has asked, or ``LINGER_S`` has passed; then the jobs that ask for the same kind of thing are answered at once.
Whoever generates goes first and gradients are taken when nobody generates, so jobs fall into step, and one that joins
in the middle falls in with the others. One that leaves, fails or stops is no longer waited for, and does not wait for
the others: it leaves in the middle of what is computed for it.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from zhub_workers.compute.batches import (
    Differentiate,
    Embed,
    Generate,
    Gradient,
    Logprobs,
    Request,
    ShouldStop,
    Tokens,
    answer,
    default_token_limit,
)
from zhub_workers.compute.losses import Loss
from zhub_workers.model.adapters import Adapter, Values
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import Completion

LINGER_S = 0.25  # for the others, while they grade answers or write checkpoints
TURNS: tuple[type[Request], ...] = (Embed, Generate, Logprobs, Differentiate)


class Stopped(Exception):
    """The job should stop, and was in the middle of something. Control flow: never leaves ``train``."""


class Member(Protocol):
    """One job's way to the device, in plain token ids and tensors.

    Every method raises Stopped when the job should stop, and OutOfMemoryError when not even one row fits.
    ``token_limit`` is what a micro-batch may hold; it falls when memory runs out.
    """

    adapter: Adapter
    token_limit: int

    @property
    def base(self) -> BaseModel: ...

    @property
    def should_stop(self) -> ShouldStop: ...

    def generate(
        self,
        values: Values | None,
        prompts: Tokens,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """One answer to each prompt by the model that follows ``values``, None for the base; greedy without seeds."""

    def logprobs(
        self, values: Values | None, prompts: Tokens, answers: Tokens, *, temperature: float = 1.0
    ) -> list[Tensor]:
        """The log-probability of every token of every answer, ``(t_i,)`` each, float32 on the CPU; no gradient."""

    def gradient(
        self, values: Values, prompts: Tokens, answers: Tokens, loss: Loss, *, temperature: float = 1.0
    ) -> Gradient:
        """The gradient of a step's loss, accumulated over micro-batches of answers of like length."""

    def embeddings(self, prompts: Tokens) -> Tensor:
        """Where the base sees the prompts, ``(n, d)``, see ``prompt_embeddings``."""


class ComputeGroup:
    """The members, and whose turn it is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._members: list[_Member] = []
        self._busy = False
        self._pulse = 0  # of what is being computed: it stands still when that hangs
        # One thread computes for all: each thread that did would have a team of OpenMP threads of its own, which spin
        # on the cores that the next one needs.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="compute")

    @contextmanager
    def join(self, adapter: Adapter, should_stop: ShouldStop, *, token_limit: int = 0) -> Iterator[Member]:
        """Take part for as long as the context lasts. ``token_limit`` 0: what the device's memory allows."""
        member = _Member(self, adapter, should_stop, token_limit or default_token_limit(adapter.base))
        with self._changed:
            self._members.append(member)
        try:
            yield member
        finally:
            with self._changed:
                self._members.remove(member)
                self._changed.notify_all()

    def ask(self, member: "_Member", request: Request) -> Any:
        """Wait for a request's turn and return what it is answered with. Raises what the request fails with.

        The thread that finds a turn ready has it computed for all that take part in it.

        Raises:
            Stopped: the member should stop, which is noticed while it waits too.
        """
        with self._changed:
            member.request, member.asked_at = request, time.monotonic()
            self._changed.notify_all()
            pulse = self._pulse
            while member.request is not None:
                if not self._busy and (turn := self._turn()):
                    self._busy = True
                    self._worker.submit(self._compute, turn)
                self._changed.wait(LINGER_S)
                # Asking shows progress, and there is none while a computation hangs.
                if pulse != self._pulse:
                    pulse = self._pulse
                    if member.should_stop():
                        member.request = None
                        raise Stopped
            outcome, member.outcome = member.outcome, None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def pulse(self) -> None:
        """Say that what is computed gets on."""
        self._pulse += 1

    def _turn(self) -> list[tuple["_Member", Request]]:
        """Whose requests to answer next; none while it is worth waiting for those that have not asked yet."""
        asking = [(member, member.request) for member in self._members if member.request is not None]
        waited = time.monotonic() - min(member.asked_at for member, _ in asking)
        if len(asking) < len(self._members) and waited < LINGER_S:
            return []
        turns = ([(member, request) for member, request in asking if type(request) is kind] for kind in TURNS)
        return next(turn for turn in turns if turn)

    def _compute(self, turn: Sequence[tuple["_Member", Request]]) -> None:
        try:
            outcomes = answer([request for _, request in turn])
        except BaseException as exc:
            outcomes = [exc] * len(turn)
        with self._changed:
            for (member, request), outcome in zip(turn, outcomes, strict=True):
                if member.request is request:  # else it has left
                    member.outcome, member.request = outcome, None
            self._busy = False
            self._changed.notify_all()


@dataclass(eq=False)
class _Member:
    """A member of a group."""

    _group: ComputeGroup
    adapter: Adapter
    should_stop: ShouldStop
    token_limit: int
    request: Request | None = field(default=None, init=False)
    outcome: Any = field(default=None, init=False)
    asked_at: float = field(default=0.0, init=False)

    @property
    def base(self) -> BaseModel:
        return self.adapter.base

    def generate(
        self,
        values: Values | None,
        prompts: Tokens,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        drawn = seeds if seeds is not None else [0] * len(prompts)
        common = (self.adapter, values, prompts, self._stop_asked)
        answers: list[Completion] = self._ask(Generate(*common, max_new_tokens, temperature, drawn))
        return answers

    def logprobs(
        self, values: Values | None, prompts: Tokens, answers: Tokens, *, temperature: float = 1.0
    ) -> list[Tensor]:
        common = (self.adapter, values, prompts, self._stop_asked)
        found: list[Tensor] = self._ask(Logprobs(*common, answers, temperature, self.token_limit))
        return found

    def gradient(
        self, values: Values, prompts: Tokens, answers: Tokens, loss: Loss, *, temperature: float = 1.0
    ) -> Gradient:
        common = (self.adapter, values, prompts, self._stop_asked)
        gradient: Gradient = self._ask(Differentiate(*common, answers, temperature, self.token_limit, loss))
        self.token_limit = gradient.token_limit or self.token_limit
        return gradient

    def embeddings(self, prompts: Tokens) -> Tensor:
        embeddings: Tensor = self._ask(Embed(self.adapter, None, prompts, self._stop_asked))
        return embeddings

    def _ask(self, request: Request) -> Any:
        outcome = self._group.ask(self, request)
        if self.should_stop():
            raise Stopped
        return outcome

    def _stop_asked(self) -> bool:
        """What a computation asks between its pieces."""
        self._group.pulse()
        return self.should_stop()
