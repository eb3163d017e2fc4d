"""One job's rows over several processes: each answers for a part of them, and what it finds is put together in order.

Base and factors stay where they are. To a shard travel the values of the expert (a few hundred KB) and its rows; back
come answers, log-probabilities, and the gradient by the values: as small again. The rows of a shard that is lost are
computed by the others, and it takes part again once it has been replaced. So the number of shards, and their losses,
change nothing but the order in which float32 is summed.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from torch import Tensor

from zhub_workers.compute.batches import Gradient, ShouldStop, Tokens
from zhub_workers.compute.group import ComputeGroup, Member, Stopped
from zhub_workers.compute.losses import Loss
from zhub_workers.compute.vectors import Vectors
from zhub_workers.model.adapters import Adapter, Values
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.rollout import Completion

LOOK_S = 0.25  # between looks at whether the job should stop, while shards compute
Ask = Callable[..., "Future[Any]"]  # takes the name of a method of Member, and its arguments by name
Cut = Callable[[slice], dict[str, Any]]  # the arguments for some of the rows


class ShardLostError(Exception):
    """A shard's process is gone, and with it what it was asked."""


class Shards(Protocol):
    """The other processes of one job."""

    def ready(self) -> Sequence[Ask]:
        """One function for each shard that takes part now; its future may raise ShardLostError.

        Lost ones are replaced, which is not waited for.
        """

    def pulse(self) -> int:
        """A number that grows while the shards get on with what they were asked."""


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

    def generate(
        self,
        values: Values | None,
        prompts: Tokens,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        def cut(rows: slice) -> dict[str, Any]:
            drawn = None if seeds is None else seeds[rows]
            common = {"max_new_tokens": max_new_tokens, "temperature": temperature}
            return {"prompts": prompts[rows], "seeds": drawn, **common}

        found: list[list[Completion]] = self._parts("generate", values, len(prompts), 1, cut)
        return [completion for part in found for completion in part]

    def logprobs(
        self, values: Values | None, prompts: Tokens, answers: Tokens, *, temperature: float = 1.0
    ) -> list[Tensor]:
        def cut(rows: slice) -> dict[str, Any]:
            return {"prompts": prompts[rows], "answers": answers[rows], "temperature": temperature}

        found: list[list[Tensor]] = self._parts("logprobs", values, len(prompts), 1, cut)
        return [logprobs for part in found for logprobs in part]

    def gradient(
        self, values: Values, prompts: Tokens, answers: Tokens, loss: Loss, *, temperature: float = 1.0
    ) -> Gradient:
        def cut(rows: slice) -> dict[str, Any]:
            common = {"loss": loss.part(rows), "temperature": temperature}
            return {"prompts": prompts[rows], "answers": answers[rows], **common}

        found: list[Gradient] = self._parts("gradient", values, len(prompts), loss.rows_per_unit, cut)
        limits = [part.token_limit for part in found if part.token_limit is not None]
        self.token_limit = min([self.token_limit, *limits])
        return Gradient(
            {name: sum_in_order([part.values[name] for part in found]) for name in values},
            sum(part.loss for part in found),
            {name: sum(part.sums[name] for part in found) for name in found[0].sums},
            min(limits, default=None),
        )

    def embeddings(self, prompts: Tokens) -> Tensor:
        return self._local.embeddings(prompts)

    def _parts(self, method: str, values: Values | None, count: int, unit: int, cut: Cut) -> list[Any]:
        """What a method finds for each part of all rows, in their order."""
        sent = None if values is None else {name: value.cpu() for name, value in values.items()}

        def between(rows: slice) -> list[Any]:
            shards = self._shards.ready()
            own, *others = divide(rows, unit, 1 + len(shards))
            futures = [ask(method, values=sent, **cut(other)) for ask, other in zip(shards, others, strict=False)]
            found = [[getattr(self._local, method)(values, **cut(own))]]
            for future in futures:
                try:
                    found.append([self._wait(future)])
                except ShardLostError:
                    found.append([])
            # Only now, so that no shard is asked two things at once.
            for place, other in enumerate(others, 1):
                found[place] = found[place] or between(other)
            return [part for parts in found for part in parts]

        return between(slice(0, count))

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

    def ask(self, method: str, values: Values | None, **arguments: Any) -> Any:
        """Answer as ``Member.method`` does, everything on the CPU."""
        here = None if values is None else {name: v.to(self._member.base.device) for name, v in values.items()}
        found = getattr(self._member, method)(here, **arguments)
        if isinstance(found, Gradient):
            return Gradient({n: v.cpu() for n, v in found.values.items()}, found.loss, found.sums, found.token_limit)
        return Vectors(found) if method == "logprobs" else found

    def pulse(self) -> int:
        """A number that grows while something is computed."""
        return self._beats

    def _beat(self) -> bool:
        self._beats += 1
        return False


def divide(rows: slice, unit: int, count: int) -> list[slice]:
    """Cut rows into at most ``count`` parts of nearly equal size, none empty, in their order.

    ``unit`` rows in a row, counted from the first, stay together.
    """
    units = (rows.stop - rows.start) // unit
    bounds = [rows.start + unit * (units * place // count) for place in range(count + 1)]
    parts = [slice(low, high) for low, high in zip(bounds, bounds[1:], strict=False) if low < high]
    return parts or [rows]


def sum_in_order(tensors: Sequence[Tensor]) -> Tensor:
    """The sum on the first one's device, always in this order, so that equal parts give equal bits."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor.to(total.device)
    return total
