"""An agent driven by hand on real SQL and worker threads, and what its workers run."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from job_moves import lead
from sqlalchemy import Engine, func, select
from suites import manifest_of

from zhub.database.sessions import system_session
from zhub.models import Attempt as AttemptRow
from zhub.models import DatasetVersion, ExpertVersion, Job
from zhub.process.config import Settings
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import checkpoints_prefix
from zhub_workers.agent.launcher import Launcher, ThreadLauncher
from zhub_workers.agent.loop import Agent
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey, AttemptStoppedError, Runner
from zhub_workers.worker import light_runner

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
    """A runner that raises the error."""

    def run(_attempt: Attempt, _context: AttemptContext) -> Report:
        raise error

    return run


@dataclass
class AgentRig:
    """A cluster with its database: drives agents round by round, and leads as its scheduler."""

    engine: Engine
    settings: Settings
    store: DirectoryStore
    until: Callable[..., Any]

    def agent(self, launcher: Launcher, **settings: Any) -> Agent:
        return Agent(self.settings.model_copy(update=settings), self.engine, launcher)

    def round(self, agent: Agent) -> None:
        """A round of the agent that also reconciles, and a pass of the leader in which no back-off is waited for."""
        agent._reconciled_at = float("-inf")
        agent.round()
        lead(self.engine)

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

    def outcomes(self, job_id: uuid.UUID) -> list[str | None]:
        return [outcome for _fence, outcome in self.attempts(job_id)]

    def states(self, job_ids: list[uuid.UUID]) -> list[str]:
        return [self.job(job_id).state for job_id in job_ids]

    def versions(self) -> int:
        with system_session(self.engine) as session:
            return session.scalar(select(func.count()).select_from(ExpertVersion)) or 0

    def file(self, version_id: uuid.UUID) -> DatasetVersion:
        with system_session(self.engine) as session:
            return session.scalars(select(DatasetVersion).where(DatasetVersion.id == version_id)).one()

    def job_of_file(self, version_id: uuid.UUID) -> uuid.UUID:
        with system_session(self.engine) as session:
            return session.scalars(select(Job.id).where(Job.dataset_version_id == version_id)).one()


def thread_launcher(train: Runner, light: Runner = light_runner.run, *, jobs_per_worker: int = 1) -> ThreadLauncher:
    """Workers that are threads, with the runner of each kind of worker."""
    return ThreadLauncher({"light": light, "torch": train}, jobs_per_worker=jobs_per_worker)


def returns(report: Report) -> Runner:
    """A runner that returns the report at once."""
    return lambda _attempt, _context: report


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
