"""One job's rows on several processes: each computes for a part of them, and the answers are joined in order.

Every process has its own copy of the base and its factors. A shard is sent the expert's values (a few hundred KB) and
its rows; it returns answers, log-probabilities, or the gradient by the values, which is as small. The rows of a shard
that is lost are computed by the others, and it takes part again once it has been replaced. So the number of shards, and
the loss of some, change nothing but the order in which float32 is summed.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from zhub_workers.compute.batches import ShouldStop
from zhub_workers.compute.group import ComputeGroup, Member, Stopped
from zhub_workers.compute.requests import AnswerT, Gradient, Request
from zhub_workers.model.adapters import Adapter
from zhub_workers.model.base_model import BaseModel

LOOK_S = 0.25  # between looks at whether the job should stop, while shards compute
Ask = Callable[[Request[Any]], "Future[Any]"]


class ShardLostError(Exception):
    """A shard's process is gone; its request has no answer."""


class Shards(Protocol):
    """The other processes of one job."""

    def ready(self) -> Sequence[Ask]:
        """One function for each shard that takes part now; its future may raise ShardLostError.

        Lost ones are replaced, which is not waited for.
        """

    def pulse(self) -> int:
        """A number that grows while the shards make progress."""


class ShardedMember:
    """A member whose rows are divided between itself and its shards. See ``Member``."""

    def __init__(self, local: Member, shards: Shards) -> None:
        self.adapter: Adapter = local.adapter
        self.should_stop: ShouldStop = local.should_stop
        self._local = local
        self._shards = shards
        self.token_limit = local.token_limit

    @property
    def base(self) -> BaseModel:
        return self.adapter.base

    def run(self, request: Request[AnswerT]) -> AnswerT:
        answer = request.joined(self._answers(request))
        if isinstance(answer, Gradient) and answer.token_limit is not None:
            self.token_limit = min(self.token_limit, answer.token_limit)
        return answer

    def _answers(self, request: Request[AnswerT]) -> list[AnswerT]:
        """The answers to the parts of a request, in the order of their rows."""
        sent = request.on("cpu")

        def answers_for(rows: slice) -> list[AnswerT]:
            shards = self._shards.ready()
            own, *others = divide(rows, request.rows_per_unit, 1 + len(shards))
            futures = [ask(sent.part(other)) for ask, other in zip(shards, others, strict=False)]
            answers = [[self._local.run(request.part(own))]]
            for future in futures:
                try:
                    answers.append([self._wait(future)])
                except ShardLostError:
                    answers.append([])
            # Only now, so that no shard is asked two things at once.
            for index, other in enumerate(others, 1):
                answers[index] = answers[index] or answers_for(other)
            return [answer for part in answers for answer in part]

        return answers_for(slice(0, request.row_count))

    def _wait(self, future: "Future[Any]") -> Any:
        pulse = self._shards.pulse()
        while not future.done():
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                # Asking shows progress, and there is none while the shards stand still.
                if pulse != self._shards.pulse():
                    pulse = self._shards.pulse()
                    if self.should_stop():
                        raise Stopped from None
        return future.result()


class Shard:
    """What a shard's process holds: the same adapter on its own copy of the base."""

    def __init__(self, adapter: Adapter, *, token_limit: int) -> None:
        self._beats = 0
        self._membership = ComputeGroup().join(adapter, self._beat, token_limit=token_limit)
        self._member = self._membership.__enter__()

    def ask(self, request: Request[Any]) -> Any:
        """Answer as ``Member.run`` does, everything on the CPU."""
        answer = self._member.run(request.on(self._member.base.device))
        return answer.on_cpu() if isinstance(answer, Gradient) else answer

    def pulse(self) -> int:
        """A number that grows while the shard makes progress."""
        return self._beats

    def _beat(self) -> bool:
        self._beats += 1
        return False


def divide(rows: slice, unit: int, count: int) -> list[slice]:
    """Cut rows into at most ``count`` parts of nearly equal size, none empty, in their order.

    ``unit`` rows in a row, counted from the first, stay together.
    """
    units = (rows.stop - rows.start) // unit
    bounds = [rows.start + unit * (units * cut // count) for cut in range(count + 1)]
    parts = [slice(low, high) for low, high in zip(bounds, bounds[1:], strict=False) if low < high]
    return parts or [rows]
