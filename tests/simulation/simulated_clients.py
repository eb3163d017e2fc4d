"""Teams that use the platform while it is harmed: they submit, cancel, pause, resume, redrive, schedule and promote.

A request whose answer is lost is made again, as the product's clients do. What a team was told has happened must be
true at the end.
"""

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from simulated_cluster import VALIDATION
from simulation import Process, Simulation
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session
from suites import GRADER

from zhub import states
from zhub.database.sessions import system_session, tenant_session
from zhub.datasets import files
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from zhub.evaluation import gates, promotions
from zhub.evaluation.gates import Gate, Suite
from zhub.evaluation.promotions import PromotionRequest
from zhub.graders.parsing import stored_grader
from zhub.ids import public_id
from zhub.kinds import redrive
from zhub.models import BaseModel, Dataset, DatasetVersion, Job, Organization, Project, Quota, Schedule
from zhub.process.wakeup import SCHEDULER
from zhub.queue.desired import request_cancel, request_pause, request_resume
from zhub.registry import aliases, listing
from zhub.schedules import definitions, firing
from zhub.tenancy.keys import Caller
from zhub.training import fine_tuning
from zhub.training.fine_tuning import JobRequest

MAX_UNFINISHED = 6
Act = Callable[[Session], str | uuid.UUID]
REFUSALS = (ConflictError, InvalidRequestError, NotFoundError)


class Team:
    """One organisation with a project, a checked dataset, and a client that works until the harm is over."""

    def __init__(self, simulation: Simulation, url: str, name: str) -> None:
        self.told: dict[uuid.UUID, str] = {}
        """Jobs that it was told of, and the last that it was told: ``made``, ``cancel`` or ``redrive``."""
        self.done = False
        self._simulation = simulation
        self._rng = simulation.rng
        self._name = name
        self.process = Process(name, lambda process: [partial(self._live, process)], url, mortal=False)

    def found(self, session: Session) -> None:
        """Make the team's rows."""
        organization = Organization(name=self._name)
        session.add(organization)
        session.flush()
        org_id = organization.id
        project = Project(org_id=org_id, name="main")
        session.add(project)
        session.flush()
        self._caller = Caller(uuid.UUID(int=0), org_id, project.id, "main", frozenset())
        where = {"org_id": org_id, "project_id": project.id}
        dataset = Dataset(**where, name="suite", last_version=1)
        if self._rng.random() < 0.5:
            session.add(Quota(org_id=org_id, max_workers=self._rng.choice((1, 1.5, 2)), max_queued=8))
        session.add(dataset)
        session.flush()
        file = DatasetVersion(
            **where, dataset_id=dataset.id, version=1, filename="suite.jsonl", purpose="fine-tune", size_bytes=7,
            sha256="5" * 64, key="k", status="processed", validation=VALIDATION,
        )  # fmt: skip
        session.add(file)
        session.flush()
        self._file = public_id("file", file.id)

    def _live(self, process: Process) -> None:
        acts: dict[Callable[[], Act | None], int] = {
            self._submit: 10, self._upload: 2, self._cancel: 3, self._pause: 3, self._resume: 4, self._redrive: 3,
            self._promote: 2, self._move: 1, self._schedule: 1, self._poke_schedule: 2, self._preempt: 2,
        }  # fmt: skip
        while not self._simulation.calm:
            choose = self._rng.choices([*acts], [*acts.values()])[0]
            if (act := choose()) is not None:
                self._ask(process, choose.__name__.strip("_"), act)
                self._simulation.notify(SCHEDULER)
            self._simulation.wait(self._rng.uniform(0.1, 4), None)
        self._ask(process, "rest", self._rest)
        self._simulation.notify(SCHEDULER)
        self.done = True
        while True:
            self._simulation.wait(3600, None)

    def _ask(self, process: Process, what: str, act: Act) -> None:
        """The same again and again until the answer arrives."""
        session_of = system_session if what == "preempt" else partial(tenant_session, org_id=self._caller.org_id)
        while True:
            try:
                with session_of(process.engine) as session:
                    answer = act(session)
            except REFUSALS as exc:
                answer = f"refused: {type(exc).__name__}"
            except UnavailableError:
                if what == "redrive":
                    self._doubt_cancellations()  # it may be done, and is refused when it is asked again
                self._simulation.wait(1, None)
                continue
            self._simulation.note(self._name, f"{what}: {answer}")
            if isinstance(answer, uuid.UUID):
                self._believe(what, answer)
            return

    def _believe(self, what: str, job_id: uuid.UUID) -> None:
        if what == "submit":
            self.told[job_id] = "made"
        elif what == "cancel":
            self.told[job_id] = "cancel"
        elif what == "redrive":
            self._doubt_cancellations()

    def _doubt_cancellations(self) -> None:
        """After a redrive: what was cancelled with a job comes back with it."""
        self.told = dict.fromkeys(self.told, "redrive")

    def _new_key(self) -> str:
        return uuid.UUID(int=self._rng.getrandbits(128)).hex

    def _job(self, *conditions: str) -> uuid.UUID | None:
        """One of the jobs it knows, in one of these states if there are any."""
        rows = self._simulation.database.rows("SELECT id, state FROM jobs ORDER BY id")
        known = [row["id"] for row in rows if row["id"] in self.told and (not conditions or row["state"] in conditions)]
        return self._rng.choice(known) if known else None

    def _submit(self) -> Act | None:
        rows = self._simulation.database.rows("SELECT count(*) AS n FROM jobs WHERE finished_at IS NULL")
        if rows[0]["n"] >= 2 * MAX_UNFINISHED:
            return None
        needs = [job for _ in range(self._rng.choice((0, 0, 0, 1, 2))) if (job := self._job()) is not None]
        gate = self._gate() if self._rng.random() < 0.3 else None
        request = JobRequest(
            **self._training(), training_file=self._file, seed=self._rng.randrange(10**6), promotion=gate,
            depends_on=[public_id("fine-tuning job", job) for job in needs],
        )  # fmt: skip
        return partial(self._enqueue, request, self._new_key())

    def _enqueue(self, request: JobRequest, key: str, session: Session) -> uuid.UUID:
        graders = fine_tuning.read_graders(request, stored_grader)
        return fine_tuning.create(session, self._caller, request, graders, idempotency_key=key, is_retry=False).id

    def _training(self) -> dict[str, Any]:
        method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
        return {"model": "tiny", "method": method, "suffix": self._rng.choice(("summer", "winter"))}

    def _gate(self) -> Gate:
        rule = self._rng.choice(("not_worse", "better"))
        return Gate.model_validate({"rule": rule, "suites": [Suite(file=self._file, grader=GRADER)]})

    def _upload(self) -> Act | None:
        sha256 = self._new_key() * 2

        def upload(session: Session) -> str:
            found = files.register(
                session, self._caller, filename="suite.jsonl", purpose="fine-tune", size_bytes=7, sha256=sha256
            )
            return str(found.id)

        return upload

    def _request_change(self, request: Callable[[Session, uuid.UUID], Job], *of: str) -> Act | None:
        job_id = self._job(*of)
        return None if job_id is None else lambda session: request(session, job_id).id

    def _cancel(self) -> Act | None:
        return self._request_change(request_cancel)

    def _pause(self) -> Act | None:
        return self._request_change(request_pause)

    def _resume(self) -> Act | None:
        return self._request_change(request_resume, states.PAUSED, *states.ACTIVE)

    def _redrive(self) -> Act | None:
        """Ask for several dead jobs at once, of any kind: some may wait for others of them."""
        statement = "SELECT id FROM jobs WHERE org_id = %s AND state = ANY(%s) AND kind <> 'gate' ORDER BY id"
        dead = [row["id"] for row in self._simulation.database.rows(statement, self._caller.org_id, list(redrive.DEAD))]
        asked = self._rng.sample(dead, min(len(dead), 3))

        def ask(session: Session) -> uuid.UUID:
            for job_id in asked:
                redrive.request(session, session.get_one(Job, job_id), by=self._name)
            return uuid.UUID(asked[0].hex)

        return ask if asked else None

    def _preempt(self) -> Act | None:
        """What the leader writes where somebody is owed a worker."""
        job_id = self._job(*states.ACTIVE)

        def act(session: Session) -> str:
            change = update(Job).where(Job.id == job_id, Job.state.in_(states.ACTIVE), Job.desired == "run")
            session.execute(change.values(desired="preempt"))
            return str(job_id)

        return act if job_id is not None else None

    def _promote(self) -> Act | None:
        gate = self._gate()

        def act(session: Session) -> str:
            newest, _ = listing.list_versions(session, self._caller.project_id, limit=1)
            if not newest:
                return "nothing to promote"
            request = PromotionRequest.model_validate(gate.model_dump() | {"model": newest[0].name})
            graders = gates.read_graders(request, read=stored_grader)
            return str(promotions.create(session, self._caller, request, graders).id)

        return act

    def _move(self) -> Act | None:
        position = self._rng.randrange(3)

        def act(session: Session) -> str:
            newest, _ = listing.list_versions(session, self._caller.project_id, limit=3)
            if position >= len(newest):
                return "nothing to move to"
            return str(aliases.move(session, "prod", newest[position], by=self._name).version_id)

        return act

    def _schedule(self) -> Act | None:
        request = definitions.ScheduleRequest.model_validate(
            {
                "name": "often",
                "dataset": "suite",
                "training": self._training(),
                "cron": self._rng.choice(("* * * * *", "*/2 * * * *")),
                "misfire": self._rng.choice(("skip", "fire_once", "backfill")),
                "overlap": self._rng.choice(("skip", "buffer_one", "allow", "cancel_running")),
                "on_new_data": self._rng.random() < 0.5,
                "jitter_s": self._rng.choice((0, 20)),
                "max_backfill": 3,
            }
        )
        graders = definitions.read_graders(request)
        return lambda session: str(definitions.create(session, self._caller, request, graders).id)

    def _poke_schedule(self) -> Act | None:
        poke = self._rng.choice((definitions.pause, definitions.resume, firing.run_now))

        def act(session: Session) -> str:
            statement = select(Schedule.id).where(Schedule.project_id == self._caller.project_id)
            schedule_id = session.scalar(statement)
            if schedule_id is None:
                return "there is none"
            poke(session, definitions.get(session, self._caller.project_id, schedule_id, lock=True))
            return poke.__name__

        return act

    def _rest(self, session: Session) -> str:
        """Nothing new comes by itself any more."""
        for schedule in definitions.list_schedules(session, self._caller.project_id):
            definitions.pause(session, definitions.get(session, self._caller.project_id, schedule.id, lock=True))
        return "paused its schedules"


def found(session: Session, teams: list[Team]) -> None:
    """The base model that all train on, and the teams' rows."""
    basis = {"weights_fingerprint": "w" * 64, "basis_fingerprint": "b" * 64, "basis_key_prefix": "bases/tiny"}
    source: dict[str, Any] = {"name": "tiny", "files": [], "hub_id": None, "hub_revision": None}
    session.add(BaseModel(name="tiny", status="ready", source=source, created_at=func.now(), **basis))
    for team in teams:
        team.found(session)
