"""The world of the jobs' state machine: a project that submits jobs, a cluster of two slots, and who leads it."""

import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, precondition, rule
from job_machine_model import Model
from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub import scheduler
from zhub.database.sessions import system_session
from zhub.errors import DeposedError
from zhub.models import Agent, BaseModel, Expert, Job, Organization, Project, Quota
from zhub.queue import dependencies, jobs, leadership
from zhub.storage.directory import DirectoryStore

SLOTS = 2
MAX_JOBS = 7
SCHEDULERS = [uuid.UUID(int=n) for n in (11, 12)]
AGENTS = [uuid.UUID(int=n) for n in (1, 2)]
KINDS = ["train", "validate"]
Attempt = tuple[int, int]  # number of the job, fence
numbers = Bundle("numbers")
attempts = Bundle("attempts")


class World(RuleBasedStateMachine):
    """One project with one expert and a cluster of two slots; ``engine`` and ``store`` are given by the test.

    So is ``watching``: a connection that sees what is committed, without a transaction of its own.
    """

    engine: Engine
    watching: Connection
    store: DirectoryStore

    def __init__(self) -> None:
        super().__init__()
        self.models: list[Model] = []
        self.history: dict[uuid.UUID, list[str]] = {}
        self.fences: dict[uuid.UUID, int] = {}
        self.born: dict[uuid.UUID, str] = {}
        self.ranks = itertools.count(1)
        self.cap: float | None = None
        self.terms: dict[uuid.UUID, int] = {}
        """In which each scheduler believes that it leads."""
        self.leader: uuid.UUID | None = None
        self.reports: dict[Attempt, list[int]] = {}
        """The steps whose checkpoints an attempt has reported, in their order."""

    def _begin(self) -> None:
        self.models, self.history, self.fences, self.reports = [], {}, {}, {}
        self.born, self.cap, self.terms, self.leader = {}, None, {}, None
        # The system's role may delete, not truncate.
        order = (
            "webhook_deliveries webhook_endpoints queue_places usages month_usages worker_usages stored_usages "
            "token_usages month_costs budget_notices checkpoints job_dependencies version_metrics catalogue_entries "
            "expert_versions job_events "
            "attempts jobs experts projects quotas organizations base_models agents leaders"
        )
        with self.engine.begin() as connection:
            # What was published goes with its organisation only.
            connection.execute(text("SELECT set_config('zhub.erasing', id::text, true) FROM organizations"))
            for table in order.split():
                connection.execute(text(f"DELETE FROM {table}"))
        with system_session(self.engine) as session:
            organization = Organization(name="acme")
            base = BaseModel(name="tiny", source={})
            session.add_all([organization, base, Agent(id=AGENTS[0], cluster="default", slots=SLOTS)])
            session.flush()
            project = Project(org_id=organization.id, name="main")
            session.add(project)
            session.flush()
            expert = Expert(org_id=organization.id, project_id=project.id, name="summer")
            session.add(expert)
            session.flush()
            self.owner = {"org_id": organization.id, "project_id": project.id}
            self.made_of = {"expert_id": expert.id, "base_model_id": base.id}
        self.elect(SCHEDULERS[0])

    @initialize(target=numbers)
    def begin_with_jobs(self) -> Any:
        self._begin()
        return multiple(*(self._submit(kind) for kind in ("train", "train", "validate")))

    @precondition(lambda self: len(self.models) < MAX_JOBS)
    @rule(target=numbers, kind=st.sampled_from(KINDS))
    def submit(self, kind: str) -> int:
        return self._submit(kind)

    @precondition(lambda self: len(self.models) < MAX_JOBS)
    @rule(target=numbers, needed=st.lists(numbers, min_size=1, max_size=2, unique=True))
    def submit_what_waits(self, needed: list[int]) -> int:
        return self._submit("train", [self.models[number] for number in needed])

    def _submit(self, kind: str, needs: Sequence[Model] = ()) -> int:
        state = "waiting" if needs else "queued"
        with system_session(self.engine) as session:
            job = Job(kind=kind, spec={}, state=state, **self.owner, **(self.made_of if kind == "train" else {}))
            jobs.enqueue(session, job, "Enqueued.")
            dependencies.add(session, job, [need.id for need in needs])
        self.models.append(Model(job.id, kind, state, needs=list(needs), rank=next(self.ranks)))
        self.born[job.id] = state
        return len(self.models) - 1

    @rule(cap=st.sampled_from([None, 1.0, 2.0]))
    def set_quota(self, cap: float | None) -> None:
        with system_session(self.engine) as session:
            quota = insert(Quota).values(id=uuid.uuid4(), org_id=self.owner["org_id"], max_workers=cap)
            session.execute(quota.on_conflict_do_update(index_elements=["org_id"], set_={"max_workers": cap}))
        self.cap = cap

    @rule(scheduler_id=st.sampled_from(SCHEDULERS))
    def elect(self, scheduler_id: uuid.UUID) -> None:
        """A scheduler asks to lead: it does if it did, or if nobody does."""
        with system_session(self.engine) as session:
            term = leadership.elect(session, scheduler_id, lease_s=3600)
        assert (term is not None) == (self.leader in (None, scheduler_id))
        if term is not None:
            assert term >= max(self.terms.values(), default=0)
            self.leader, self.terms[scheduler_id] = scheduler_id, term

    @rule(other=st.sampled_from(SCHEDULERS))
    def freeze_the_leader(self, other: uuid.UUID) -> None:
        """Its lease runs out, and another leads, or it again."""
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE leaders SET lease_until = now() - interval '1 second'"))
        self.leader = None
        self.elect(other)

    @precondition(lambda self: len(self.terms) == len(SCHEDULERS))
    @rule(part=st.sampled_from([scheduler.admission_pass, scheduler.maintenance_pass, scheduler.explanation_pass]))
    def pass_of_a_deposed_leader(self, part: Callable[[Engine, uuid.UUID, int], object]) -> None:
        """It thaws, believes that it still leads, and changes nothing."""
        (deposed,) = set(SCHEDULERS) - {self.leader}
        with pytest.raises(DeposedError):
            part(self.engine, deposed, self.terms[deposed])

    @contextlib.contextmanager
    def leading(self) -> Iterator[Session]:
        """A transaction of the leader's."""
        assert self.leader is not None
        with system_session(self.engine) as session:
            leadership.check_leading(session, self.leader, self.terms[self.leader])
            yield session

    def any_in(self, *wanted: str) -> bool:
        return any(model.state in wanted for model in self.models)

    def rows(self, statement: str) -> Any:
        return self.watching.execute(text(statement)).all()
