"""Workers that only exist in virtual time: what they answer follows from the seed and from when they are asked.

An attempt's whole course is drawn when it begins: its steps, its checkpoints, how it ends, whether it minds being asked
to stop. A worker may die under it, fall silent for a while and go on meanwhile, or outlive its leases. Like Ray's
detached actors, workers belong to no agent: any agent of the cluster finds them.
"""

import hashlib
import itertools
import uuid
from dataclasses import dataclass, field
from typing import Any

from simulation import SECOND, Simulation
from suites import manifest_of

from zhub.manifest import FileEntry
from zhub.queue.attempts import Failure
from zhub.queue.job_events import Event
from zhub.storage.keys import checkpoints_prefix
from zhub_workers.agent.launcher import WorkerLostError, WorkerSilentError, choose_worker, open_packs
from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus, HeldAttempt

SLOTS = 2
NODES = 2
JOBS_PER_WORKER = 2
REWARDS = [[float(row < right) for row in range(8)] for right in (1, 4, 8)]
"""Of an evaluation: few, because comparing two takes a while, once."""
FAILURES = {
    "fails": Failure("internal_error", "A bug of the recipe.", retryable=True),
    "is refused": Failure("prompt_too_long", "It cannot be trained on."),
    "finds no store": Failure("store_error", "The store does not answer.", retryable=True),
}
Report = dict[str, Any]


@dataclass
class Course:
    """What an attempt does, by virtual time."""

    attempt: Attempt
    began_us: int
    steps_us: list[int]
    ending: str
    """``succeeds``, one of FAILURES, ``hangs``, or ``kills its worker``."""
    minds_us: int | None
    """How long it takes to stop when it is asked to; None: it does not listen."""
    lease_us: int
    result: Report | None = None
    stop_at_us: int | None = None
    ended: str | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def ends_us(self) -> int:
        return self.steps_us[-1]


@dataclass
class FakeWorker:
    name: str
    pool: str
    node: str
    ready_us: int
    outlives_leases: bool
    courses: dict[AttemptKey, Course] = field(default_factory=dict)
    silent_until_us: int = 0
    dead: bool = False

    @property
    def holds(self) -> list[HeldAttempt]:
        attempts = [course.attempt for course in self.courses.values()]
        return [HeldAttempt(attempt.key, attempt.pack_key, attempt.workers) for attempt in attempts]


class SimulatedCluster:
    """All workers of a cluster, and the objects that they stored."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.rng = simulation.rng
        self.workers: list[FakeWorker] = []
        self.objects: dict[str, str] = {}
        """Prefix -> digest of what is whole there."""
        self.died_on: dict[AttemptKey, str] = {}
        """Attempts that nobody has missed yet, and the node where their worker died."""
        self.poisoned: dict[uuid.UUID, set[str]] = {}
        """Jobs that have brought workers down, and on which nodes."""
        self._numbers = itertools.count()
        self.nodes = [f"node-{next(self._numbers)}" for _ in range(NODES)]
        self.fill()

    def launcher(self, agent: str) -> "SimulatedLauncher":
        return SimulatedLauncher(self, agent)

    def fill(self) -> None:
        """Replace workers that are gone."""
        for pool, count in (("light", 1), ("torch", SLOTS)):
            for _ in range(count - sum(worker.pool == pool for worker in self.workers)):
                ready_us = self.simulation.now_us + self.rng.randrange(3 * SECOND)
                name = f"{pool}-{next(self._numbers)}"
                node = min(self.nodes, key=lambda node: sum(worker.node == node for worker in self.workers))
                self.workers.append(FakeWorker(name, pool, node, ready_us, self.rng.random() < 0.3))

    def lose_node(self) -> None:
        """A node dies with its workers, and another comes."""
        if self.simulation.harm.node_loss_s and not self.simulation.calm:
            gone = self.rng.choice(self.nodes)
            self.simulation.note("cluster", f"loses {gone}")
            for worker in [worker for worker in self.workers if worker.node == gone]:
                self.bury(worker)
            self.nodes[self.nodes.index(gone)] = f"node-{next(self._numbers)}"
            self.simulation.after(self.rng.expovariate(1 / self.simulation.harm.node_loss_s), self.lose_node)

    def bury(self, worker: FakeWorker) -> None:
        worker.dead = True
        self.simulation.note(worker.name, f"dies on {worker.node}")
        self.workers.remove(worker)
        self.died_on |= dict.fromkeys(worker.courses, worker.node)

    def begin(self, worker: FakeWorker, attempt: Attempt, lease_s: float) -> None:
        """Draw the course of an attempt."""
        now_us, rng = self.simulation.now_us, self.rng
        kind = attempt.spec["kind"]
        count = 1 if kind != "train" else rng.randint(1, 6)
        steps = list(itertools.accumulate((rng.randrange(SECOND, 8 * SECOND) for _ in range(count)), initial=now_us))
        endings = ["succeeds", *FAILURES, "hangs", "kills its worker"]
        weights = [70, 7, 4, 7, 4, 8] if not self.simulation.calm else [1, 0, 0, 0, 0, 0]
        minds_us = rng.randrange(4 * SECOND) if self.simulation.calm or rng.random() < 0.85 else None
        course = Course(
            attempt,
            now_us,
            steps[1:],
            rng.choices(endings, weights)[0],
            minds_us,
            now_us + int(lease_s * SECOND),
        )
        self.simulation.note(worker.name, f"begins {attempt.key}, which {course.ending} at {course.ends_us}")
        worker.courses[attempt.key] = course

    def live(self) -> None:
        """Bring every worker to the present."""
        for worker in list(self.workers):
            courses = list(worker.courses.values())
            for course in courses:
                self._advance(worker, course)
            expired = [course for course in courses if course.lease_us < self.simulation.now_us]
            if not worker.dead and courses and len(expired) == len(courses) and not worker.outlives_leases:
                self.bury(worker)

    def _advance(self, worker: FakeWorker, course: Course) -> None:
        now_us = self.simulation.now_us
        reached = course.ends_us
        if course.stop_at_us is not None:
            reached = min(reached, course.stop_at_us)
        for step, step_us in enumerate(course.steps_us, start=1):
            if step_us <= min(now_us, reached) and course.ended is None and not self._has(course, step):
                self._report(course, step)
        if course.ended is not None or worker.dead or now_us < reached:
            return
        if course.stop_at_us is not None and course.stop_at_us < course.ends_us:
            course.ended = "stopped"
        elif course.ending == "kills its worker":
            self.poisoned.setdefault(course.attempt.key.job_id, set()).add(worker.node)
            self.bury(worker)
        elif course.ending != "hangs":
            course.ended = course.ending
            if course.ending == "succeeds":
                course.result = self._finish(course.attempt)

    @staticmethod
    def _has(course: Course, step: int) -> bool:
        return any(event.message == f"Step {step}." for event in course.events)

    def _report(self, course: Course, step: int) -> None:
        course.events.append(Event(len(course.events) + 1, "info", "message", f"Step {step}."))
        attempt = course.attempt
        if attempt.spec["kind"] == "train" and step % 2 == 0:
            first = attempt.checkpoint["step"] if attempt.checkpoint is not None else 0
            prefix = f"{checkpoints_prefix(attempt.org_id, attempt.key.job_id)}/f{attempt.key.fence}-{step}"
            digest = hashlib.sha256(prefix.encode()).hexdigest()
            self.objects[prefix] = digest
            z = FileEntry(name="z.safetensors", size_bytes=1, sha256=digest).model_dump()
            report = {"type": "checkpoint", "step": first + step, "key_prefix": prefix, "digest": digest, "z": z}
            report |= {"size_bytes": 1, "metrics": {}}
            course.events.append(Event(len(course.events) + 1, "info", "message", "Checkpoint.", report))

    def _finish(self, attempt: Attempt) -> Report:
        key = attempt.key
        match attempt.spec["kind"]:
            case "validate":
                return {"validation": VALIDATION}
            case "evaluate":
                rewards = self.rng.choice(REWARDS)
                parsed = [True] * len(rewards)
                rows_key = f"{attempt.key_prefix}/rows.jsonl"
                return {"rewards": rewards, "parsed": parsed, "pass_at_k": None, "rows_key": rows_key}
        sha256 = hashlib.sha256(str(key).encode()).hexdigest()
        files = [FileEntry(name="z.safetensors", size_bytes=1, sha256=sha256)]
        manifest = manifest_of(key.job_id, fence=key.fence, files=files)
        assert attempt.key_prefix not in self.objects, "an attempt has written twice"
        self.objects[attempt.key_prefix] = manifest.digest
        return {"manifest": manifest.model_dump(mode="json"), "key_prefix": attempt.key_prefix, "trained_tokens": 7}


VALIDATION = {
    "rows": 40,
    "prompts": 40,
    "columns": {"answer": 40},
    "duplicate_count": 0,
    "problem_count": 0,
    "problems": [],
    "rows_with_target": 0,
    "first_line_with_target": None,
    "first_line_without_target": 1,
}


class SimulatedLauncher:
    """What one agent sees of the cluster. Each question is a moment at which the agent may be stopped."""

    def __init__(self, cluster: SimulatedCluster, agent: str) -> None:
        self._cluster = cluster
        self._agent = agent

    def restore_pool_sizes(self) -> None:
        self._ask("restore_pool_sizes")
        self._cluster.fill()

    def clean_up(self) -> None:
        return

    def slots(self) -> int:
        return SLOTS

    def leaving(self) -> set[AttemptKey]:
        return set()

    def died_on(self, key: AttemptKey) -> str | None:
        return self._cluster.died_on.pop(key, None)

    def nodes(self) -> set[str]:
        return set(self._cluster.nodes)

    def free(self, pool: str) -> int:
        self._ask("free")
        return sum(not worker.courses for worker in self._ready(pool))

    def packs(self, pool: str) -> set[str]:
        return open_packs((worker.holds for worker in self._ready(pool)), jobs_per_worker=JOBS_PER_WORKER)

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        self._ask(f"start {attempt.key}")
        if (holder := self._holder(attempt.key)) is not None:
            return holder.name
        ready = {worker.name: worker for worker in self._ready(pool)}
        held = {name: worker.holds for name, worker in ready.items()}
        worker = ready[choose_worker(pool, held, attempt.pack_key, jobs_per_worker=JOBS_PER_WORKER)]
        if self._falls_silent(worker) and self._cluster.rng.random() < 0.5:
            raise WorkerSilentError(f"{worker.name} has not heard of it")
        self._cluster.begin(worker, attempt, lease_s)
        if worker.silent_until_us > self._now_us:
            raise WorkerSilentError(f"{worker.name} has not answered")
        return worker.name

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        self._ask(f"poll {key}")
        course = self._answering(key).courses[key]
        course.lease_us = self._now_us + int(lease_s * SECOND)
        return self._status(course, after_seq)

    def request_stop(self, key: AttemptKey) -> None:
        self._ask(f"request_stop {key}")
        course = self._answering(key).courses[key]
        if course.minds_us is not None and course.stop_at_us is None:
            course.stop_at_us = self._now_us + course.minds_us

    def kill(self, key: AttemptKey) -> None:
        self._ask(f"kill {key}")
        holder = self._holder(key)
        if holder is not None:
            self._check_worth_killing(holder, key)
            self._cluster.bury(holder)
            for one in holder.courses:
                self._cluster.died_on.pop(one, None)

    def forget(self, key: AttemptKey) -> None:
        self._ask(f"forget {key}")
        worker = self._answering(key)
        if worker.courses[key].ended is not None:
            del worker.courses[key]

    def running(self) -> dict[AttemptKey, str]:
        self._ask("running")
        return {key: worker.name for worker in self._cluster.workers for key in worker.courses}

    @property
    def _now_us(self) -> int:
        return self._cluster.simulation.now_us

    def _ask(self, what: str) -> None:
        self._cluster.simulation.note(self._agent, what)
        self._cluster.simulation.pause()
        self._cluster.live()

    def _ready(self, pool: str) -> list[FakeWorker]:
        return [worker for worker in self._cluster.workers if worker.pool == pool and worker.ready_us <= self._now_us]

    def _holder(self, key: AttemptKey) -> FakeWorker | None:
        return next((worker for worker in self._cluster.workers if key in worker.courses), None)

    def _answering(self, key: AttemptKey) -> FakeWorker:
        worker = self._holder(key)
        if worker is None:
            raise WorkerLostError(f"no worker holds attempt {key}")
        if self._falls_silent(worker):
            raise WorkerSilentError(f"{worker.name} does not answer")
        return worker

    def _falls_silent(self, worker: FakeWorker) -> bool:
        simulation = self._cluster.simulation
        if worker.silent_until_us <= self._now_us and simulation.rng.random() < simulation.harm.silence:
            # For one question, or until long after its leases have run out.
            silent_s = simulation.rng.choice((0.0, simulation.rng.uniform(1, 60)))
            simulation.note(worker.name, f"is silent for {silent_s:.3f} s")
            worker.silent_until_us = self._now_us + max(1, int(silent_s * SECOND))
        return worker.silent_until_us > self._now_us

    @staticmethod
    def _status(course: Course, after_seq: int) -> AttemptStatus:
        progress, events = len(course.events), course.events[after_seq:]
        match course.ended:
            case None:
                return AttemptStatus("running", progress, events)
            case "stopped":
                return AttemptStatus("stopped", progress, events)
            case "succeeds":
                return AttemptStatus("succeeded", progress, events, result=course.result)
            case ended:
                return AttemptStatus("failed", progress, events, failure=FAILURES[ended])

    def _check_worth_killing(self, worker: FakeWorker, key: AttemptKey) -> None:
        """No attempt is killed that owns its job, is wanted, answers, and gets on."""
        course = worker.courses[key]
        sound = course.ending != "hangs" and course.stop_at_us is None and course.minds_us is not None
        if sound and worker.silent_until_us <= self._now_us:
            statement = (
                "SELECT 1 FROM jobs WHERE id = %s AND fence = %s AND lease_until IS NOT NULL AND desired = 'run'"
            )
            if self._cluster.simulation.database.rows(statement, key.job_id, key.fence):
                self._cluster.simulation.failures.append(f"{self._agent} kills attempt {key}, which is sound")
