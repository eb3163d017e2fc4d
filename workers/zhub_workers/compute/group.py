"""The jobs of one process, which share its device and take their training steps together.

Each job is a thread that runs ``train`` and sends its ``Member`` one request after another. A request waits until every
member has sent one, or ``LINGER_S`` has passed; then all requests of one kind are computed together. ``Generate`` goes
before ``Differentiate``, so the jobs come to take their steps at the same time, also a job that joins later. A job that
leaves, fails or stops is no longer waited for, and does not wait itself, not even for what is being computed for it.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from zhub_workers.compute.batches import ShouldStop, Task, answer, default_token_limit
from zhub_workers.compute.cores import sharing_cores
from zhub_workers.compute.requests import AnswerT, Differentiate, Embed, Generate, Gradient, Logprobs, Request
from zhub_workers.model.adapters import Adapter
from zhub_workers.model.base_model import BaseModel

MAX_COMPUTE_STREAMS = 4
LINGER_S = 0.25  # for the others, while they grade answers or write checkpoints
TURNS: tuple[type[Request[Any]], ...] = (Embed, Generate, Logprobs, Differentiate)


def compute_stream_count(device: torch.device) -> int:
    """One on a GPU; on a CPU as many as the cores allow: small matrix products gain little by a second core."""
    if device.type != "cpu":
        return 1
    return max(1, min(MAX_COMPUTE_STREAMS, (os.cpu_count() or 1) // torch.get_num_threads()))


class Stopped(Exception):
    """The job should stop while it waits for an answer. Control flow: it never leaves ``train``."""


class Member(Protocol):
    """One job's access to the device.

    ``token_limit`` is what a micro-batch may hold; it falls when memory runs out.
    """

    adapter: Adapter
    token_limit: int

    @property
    def base(self) -> BaseModel: ...

    @property
    def should_stop(self) -> ShouldStop: ...

    def run(self, request: Request[AnswerT]) -> AnswerT:
        """Wait for the answer to a request.

        Raises:
            Stopped: the job should stop.
            OutOfMemoryError: not even one row fits.
        """


class ComputeGroup:
    """The members, and which of their requests are computed next.

    With ``cores_name`` it takes part in the division of the node's cores while it has members (``cores``), and computes
    with as many threads as it may; otherwise with those that torch has.
    """

    def __init__(self, cores_name: str | None = None) -> None:
        self._cores_name = cores_name
        self._cores = ExitStack()
        self._threads: Callable[[], int] | None = None
        self._changed = threading.Condition()
        self._members: list[GroupMember] = []
        self._busy = False
        self._pulse = 0  # of what is being computed: it stands still when that hangs
        # One thread computes for all: each thread that did would have a team of OpenMP threads of its own, which spin
        # on the cores that the next one needs.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="compute")

    @contextmanager
    def join(self, adapter: Adapter, should_stop: ShouldStop, *, token_limit: int = 0) -> Iterator[Member]:
        """Take part for as long as the context lasts. ``token_limit`` 0: what the device's memory allows."""
        member = GroupMember(self, adapter, should_stop, token_limit or default_token_limit(adapter.base))
        with self._changed:
            if self._cores_name is not None and not self._members:
                self._threads = self._cores.enter_context(sharing_cores(self._cores_name))
            self._members.append(member)
        try:
            yield member
        finally:
            with self._changed:
                self._members.remove(member)
                adapter.release()  # another member on the same base makes anew what it needs
                if not self._members:
                    self._cores.close()
                self._changed.notify_all()

    def ask(self, member: "GroupMember", task: Task[Any]) -> Any:
        """Wait for a task's turn and return what it is answered with. Raises what the task fails with.

        The thread that finds a turn ready has it computed for all that take part in it.

        Raises:
            Stopped: the member should stop, which is noticed while it waits too.
        """
        with self._changed:
            member.task, member.asked_at = task, time.monotonic()
            self._changed.notify_all()
            pulse = self._pulse
            while member.task is not None:
                if not self._busy and (turn := self._turn()):
                    self._busy = True
                    self._worker.submit(self._compute, turn)
                self._changed.wait(LINGER_S)
                # Asking shows progress, and there is none while a computation hangs.
                if pulse != self._pulse:
                    pulse = self._pulse
                    if member.should_stop():
                        member.task = None
                        raise Stopped
            outcome, member.outcome = member.outcome, None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def pulse(self) -> None:
        """Say that the computation makes progress."""
        self._pulse += 1

    def _turn(self) -> list[tuple["GroupMember", Task[Any]]]:
        """The tasks to compute next; none while it is worth waiting for members that have not asked yet."""
        asking = [(member, member.task) for member in self._members if member.task is not None]
        waited = time.monotonic() - min(member.asked_at for member, _ in asking)
        if len(asking) < len(self._members) and waited < LINGER_S:
            return []
        turns = ([(member, task) for member, task in asking if task.request.operation is kind] for kind in TURNS)
        return next(turn for turn in turns if turn)

    def _compute(self, turn: Sequence[tuple["GroupMember", Task[Any]]]) -> None:
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads())  # of this thread, the only one that computes for the group
            outcomes = answer([task for _, task in turn])
        except BaseException as exc:
            outcomes = [exc] * len(turn)
        with self._changed:
            for (member, task), outcome in zip(turn, outcomes, strict=True):
                if member.task is task:  # else it has left
                    member.outcome, member.task = outcome, None
            self._busy = False
            self._changed.notify_all()


@dataclass(eq=False)
class GroupMember:
    """A member of a group."""

    _group: ComputeGroup
    adapter: Adapter
    should_stop: ShouldStop
    token_limit: int
    task: Task[Any] | None = field(default=None, init=False)
    outcome: Any = field(default=None, init=False)
    asked_at: float = field(default=0.0, init=False)

    @property
    def base(self) -> BaseModel:
        return self.adapter.base

    def run(self, request: Request[AnswerT]) -> AnswerT:
        task = Task(request, self.adapter, self.token_limit, self._stop_asked)
        outcome: AnswerT = self._group.ask(self, task)
        if self.should_stop():
            raise Stopped
        if isinstance(outcome, Gradient):
            self.token_limit = outcome.token_limit or self.token_limit
        return outcome

    def _stop_asked(self) -> bool:
        """The ``should_stop`` of a task, asked between batches; asking shows progress."""
        self._group.pulse()
        return self.should_stop()
