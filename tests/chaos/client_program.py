"""A client that enqueues, cancels, pauses and resumes jobs: ``client_program.py <seed> <journal> <world>``.

What it was told has happened goes into the journal, a line each, and must be true for ever. Where the answer is lost it
asks again. ``world`` is a JSON file with the ids of what its jobs belong to, and a dataset's name, size and digest.
"""

import json
import random
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from zhub.database.sessions import make_engine, tenant_session
from zhub.datasets import files
from zhub.errors import ConflictError, UnavailableError
from zhub.models import Job
from zhub.process.config import Settings
from zhub.process.wakeup import SCHEDULER, open_wakeup
from zhub.queue import jobs
from zhub.queue.desired import request_cancel, request_pause, request_resume
from zhub.tenancy.keys import Caller

MAX_WAITING = 5
REQUESTS: dict[str, Callable[[Session, uuid.UUID], Job]] = {
    "cancel": request_cancel,
    "pause": request_pause,
    "resume": request_resume,
}


class Client:
    def __init__(self, seed: str, journal: Path, world: dict[str, Any]) -> None:
        settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
        self.stopping = threading.Event()
        self._engine = make_engine(settings.database_url, pool_size=1)
        self._wakeup = open_wakeup(settings.redis_url)
        self._rng = random.Random(seed)
        self._journal = journal.open("a", buffering=1)
        self._world = world
        self._org_id = uuid.UUID(world["org_id"])

    def run(self) -> None:
        """Do something several times a second until ``stopping`` is set."""
        while not self.stopping.wait(self._rng.uniform(0.02, 0.2)):
            kind = self._rng.choices(("train", "validate", *REQUESTS), (10, 1, 2, 3, 4))[0]
            if kind == "train":
                self._ask("enqueue", partial(self._enqueue, uuid.UUID(int=self._rng.getrandbits(128)).hex))
            elif kind == "validate":
                self._ask("enqueue", self._register)
            elif (found := self._ask("look", self._unfinished)) and (ids := found[kind != "resume"]):
                self._ask(kind, partial(self._request_change, kind, self._rng.choice(ids)))
            self._wakeup.notify(SCHEDULER)

    def _ask(self, what: str, act: Callable[[Session], Any]) -> Any:
        """The same again and again until the answer arrives; a job that it names goes into the journal."""
        while True:
            try:
                with tenant_session(self._engine, self._org_id) as session:
                    answer = act(session)
            except ConflictError:
                return None  # the job ended first
            except UnavailableError:
                if self.stopping.wait(0.1):
                    return None
                continue
            if isinstance(answer, uuid.UUID):
                self._journal.write(json.dumps({"asked": what, "job": str(answer)}) + "\n")
            return answer

    def _enqueue(self, key: str, session: Session) -> uuid.UUID | None:
        """Enqueue a job, once however often it is asked."""
        found = session.scalar(select(Job.id).where(Job.idempotency_key == key))
        if found is not None:
            return found
        waiting = select(func.count()).select_from(Job).where(Job.finished_at.is_(None), Job.desired == "run")
        if (session.scalar(waiting) or 0) >= MAX_WAITING:
            return None
        job = Job(
            org_id=self._org_id,
            project_id=uuid.UUID(self._world["project_id"]),
            base_model_id=uuid.UUID(self._world["base_model_id"]),
            expert_id=uuid.UUID(self._rng.choice(self._world["expert_ids"])),
            kind="train",
            spec={"steps": self._rng.randint(2, 10), "step_s": 0.05},
            pack_key="chaos",
            idempotency_key=key,
        )
        jobs.enqueue(session, job, "Enqueued.")
        return job.id

    def _register(self, session: Session) -> uuid.UUID:
        """Register a dataset file, whose validation needs the store."""
        project_id = uuid.UUID(self._world["project_id"])
        caller = Caller(uuid.UUID(int=0), self._org_id, project_id, "main", frozenset())
        file = self._world["file"] | {
            "filename": f"{uuid.uuid4().hex}.jsonl"
        }  # equal bytes under one name are one file
        version = files.register(session, caller, purpose="fine-tune", **file)
        return session.scalars(select(Job.id).where(Job.dataset_version_id == version.id)).one()

    def _request_change(self, kind: str, job_id: uuid.UUID, session: Session) -> uuid.UUID:
        return REQUESTS[kind](session, job_id).id

    def _unfinished(self, session: Session) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
        """Training jobs that have not ended: those that shall pause, and all others."""
        rows = session.execute(
            select(Job.id, Job.desired).where(Job.kind == "train", Job.finished_at.is_(None)).order_by(Job.id)
        ).all()
        return [row.id for row in rows if row.desired == "pause"], [row.id for row in rows if row.desired != "pause"]


def main() -> None:
    client = Client(sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
    signal.signal(signal.SIGTERM, lambda _signal, _frame: client.stopping.set())
    client.run()


if __name__ == "__main__":
    main()
