"""The agent on real SQL and worker threads: what it does when attempts, workers, databases and agents come to harm."""

import contextlib
import hashlib
import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from claims import claim_one
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import Engine, func, select, text
from suites import manifest_of

from zhub import scheduler
from zhub.database.sessions import make_engine, system_session, tenant_session
from zhub.datasets import files
from zhub.embedded.postgres import Urls
from zhub.errors import PromptTooLongError, StoreError, UnavailableError
from zhub.models import Attempt as AttemptRow
from zhub.models import DatasetVersion, ExpertVersion, Job, JobEvent
from zhub.process.config import Settings
from zhub.process.wakeup import SCHEDULER, PollingWakeup, job_topic
from zhub.queue import attempts as job_attempts
from zhub.queue import leadership
from zhub.queue.desired import request_cancel, request_pause, request_resume
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import checkpoints_prefix, dataset_key
from zhub.tenancy.keys import Caller
from zhub_workers.agent.launcher import ThreadLauncher, WorkerLostError, WorkerSilentError
from zhub_workers.agent.loop import STOP_GRACE_S, Agent
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey, AttemptStoppedError, Runner
from zhub_workers.worker import light_runner

LEADER = uuid.UUID(int=7)
Report = dict[str, Any]


def result_of(attempt: Attempt) -> Report:
    """What training returns."""
    manifest = manifest_of(attempt.key.job_id, fence=attempt.key.fence)
    return {"manifest": manifest.model_dump(mode="json"), "key_prefix": attempt.key_prefix, "trained_tokens": 7}


@dataclass
class Training:
    """A runner that trains until it is told that it has finished."""

    obedient: bool = True
    started: threading.Event = field(default_factory=threading.Event)
    finish: threading.Event = field(default_factory=threading.Event)
    runs: list[AttemptKey] = field(default_factory=list)

    def __call__(self, attempt: Attempt, context: AttemptContext) -> Report:
        self.runs.append(attempt.key)
        context.emit("info", f"Attempt {attempt.key.fence} trains.")
        self.started.set()
        while not self.finish.wait(0.002):
            if self.obedient:
                context.raise_if_stopped()
        context.emit("info", "Trained.")
        return result_of(attempt)


def fails_with(error: BaseException) -> Runner:
    def run(_attempt: Attempt, _context: AttemptContext) -> Report:
        raise error

    return run


@dataclass
class House:
    """One cluster with its database, seen by the test as by the scheduler."""

    engine: Engine
    settings: Settings
    store: DirectoryStore
    until: Callable[..., Any]

    def agent(self, launcher: ThreadLauncher, **settings: Any) -> Agent:
        return Agent(self.settings.model_copy(update=settings), self.engine, launcher)

    def round(self, agent: Agent) -> None:
        """A round of the agent that also reconciles, and a pass of the leader in which no back-off is waited for."""
        agent._reconciled_at = float("-inf")
        agent.round()
        self.lead()

    def lead(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET not_before = NULL WHERE state = 'queued'"))
        with system_session(self.engine) as session:
            term = leadership.elect(session, "scheduler", LEADER, lease_s=60)
        assert term is not None
        scheduler.maintenance_pass(self.engine, LEADER, term)
        scheduler.admission_pass(self.engine, LEADER, term)

    def drive(self, agent: Agent, job_id: uuid.UUID, *states: str) -> Job:
        """Go round until the job is in one of these states."""

        def reached() -> bool:
            self.round(agent)
            return self.job(job_id).state in states

        self.until(reached)
        return self.job(job_id)

    def drive_first_attempt_to_its_end(self, agent: Agent, job_id: uuid.UUID) -> None:
        def ended() -> bool:
            self.round(agent)
            return self.attempts(job_id)[0][1] is not None

        self.until(ended)

    def job(self, job_id: uuid.UUID) -> Job:
        with system_session(self.engine) as session:
            return session.scalars(select(Job).where(Job.id == job_id)).one()

    def attempts(self, job_id: uuid.UUID) -> list[tuple[int, str | None]]:
        with system_session(self.engine) as session:
            statement = select(AttemptRow.fence, AttemptRow.outcome).where(AttemptRow.job_id == job_id)
            return [(row.fence, row.outcome) for row in session.execute(statement.order_by(AttemptRow.fence))]

    def versions(self) -> int:
        with system_session(self.engine) as session:
            return session.scalar(select(func.count()).select_from(ExpertVersion)) or 0

    def file(self, version_id: uuid.UUID) -> DatasetVersion:
        with system_session(self.engine) as session:
            return session.scalars(select(DatasetVersion).where(DatasetVersion.id == version_id)).one()

    def job_of_file(self, version_id: uuid.UUID) -> uuid.UUID:
        with system_session(self.engine) as session:
            return session.scalars(select(Job.id).where(Job.dataset_version_id == version_id)).one()


@pytest.fixture
def house(
    system_engine: Engine, database: Urls, store: DirectoryStore, tmp_path: Path, until: Callable[..., Any]
) -> House:
    settings = Settings(
        database_url=database.system,
        store_url=store.root.as_uri(),
        secret_key=SecretStr("not needed"),
        cache_dir=tmp_path / "cache",
    )
    return House(system_engine, settings, store, until)


@pytest.fixture
def training() -> Iterator[Training]:
    made = Training()
    yield made
    made.finish.set()


@pytest.fixture
def job_id(make_job: Callable[..., uuid.UUID], caller: Caller) -> uuid.UUID:
    return make_job(caller)


@pytest.fixture
def send(house: House, caller: Caller) -> Callable[[bytes], uuid.UUID]:
    """Upload a dataset file; return the id of its version."""

    def put(content: bytes, name: str = "sums.jsonl") -> uuid.UUID:
        sha256 = hashlib.sha256(content).hexdigest()
        house.store.put(dataset_key(caller.org_id, sha256), io.BytesIO(content))
        with tenant_session(house.engine, caller.org_id) as session:
            version = files.register(
                session, caller, filename=name, purpose="fine-tune", size_bytes=len(content), sha256=sha256
            )
        return version.id

    return put


def launcher(train: Runner, light: Runner = light_runner.run, *, jobs_per_worker: int = 1) -> ThreadLauncher:
    return ThreadLauncher({"light": light, "torch": train}, jobs_per_worker=jobs_per_worker)


ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n} + 1 ="}], "answer": str(n + 1)}).encode() + b"\n"
    for n in range(20)
)


# Validation, from the file to its status


def test_a_dataset_is_validated(house: House, send: Callable[[bytes], uuid.UUID], training: Training) -> None:
    version_id = send(ROWS)
    house.drive(house.agent(launcher(training)), house.job_of_file(version_id), "succeeded")
    version = house.file(version_id)
    assert version.status == "processed" and version.validation is not None and version.validation["rows"] == 20


def test_a_validation_tells_its_story_in_events(
    house: House, send: Callable[[bytes], uuid.UUID], training: Training
) -> None:
    job_id = house.job_of_file(send(ROWS))
    house.drive(house.agent(launcher(training)), job_id, "succeeded")
    with system_session(house.engine) as session:
        told = session.scalars(select(JobEvent.message).where(JobEvent.job_id == job_id).order_by(JobEvent.position))
        assert list(told) == [
            "Validation of sums.jsonl enqueued.",
            "The job is admitted.",
            "Attempt 1 started.",
            "The job is running.",
            "The job has succeeded.",
        ]


def test_what_is_wrong_with_a_dataset_is_a_result_and_no_failure(
    house: House, send: Callable[[bytes], uuid.UUID], training: Training
) -> None:
    version_id = send(b"nonsense\n")
    house.drive(house.agent(launcher(training)), house.job_of_file(version_id), "succeeded")
    assert house.file(version_id).status == "error"


def test_bytes_that_are_not_those_uploaded_are_never_validated(
    house: House, send: Callable[[bytes], uuid.UUID], training: Training
) -> None:
    version_id = send(ROWS)
    house.store.put(house.file(version_id).key, io.BytesIO(b"tampered"))
    failed = house.drive(house.agent(launcher(training)), house.job_of_file(version_id), "failed")
    assert failed.error is not None and failed.error["code"] == "digest_mismatch"
    assert house.file(version_id).status == "error"


# Failures


@pytest.mark.parametrize(
    ("error", "code", "outcome", "attempts"),
    [
        (PromptTooLongError(3, 900, 512), "prompt_too_long", "failed_user", 1),
        (MemoryError(), "out_of_memory", "failed_user", 1),
        (ZeroDivisionError("x"), "internal_error", "failed_user", 1 + job_attempts.MAX_USER_FAILURES),
        (SystemExit(3), "internal_error", "failed_user", 1 + job_attempts.MAX_USER_FAILURES),
        (StoreError("away", key="k"), "store_error", "failed_infra", 1 + job_attempts.MAX_INFRA_FAILURES),
        (UnavailableError("away"), "unavailable", "failed_infra", 1 + job_attempts.MAX_INFRA_FAILURES),
    ],
)
def test_a_failure_is_retried_as_often_as_its_cause_deserves(
    house: House, job_id: uuid.UUID, error: BaseException, code: str, outcome: str, attempts: int
) -> None:
    failed = house.drive(house.agent(launcher(fails_with(error))), job_id, "failed")
    assert failed.error is not None and failed.error["code"] == code
    assert house.attempts(job_id) == [(fence, outcome) for fence in range(1, attempts + 1)]


@pytest.mark.parametrize("text_of_error", ["a\0b", "\ud800", "\udfff…"])
def test_a_failure_may_quote_anything(house: House, job_id: uuid.UUID, text_of_error: str) -> None:
    failed = house.drive(house.agent(launcher(fails_with(StoreError(text_of_error, key="k")))), job_id, "failed")
    assert failed.error is not None and failed.error["code"] == "store_error"


def emits(message: str, data: Report | None = None, level: str = "info") -> Runner:
    def run(attempt: Attempt, context: AttemptContext) -> Report:
        context.emit(level, message, data)
        return result_of(attempt)

    return run


def returns(report: Report) -> Runner:
    return lambda _attempt, _context: report


UNRECORDABLE: dict[str, Runner] = {
    "no manifest": returns({}),
    "an empty manifest": returns({"manifest": {}, "key_prefix": "k", "trained_tokens": 1}),
    "NUL in the key": lambda attempt, _context: result_of(attempt) | {"key_prefix": "\0"},
    "a number too large": lambda attempt, _context: result_of(attempt) | {"trained_tokens": 2**63},
    "an event with NUL": emits("a\0b"),
    "an event with half a character": emits("\ud800"),
    "a metric that is no number": emits("step 1", {"type": "metrics", "loss": float("nan")}),
    "a level that is none": emits("x", level="fatal"),
    "a checkpoint without a place": emits("x", {"type": "checkpoint", "step": 1}),
}


@pytest.mark.parametrize("what", UNRECORDABLE)
def test_a_report_that_cannot_be_recorded_fails_its_job_and_not_the_agent(
    house: House, job_id: uuid.UUID, send: Callable[[bytes], uuid.UUID], what: str
) -> None:
    agent = house.agent(launcher(UNRECORDABLE[what]))
    failed = house.drive(agent, job_id, "failed")
    assert failed.error is not None and failed.error["code"] == "internal_error"
    house.drive(agent, house.job_of_file(send(ROWS)), "succeeded")


def test_a_validation_that_cannot_be_recorded_leaves_its_file_in_error(
    house: House, send: Callable[[bytes], uuid.UUID], training: Training
) -> None:
    poison: Report = {"validation": {"problem_count": 0, "columns": {"\0": 1}}}
    version_id = send(ROWS)
    house.drive(house.agent(launcher(training, returns(poison))), house.job_of_file(version_id), "failed")
    assert house.file(version_id).status == "error"


# Stopping


@pytest.fixture
def running(house: House, job_id: uuid.UUID, training: Training) -> tuple[Agent, ThreadLauncher]:
    """The job runs under an agent."""
    held = launcher(training)
    agent = house.agent(held)
    house.drive(agent, job_id, "running")
    return agent, held


def cancel(house: House, caller: Caller, job_id: uuid.UUID) -> None:
    with tenant_session(house.engine, caller.org_id) as session:
        request_cancel(session, job_id)


def test_a_cancelled_attempt_stops_and_leaves_no_version(
    house: House, caller: Caller, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    cancel(house, caller, job_id)
    house.drive(running[0], job_id, "cancelled")
    assert (house.attempts(job_id), house.versions()) == ([(1, "cancelled")], 0)


def test_a_worker_is_free_again_after_a_cancellation(
    house: House,
    caller: Caller,
    job_id: uuid.UUID,
    running: tuple[Agent, ThreadLauncher],
    training: Training,
    make_job: Callable[..., uuid.UUID],
) -> None:
    cancel(house, caller, job_id)
    house.drive(running[0], job_id, "cancelled")
    training.finish.set()
    house.drive(running[0], make_job(caller), "succeeded")


def pause(house: House, caller: Caller, job_id: uuid.UUID) -> None:
    with tenant_session(house.engine, caller.org_id) as session:
        request_pause(session, job_id)


def resume(house: House, caller: Caller, job_id: uuid.UUID) -> None:
    with tenant_session(house.engine, caller.org_id) as session:
        request_resume(session, job_id)


def test_a_paused_job_is_paused_once_its_attempt_has_stopped(
    house: House, caller: Caller, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    pause(house, caller, job_id)
    house.drive(running[0], job_id, "paused")
    assert house.attempts(job_id) == [(1, "paused")]


def test_a_paused_job_frees_its_worker_for_another(
    house: House,
    caller: Caller,
    job_id: uuid.UUID,
    running: tuple[Agent, ThreadLauncher],
    training: Training,
    make_job: Callable[..., uuid.UUID],
) -> None:
    pause(house, caller, job_id)
    house.drive(running[0], job_id, "paused")
    training.finish.set()
    house.drive(running[0], make_job(caller), "succeeded")
    assert house.job(job_id).state == "paused"


class CheckpointsWhenStopped:
    """A runner that leaves a checkpoint when it is told to stop, and finishes when it is given one."""

    def __init__(self) -> None:
        self.began_from: list[Any] = []

    def __call__(self, attempt: Attempt, context: AttemptContext) -> Report:
        self.began_from.append(attempt.checkpoint)
        if attempt.checkpoint is not None:
            return result_of(attempt)
        while not context.should_stop():
            threading.Event().wait(0.002)
        context.emit("info", "Checkpoint after step 7.", checkpoint_of(attempt, 7))
        raise AttemptStoppedError


def checkpoint_of(attempt: Attempt, step: int) -> Report:
    """What a worker reports of a checkpoint."""
    return {
        "type": "checkpoint",
        "step": step,
        "key_prefix": f"{checkpoints_prefix(attempt.org_id, attempt.key.job_id)}/{step:06d}",
        "digest": "d" * 64,
        "size_bytes": 10,
        "z": {"name": "z.safetensors", "size_bytes": 5, "sha256": "e" * 64},
        "metrics": {"valid_reward_mean": 0.5},
    }


def test_a_resumed_job_goes_on_from_the_checkpoint_of_its_pause(
    house: House, caller: Caller, job_id: uuid.UUID
) -> None:
    runner = CheckpointsWhenStopped()
    agent = house.agent(launcher(runner))
    house.drive(agent, job_id, "running")
    pause(house, caller, job_id)
    house.drive(agent, job_id, "paused")
    resume(house, caller, job_id)
    house.drive(agent, job_id, "succeeded")
    prefix = f"{checkpoints_prefix(caller.org_id, job_id)}/000007"
    assert runner.began_from == [None, {"key_prefix": prefix, "digest": "d" * 64, "step": 7}]
    assert house.attempts(job_id) == [(1, "paused"), (2, "succeeded")]


def test_a_job_resumed_while_its_attempt_still_stops_goes_on_from_there(
    house: House, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    held = launcher(training)
    agent = house.agent(held)
    house.drive(agent, job_id, "running")
    pause(house, caller, job_id)
    house.drive(agent, job_id, "stopping")
    resume(house, caller, job_id)
    (followed,) = agent._followed.values()
    assert followed.stop_asked_at is not None
    followed.stop_asked_at -= STOP_GRACE_S + 1
    house.round(agent)
    assert (house.attempts(job_id), house.job(job_id).infra_failures) == ([(1, "paused")], 0)
    training.finish.set()
    house.drive(agent, job_id, "succeeded")


class Deaf(ThreadLauncher):
    """Its workers do not hear that they should stop, until ``hears``."""

    hears = False

    def request_stop(self, key: AttemptKey) -> None:
        if not self.hears:
            raise WorkerSilentError("no answer")
        super().request_stop(key)


def test_an_attempt_that_was_to_stop_and_has_not_heard_of_it_goes_on_when_its_job_is_wanted_again(
    house: House, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    agent = house.agent(Deaf({"light": training, "torch": training}))
    house.drive(agent, job_id, "running")
    pause(house, caller, job_id)
    house.drive(agent, job_id, "stopping")
    (followed,) = agent._followed.values()
    assert followed.stop_asked_at is not None
    followed.stop_asked_at -= STOP_GRACE_S + 1
    resume(house, caller, job_id)
    house.round(agent)
    training.finish.set()
    house.drive(agent, job_id, "succeeded")
    assert house.attempts(job_id) == [(1, "succeeded")]


def test_an_attempt_is_asked_to_stop_until_it_has_heard(
    house: House, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    held = Deaf({"light": training, "torch": training})
    agent = house.agent(held)
    house.drive(agent, job_id, "running")
    pause(house, caller, job_id)
    house.drive(agent, job_id, "stopping")
    held.hears = True
    house.drive(agent, job_id, "paused")
    assert house.attempts(job_id) == [(1, "paused")]


def test_a_job_that_finishes_before_it_hears_of_its_pause_has_succeeded(
    house: House, caller: Caller, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    training.obedient = False
    training.finish.set()
    pause(house, caller, job_id)
    house.drive(running[0], job_id, "succeeded", "paused")
    assert (house.job(job_id).state == "succeeded") == (house.versions() == 1)


def test_an_agent_that_takes_over_in_the_middle_of_a_pause_finishes_it(
    house: House, caller: Caller, job_id: uuid.UUID
) -> None:
    runner = CheckpointsWhenStopped()
    held = launcher(runner)
    first = house.agent(held)
    house.drive(first, job_id, "running")
    pause(house, caller, job_id)
    house.drive(first, job_id, "stopping", "paused")
    second = house.agent(held)
    house.drive(second, job_id, "paused")
    resume(house, caller, job_id)
    house.drive(second, job_id, "succeeded")
    assert [kept and kept["step"] for kept in runner.began_from] == [None, 7]


def test_a_job_whose_attempts_stop_unasked_is_not_tried_for_ever(house: House, job_id: uuid.UUID) -> None:
    failed = house.drive(house.agent(launcher(fails_with(AttemptStoppedError()))), job_id, "failed")
    assert failed.error is not None and failed.error["code"] == "stopped"
    assert len(house.attempts(job_id)) == 1 + job_attempts.MAX_INFRA_FAILURES


def test_an_attempt_that_ignores_the_request_to_stop_is_killed_after_the_grace(
    house: House, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    held = launcher(training)
    agent = house.agent(held)
    house.drive(agent, job_id, "running")
    cancel(house, caller, job_id)
    house.drive(agent, job_id, "stopping")
    (followed,) = agent._followed.values()
    assert followed.stop_asked_at is not None and held.running()
    followed.stop_asked_at -= STOP_GRACE_S + 1
    house.round(agent)
    assert (house.job(job_id).state, held.running(), held.free("torch")) == ("cancelled", {}, True)


def test_within_the_grace_an_attempt_is_only_asked(
    house: House, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    agent = house.agent(launcher(training))
    house.drive(agent, job_id, "running")
    cancel(house, caller, job_id)
    for _ in range(3):
        house.round(agent)
    assert house.job(job_id).state == "stopping"


def test_a_result_that_comes_after_the_cancellation_is_dropped(
    house: House, caller: Caller, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False
    held = launcher(training)
    agent = house.agent(held)
    house.drive(agent, job_id, "running")
    cancel(house, caller, job_id)
    training.finish.set()
    house.drive(agent, job_id, "cancelled")
    assert (house.versions(), held.free("torch")) == (0, True)


def test_an_attempt_without_progress_is_killed_and_paid_by_the_platform(
    house: House, job_id: uuid.UUID, training: Training
) -> None:
    training.obedient = False  # asked whether to stop, an attempt shows progress
    agent = house.agent(launcher(training), stall_s=0.05)
    house.drive(agent, job_id, "running")
    house.drive_first_attempt_to_its_end(agent, job_id)
    assert house.attempts(job_id)[0] == (1, "failed_infra")


def test_an_attempt_that_shows_progress_is_not_taken_for_stalled(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    agent = house.agent(running[1], stall_s=0.5)
    training.started.wait(5)
    rounds = 0

    def enough() -> bool:
        nonlocal rounds
        rounds += 1
        house.round(agent)
        (followed,) = agent._followed.values()
        return rounds >= 20 and followed.progress > 20

    house.until(enough)
    assert house.attempts(job_id) == [(1, None)]


# Jobs that share a worker

Make = Callable[..., uuid.UUID]


@pytest.fixture
def shared(training: Training) -> ThreadLauncher:
    """A worker that takes up to three small jobs on one base."""
    return launcher(training, jobs_per_worker=3)


def sharing(house: House, shared: ThreadLauncher) -> Agent:
    return house.agent(shared, slots=1, jobs_per_worker=3)


def states_after(house: House, agent: Agent, jobs_: list[uuid.UUID], rounds: int = 4) -> list[str]:
    for _ in range(rounds):
        house.round(agent)
    return [house.job(job_id).state for job_id in jobs_]


def test_small_jobs_on_one_base_run_together(
    house: House, caller: Caller, make_job: Make, training: Training, shared: ThreadLauncher
) -> None:
    made = [make_job(caller, pack_key="basis") for _ in range(4)]
    agent = sharing(house, shared)
    assert states_after(house, agent, made) == ["running", "running", "running", "queued"]
    training.finish.set()
    for job_id in made:
        house.drive(agent, job_id, "succeeded")
    assert house.versions() == 4


def test_a_job_that_cannot_share_gets_the_next_free_worker_and_no_later_one_goes_first(
    house: House, caller: Caller, make_job: Make, training: Training, shared: ThreadLauncher
) -> None:
    first, alone, later = (make_job(caller, pack_key=key) for key in ("basis", None, "basis"))
    agent = sharing(house, shared)
    assert states_after(house, agent, [first, alone, later]) == ["running", "queued", "queued"]
    training.finish.set()
    house.drive(agent, later, "succeeded")
    assert [key.job_id for key in training.runs] == [first, alone, later]


def test_a_job_that_needs_a_worker_of_its_own_is_not_joined(
    house: House, caller: Caller, make_job: Make, shared: ThreadLauncher
) -> None:
    made = [make_job(caller, pack_key=key) for key in (None, "basis")]
    assert states_after(house, sharing(house, shared), made) == ["running", "queued"]


def test_one_job_of_a_pack_is_cancelled_and_the_others_go_on(
    house: House, caller: Caller, make_job: Make, training: Training, shared: ThreadLauncher
) -> None:
    first, second = (make_job(caller, pack_key="basis") for _ in range(2))
    agent = sharing(house, shared)
    states_after(house, agent, [])
    cancel(house, caller, first)
    house.drive(agent, first, "cancelled")
    training.finish.set()
    house.drive(agent, second, "succeeded")
    assert house.attempts(second) == [(1, "succeeded")]


def test_a_job_whose_neighbour_had_to_be_killed_is_tried_again_without_neighbours(
    house: House, caller: Caller, make_job: Make, training: Training, shared: ThreadLauncher
) -> None:
    training.obedient = False
    first, second, third = (make_job(caller, pack_key="basis") for _ in range(3))
    agent = sharing(house, shared)
    states_after(house, agent, [])
    cancel(house, caller, first)
    house.drive(agent, first, "stopping")
    followed = next(one for one in agent._followed.values() if one.key.job_id == first)
    assert followed.stop_asked_at is not None
    followed.stop_asked_at -= STOP_GRACE_S + 1
    house.drive(agent, second, "running")
    house.round(agent)
    assert [house.job(job_id).state for job_id in (first, second, third)] == ["cancelled", "running", "queued"]
    assert (house.attempts(second), house.job(second).infra_failures) == ([(1, "lost"), (2, None)], 1)
    training.finish.set()
    house.drive(agent, third, "succeeded")


# Agents and workers that go away


def test_a_finished_job_is_published_once(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    training.finish.set()
    house.drive(running[0], job_id, "succeeded")
    for _ in range(3):
        house.round(running[0])
    assert (house.versions(), house.attempts(job_id)) == (1, [(1, "succeeded")])


def test_the_next_agent_adopts_what_the_last_one_began(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    second = house.agent(running[1])
    house.round(second)
    training.finish.set()
    adopted = house.drive(second, job_id, "succeeded")
    assert (adopted.agent_id, training.runs) == (second.id, [AttemptKey(job_id, 1)])
    assert house.attempts(job_id) == [(1, "succeeded")]


def test_a_worker_that_was_dead_before_the_job_came_is_not_its_fault(house: House, job_id: uuid.UUID) -> None:
    died: dict[AttemptKey, str] = {}

    class Dead(ThreadLauncher):
        def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
            died[attempt.key] = f"node-{attempt.key.fence}"
            raise WorkerLostError("the worker died")

        def died_on(self, key: AttemptKey) -> str | None:
            return died.pop(key, None)

        def nodes(self) -> set[str]:
            return {f"node-{fence}" for fence in range(1, 9)}

    failed = house.drive(house.agent(Dead({"light": light_runner.run, "torch": light_runner.run})), job_id, "failed")
    assert failed.error is not None and failed.error["code"] == "lost"


def test_an_agent_that_looks_around_leaves_alone_what_another_begins_meanwhile(
    house: House, job_id: uuid.UUID, training: Training
) -> None:
    class Busy(ThreadLauncher):
        """Between two looks of one agent at it, another has begun something."""

        def running(self) -> dict[AttemptKey, str]:
            if not training.runs:
                other.round()
            return super().running()

    workers = Busy({"light": light_runner.run, "torch": training})
    looking, other = house.agent(workers), house.agent(workers)
    other._reconciled_at = float("inf")
    other._announce()
    house.lead()
    looking._reconcile()
    training.finish.set()
    house.drive(other, job_id, "succeeded")
    assert house.attempts(job_id) == [(1, "succeeded")]


def test_no_event_is_lost_or_repeated_when_the_agent_changes(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    training.finish.set()
    house.drive(house.agent(running[1]), job_id, "succeeded")
    with system_session(house.engine) as session:
        statement = select(JobEvent.message).where(JobEvent.seq.is_not(None)).order_by(JobEvent.position)
        assert list(session.scalars(statement)) == ["Attempt 1 trains.", "Trained."]


def test_an_agent_that_was_replaced_does_no_harm_when_it_wakes_up(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    first, _held = running
    second = house.agent(running[1])
    house.round(second)
    training.finish.set()
    house.drive(second, job_id, "succeeded")
    house.round(first)
    assert (house.versions(), house.job(job_id).state) == (1, "succeeded")


def test_a_job_whose_worker_died_is_tried_again_and_makes_one_version(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    agent, held = running
    held.kill(AttemptKey(job_id, 1))
    house.drive_first_attempt_to_its_end(agent, job_id)
    training.finish.set()
    house.drive(agent, job_id, "succeeded")
    assert (house.attempts(job_id), house.versions()) == ([(1, "lost"), (2, "succeeded")], 1)


def test_a_job_that_another_agent_took_over_is_let_go(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    frozen, frozen_launcher = running
    with house.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET lease_until = now() - interval '1 second'"))
    house.lead()
    house.lead()
    other = house.agent(launcher(training))
    other.round()
    training.finish.set()
    other.round()
    frozen._reconciled_at = float("inf")  # it wakes up in the middle of its round
    frozen.round()
    assert frozen_launcher.running() == {}
    house.drive(other, job_id, "succeeded")
    assert (house.attempts(job_id), house.versions()) == ([(1, "lost"), (2, "succeeded")], 1)


def test_a_worker_that_holds_what_no_row_knows_is_freed(
    house: House, caller: Caller, training: Training, tmp_path: Path
) -> None:
    held = launcher(training)
    key = AttemptKey(uuid.uuid4(), 1)
    held.start("torch", Attempt(key, caller.org_id, {}, "file:///nowhere", tmp_path, None), 60)
    house.round(house.agent(held))
    assert held.running() == {}


def test_a_claim_whose_worker_never_began_is_given_back(house: House, job_id: uuid.UUID, training: Training) -> None:
    agent = house.agent(launcher(training))
    agent._announce()
    house.lead()
    with system_session(house.engine) as session:  # claimed, and then the agent was interrupted
        assert claim_one(session, "train", agent=agent.id) is not None
    training.finish.set()
    house.drive(agent, job_id, "succeeded")
    assert house.attempts(job_id) == [(1, "lost"), (2, "succeeded")]


def test_no_more_is_claimed_than_there_are_free_workers(
    house: House, caller: Caller, make_job: Callable[..., uuid.UUID], training: Training
) -> None:
    made = [make_job(caller, kind="validate") for _ in range(3)]
    agent = house.agent(launcher(training, training))
    house.drive(agent, made[0], "running")
    for _ in range(3):
        house.round(agent)
    assert [house.job(job_id).state for job_id in made] == ["running", "admitted", "admitted"]


def test_stopping_an_agent_leaves_its_attempts_running(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    stopping = threading.Event()
    stopping.set()
    running[0].run(PollingWakeup(), stopping)
    assert (house.job(job_id).state, list(running[1].running())) == ("running", [AttemptKey(job_id, 1)])


def test_those_who_follow_a_job_get_a_hint_when_it_has_something_to_say(
    job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], training: Training
) -> None:
    stopping = threading.Event()
    give_up = time.monotonic() + 20

    class Heard(PollingWakeup):
        """A wake-up that remembers who was told, and ends the loop with the end of the job."""

        topics: list[str] = []

        def notify(self, topic: str) -> None:
            self.topics.append(topic)
            if topic == SCHEDULER:  # a job has ended
                stopping.set()

        def wait(self, topic: str, timeout_s: float) -> None:
            assert time.monotonic() < give_up
            time.sleep(0.01)

    training.finish.set()
    running[0].run(Heard(), stopping)
    assert job_topic(job_id) in Heard.topics


# What it tells of itself


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"zhub_{name}", labels) or 0.0


def test_it_counts_what_a_claim_and_a_start_took(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher], make_job: Callable[..., uuid.UUID]
) -> None:
    agent, _ = running
    before = counted("pickup_seconds_count"), counted("start_seconds_count")
    assert before[0] > 0 and before[1] > 0
    house.round(agent)
    assert (counted("pickup_seconds_count"), counted("start_seconds_count")) == before


def test_it_counts_the_attempts_that_another_claim_has_replaced(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    rejected = counted("fence_rejected_total")
    with system_session(house.engine) as session:
        session.execute(text("UPDATE jobs SET fence = fence + 1"))
    running[0].round()
    assert counted("fence_rejected_total") - rejected == 1


def test_it_counts_workers_that_hold_what_no_row_knows(
    house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]
) -> None:
    orphans = counted("orphan_workers_killed_total")
    with system_session(house.engine) as session:
        session.execute(text("UPDATE jobs SET state = 'queued', lease_until = NULL"))
    running[0]._reconcile()
    assert counted("orphan_workers_killed_total") - orphans == 1


def test_it_counts_workers_that_died(house: House, job_id: uuid.UUID, running: tuple[Agent, ThreadLauncher]) -> None:
    died = counted("lease_lost_total", reason="worker_died")
    running[1].kill(AttemptKey(job_id, 1))
    house.drive_first_attempt_to_its_end(running[0], job_id)
    assert counted("lease_lost_total", reason="worker_died") - died == 1


def test_its_records_name_the_job_and_the_fence(
    house: House, job_id: uuid.UUID, caller: Caller, training: Training, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    training.finish.set()
    house.drive(house.agent(launcher(training)), job_id, "succeeded")
    told = {record["action"]: record for record in map(vars, caplog.records) if record.get("job_id") == job_id}
    assert {"admitted", "started", "ended"} <= told.keys()
    assert told["started"]["fence"] == told["ended"]["fence"] == 1
    assert told["admitted"]["org_id"] == told["started"]["org_id"] == caller.org_id


# The database goes away


@pytest.fixture
def far_engine(proxy: Any, database: Urls) -> Iterator[Engine]:
    """The same database behind the proxy."""
    engine = make_engine(proxy.url(database.system), pool_size=2)
    yield engine
    engine.dispose()


def test_an_agent_whose_database_was_away_goes_on(
    house: House,
    job_id: uuid.UUID,
    training: Training,
    proxy: Any,
    far_engine: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = Agent(house.settings, far_engine, launcher(training))
    house.drive(agent, job_id, "running")
    stopping = threading.Event()

    def pause(_seconds: float) -> None:
        stopping.wait(0.01)

    thread = threading.Thread(target=agent.run, args=(PollingWakeup(pause), stopping))
    proxy.cut()
    thread.start()
    try:
        house.until(lambda: "the database does not answer" in caplog.text)
        training.finish.set()
        proxy.mend()
        house.until(lambda: house.job(job_id).state == "succeeded")
    finally:
        stopping.set()
        thread.join(timeout=15)
    assert (house.attempts(job_id), house.versions()) == ([(1, "succeeded")], 1)


@pytest.mark.parametrize("after", range(8))
def test_a_job_makes_one_version_whichever_acknowledgement_is_lost(
    house: House, job_id: uuid.UUID, training: Training, proxy: Any, far_engine: Engine, after: int
) -> None:
    training.finish.set()
    agent = Agent(house.settings, far_engine, launcher(training))
    agent._announce()
    house.lead()
    proxy.swallow_commits(after=after)

    def succeeded() -> bool:
        with contextlib.suppress(UnavailableError):
            house.round(agent)
        return house.job(job_id).state == "succeeded"

    house.until(succeeded)
    outcomes = [outcome for _fence, outcome in house.attempts(job_id)]
    assert house.versions() == outcomes.count("succeeded") == 1
    assert set(outcomes) <= {"succeeded", "lost"}
