"""One seeded thread that runs schedulers, agents and clients in turn, harms them, and writes down what it does.

Each loop of a process is a greenlet: the product's own loop, which stops wherever it would wait for somebody else, that
is before each transaction, after each commit, and before each question to a worker. There the driver chooses who goes
on, and when: a process that is chosen late was frozen, with all that it held in its hands; one that is chosen no more
was killed. Time is virtual and moves from one such point to the next.
"""

import hashlib
import heapq
import itertools
import logging
import random
import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

from greenlet import GreenletExit, getcurrent, greenlet
from simulated_database import MAX_STATEMENTS_BEFORE_A_CUT, Fault, SimulatedDatabase, at
from sqlalchemy import Engine

SECOND = 1_000_000  # virtual time is in whole microseconds, so that it adds up the same everywhere
MAX_STEPS = 200_000


@dataclass
class Harm:
    """How often what happens. A seed leaves some of it out, so that the rest comes to bear."""

    crash: float = 0.0
    """At each point where a process stops."""
    freeze: float = 0.0
    cut: float = 0.0
    """Of each transaction."""
    lost_wakeup: float = 0.0
    """Of each hint."""
    silence: float = 0.0
    """At each question to a worker."""
    node_loss_s: float = 0.0
    """Between two losses of all workers; 0: none."""

    @classmethod
    def drawn(cls, rng: random.Random) -> "Harm":
        most = {"crash": 0.004, "freeze": 0.006, "cut": 0.06, "lost_wakeup": 0.5, "silence": 0.08, "node_loss_s": 60.0}
        return cls(**{name: value if rng.random() < 0.6 else 0.0 for name, value in most.items()})


@dataclass(eq=False)
class Process:
    """Loops that live and die together, on one engine and with one wall clock."""

    name: str
    loops: Callable[["Process"], list[Callable[[], None]]]
    url: str
    mortal: bool = True
    engine: Engine = field(init=False)
    stopping: "SimulatedEvent" = field(init=False)
    tasks: list["Task"] = field(default_factory=list)
    alive: bool = False
    frozen_until_us: int = 0
    wall_offset_ns: int = 0


@dataclass(eq=False)
class Task:
    """One loop of a process."""

    process: Process
    greenlet: greenlet
    ticket: int = 0
    """Of the entry in the agenda that may wake it; earlier entries count no more."""
    topic: str | None = None


class SimulatedEvent(threading.Event):
    """What tells a process to stop; waiting for it is waiting in virtual time."""

    def __init__(self, simulation: "Simulation") -> None:
        super().__init__()
        self._simulation = simulation

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._simulation.wait(timeout, None)
        return self.is_set()


class SimulatedWakeup:
    """Hints that may be lost, to those who wait for them in the simulation."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation

    def notify(self, topic: str) -> None:
        self._simulation.notify(topic)

    def wait(self, topic: str, timeout_s: float) -> None:
        self._simulation.wait(timeout_s, topic)

    def hear(self, prefix: str, timeout_s: float) -> str | None:
        raise NotImplementedError("nobody here listens to a prefix")


class Simulation:
    """The driver of one seed. ``run`` once."""

    def __init__(self, seed: int, database: SimulatedDatabase) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.database = database
        self.harm = Harm.drawn(self.rng)
        self.now_us = 0
        self.calm = False
        """Faults have stopped; what is under way settles."""
        self.trace: list[str] = []
        self.failures: list[str] = []
        self.processes: list[Process] = []
        self.wakeup = SimulatedWakeup(self)
        self._ids = random.Random(seed + 1)
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._current: Task | None = None
        self._driver = getcurrent()

    # What happens, and when

    def run(self, *, harm_s: float, settle_s: float, settled: Callable[[], bool], last: Callable[[], None]) -> None:
        """Harm for so long, then go on until all is settled, and look at what is ``last``."""
        try:
            self._run_until(lambda: self.now_us >= harm_s * SECOND)
            if self.failures:
                return
            self.note("", "calm")
            self.calm, self.harm = True, Harm()
            over_us = self.now_us + int(settle_s * SECOND)
            self._run_until(lambda: self._all_at_work() and settled() or self.now_us >= over_us, every_s=10)
            if not settled():
                self.failures.append(f"not everything has settled {settle_s:g} s after the last harm")
            last()
        finally:
            for process in self.processes:
                self.kill(process)

    def _run_until(self, over: Callable[[], bool], *, every_s: float = 0.0) -> None:
        asked_us = self.now_us
        while True:
            if self.failures:
                return
            if self.now_us >= asked_us + every_s * SECOND:
                if over():
                    return
                asked_us = self.now_us
            if len(self.trace) > MAX_STEPS:
                self.failures.append("there is no end to it")
                return
            when_us, _, act = heapq.heappop(self._agenda)
            self.now_us = max(self.now_us, when_us)
            act()

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something later, in the driver."""
        heapq.heappush(self._agenda, (self.now_us + int(delay_s * SECOND), next(self._numbers), act))

    def note(self, who: str, what: object) -> None:
        self.trace.append(f"{self.now_us / SECOND:11.6f} {who:<12} {what}")

    def digest(self) -> str:
        """Of all decisions and all rows."""
        return hashlib.sha256("\n".join([*self.trace, self.database.contents()]).encode()).hexdigest()

    # Processes

    def start(self, process: Process) -> None:
        if process not in self.processes:
            self.processes.append(process)
        process.alive, process.frozen_until_us = True, 0
        process.stopping = SimulatedEvent(self)
        process.engine = self.database.engine(process.name, process.url, self)
        process.tasks = []
        for loop in process.loops(process):
            task = Task(process, greenlet(partial(self._live, process, loop), self._driver))
            process.tasks.append(task)
            self._wake(task, self.rng.uniform(0, 1))
        self.note(process.name, "starts")

    def kill(self, process: Process) -> None:
        """It is gone at once: transactions under way are rolled back, and what it knew is forgotten."""
        if process.alive:
            process.alive = False
            self.note(process.name, "is gone")
            for task in process.tasks:
                task.ticket += 1
                if not task.greenlet.dead:
                    task.greenlet.throw()

    def _live(self, process: Process, loop: Callable[[], None]) -> None:
        try:
            loop()
        except GreenletExit:
            return
        except Exception as exc:
            self.failures.append(f"{process.name} died of {type(exc).__name__}: {exc}")
        if process.mortal and process.alive and not process.stopping.is_set():
            self.failures.append(f"{process.name} ended by itself")

    def _resume(self, task: Task, ticket: int) -> None:
        process = task.process
        if ticket != task.ticket or not process.alive:
            return
        if self.now_us < process.frozen_until_us:
            self._wake(task, (process.frozen_until_us - self.now_us) / SECOND)
            return
        if process.mortal and self.rng.random() < self.harm.crash:
            self._end(process)
            return
        task.topic = None
        self._current = task
        task.greenlet.switch()
        self._current = None

    def _end(self, process: Process) -> None:
        """Kill a process, or ask it to stop; another of its kind follows."""
        if self.rng.random() < 0.2:
            self.note(process.name, "is told to stop")
            process.stopping.set()
            self.after(10, partial(self._replace, process))
            for task in process.tasks:
                self._wake(task, 0.0)
        else:
            self._replace(process)

    def _replace(self, process: Process) -> None:
        self.kill(process)
        self.after(self.rng.uniform(0.1, 20), partial(self.start, process))

    def _all_at_work(self) -> bool:
        return all(process.alive and process.frozen_until_us <= self.now_us for process in self.processes)

    def _wake(self, task: Task, delay_s: float) -> None:
        task.ticket += 1
        self.after(delay_s, partial(self._resume, task, task.ticket))

    # Where the loops stop

    def pause(self) -> None:
        """Let others go on; the process may be frozen here, or killed."""
        task = self._current
        if task is None or getcurrent() is not task.greenlet:
            return  # the driver itself, or a task that is being killed
        if self.rng.random() < self.harm.freeze:
            frozen_s = self.rng.uniform(1, 60)
            self.note(task.process.name, f"is frozen for {frozen_s:.3f} s")
            task.process.frozen_until_us = self.now_us + int(frozen_s * SECOND)
        self._wake(task, self.rng.expovariate(200))
        self._driver.switch()

    def wait(self, timeout_s: float, topic: str | None) -> None:
        """Wait for a hint, or longer than was asked for: the machine is slow."""
        task = self._current
        assert task is not None
        task.topic = topic
        self._wake(task, max(timeout_s, self.rng.uniform(5, 15) if self.calm else self.rng.uniform(3, 8)))
        self._driver.switch()

    def notify(self, topic: str) -> None:
        if self.rng.random() < self.harm.lost_wakeup:
            return
        for process in self.processes:
            for task in process.tasks:
                if task.topic == topic:
                    self._wake(task, self.rng.expovariate(20))

    def begun(self) -> tuple[datetime, Fault | None, int]:
        """For a transaction that begins."""
        self.pause()
        self.now_us += 1000
        fault: Fault | None = None
        if self._current is not None and self.rng.random() < self.harm.cut:
            fault = self.rng.choice(("before", "middle", "after"))
            self.note(self._current.process.name, f"loses its connection: {fault}")
        return at(self.now_us), fault, self.rng.randint(1, MAX_STATEMENTS_BEFORE_A_CUT)

    def committed(self) -> None:
        if self._current is not None:
            self.note(self._current.process.name, "commits")
        self.pause()

    # Time and chance

    def as_the_only_source_of_time_and_chance(self) -> ExitStack:
        """For the time of a simulation: clocks that processes read, ids that they draw, and errors that they log."""
        stack = ExitStack()
        monotonic = SimpleNamespace(monotonic=lambda: self.now_us / SECOND)
        wall = SimpleNamespace(time_ns=self._wall_ns)
        chance = SimpleNamespace(randbits=self._ids.getrandbits, SystemRandom=lambda: self._ids)
        for name, value in {
            "zhub_workers.agent.loop.time": monotonic,
            "zhub.scheduler.time": monotonic,
            "zhub.ids.time": wall,
            "zhub.ids.secrets": chance,
            "zhub.training.fine_tuning.random": chance,
            "uuid.uuid4": lambda: uuid.UUID(int=self._ids.getrandbits(128), version=4),
        }.items():
            stack.enter_context(patch(name, value))
        handler = _Errors(self)
        log = logging.getLogger("zhub")
        log.addHandler(handler)
        stack.callback(log.removeHandler, handler)
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, logging.NOTSET)
        return stack

    def _wall_ns(self) -> int:
        offset_ns = self._current.process.wall_offset_ns if self._current is not None else 0
        return int(at(self.now_us).timestamp()) * 10**9 + self.now_us % SECOND * 1000 + offset_ns


class _Errors(logging.Handler):
    """No harm that is done here is a reason for an error in the log."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(logging.ERROR)
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        told = f"{record.getMessage()} {record.exc_info[1]!r}" if record.exc_info else record.getMessage()
        self._simulation.failures.append(f"{record.name} logs an error: {told}")
