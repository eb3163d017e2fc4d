"""Any order of submissions, claims, heartbeats, results, failures, wishes and lost leases keeps the protocol.

Hypothesis plays users, agents that freeze and come back, and two schedulers against the real SQL. After every move the
rows are compared with a model of a few lines, and with what must hold of any history; the history's own rules are asked
at the end. Which of the protocol's invariants is held where:

 1. A fence never decreases and has one attempt: ``fences_only_grow``, ``every_fence_has_one_attempt…``.
 2. An ended job changes by a redrive alone: ``every_state_was_reached_by_a_legal_move``; ``finished_at``: a CHECK.
 3. A lease exactly while a job is active: a CHECK.
 4. One version for each job, numbered without a gap, 5. of the fence that owned it, 6. none after a cancellation:
    ``a_version_stands_for_each_success_and_for_nothing_else``, with ``publish``.
 7. No more workers are given out than there are, nor than the quota: ``workers_are_never_given_out_twice``, ``admit``.
 8. Every change has its event: ``what_a_user_should_know_has_its_event``; its deliveries: tests/integration/
    webhooks/test_outbox.py.
 9. A tick fires once, and never while paused: test_ticks.py and, under harm, tests/simulation.
10. Who is owed a worker gets it back in time: tests/unit/admission/test_fair_share.py.
11. Every job ends or rests: ``teardown`` and, by the real loops, tests/simulation and tests/chaos.
12. What lost its lease is stopped: tests/unit/agent/test_reconcile.py, tests/simulation.
13. A version's objects are whole: tests/simulation, tests/chaos.

A leader that was deposed changes nothing: ``pass_of_a_deposed_leader``.
"""

import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from suites import manifest_of

from zhub import scheduler, states
from zhub.admission import admit as admission
from zhub.database.sessions import system_session
from zhub.errors import ConflictError, DeposedError, LeaseLostError
from zhub.models import Agent, BaseModel, Checkpoint, Expert, Job, Organization, Project, Quota
from zhub.queue import checkpoints, dependencies, invariants, job_events, jobs, leadership, redrive
from zhub.queue import desired as wishes
from zhub.queue.desired import request_cancel, request_pause, request_resume
from zhub.registry import versions
from zhub.storage.object_store import DirectoryStore

SLOTS = 2
MAX_JOBS = 7
SCHEDULERS = [uuid.UUID(int=n) for n in (11, 12)]
AGENTS = [uuid.UUID(int=n) for n in (1, 2)]
KINDS = ["train", "validate"]
Attempt = tuple[int, int]  # number of the job, fence


@dataclass(eq=False)
class Model:
    """What a job's row should say."""

    id: uuid.UUID
    kind: str
    state: str = "queued"
    desired: str = "run"
    fence: int = 0
    user_failures: int = 0
    infra_failures: int = 0
    needs: list["Model"] = field(default_factory=list)
    rank: int = 0
    """Its place among those that are queued."""
    forgiven: tuple[int, int] = (0, 0)
    """Failures of users and of infrastructure before the last redrive."""
    lost_with_another: bool = False
    """It was cancelled because something that it waited for did not succeed."""
    expired: bool = False
    published: bool = False
    checkpoints: list[int] = field(default_factory=list)
    reported: int = 0

    @property
    def active(self) -> bool:
        return self.state in states.ACTIVE

    def owns(self, fence: int) -> bool:
        return self.active and self.fence == fence

    @property
    def dead(self) -> bool:
        return self.state in redrive.DEAD

    @property
    def rests(self) -> bool:
        """It has ended, or somebody paused it or what it waits for."""
        if self.state == "waiting":
            return self.desired != "cancel" and any(need.rests for need in self.needs if not need.ended)
        return (self.ended and self.desired != "redrive") or self.state == "paused"

    @property
    def ended(self) -> bool:
        return self.state in states.TERMINAL

    def beat(self) -> None:
        self.expired = False
        if self.desired != "run":
            self.state = "stopping"
        elif self.state == "starting":
            self.state = "running"

    def release(self, infra: bool, retryable: bool) -> None:
        failures = self.infra_failures if infra else self.user_failures
        limit = jobs.MAX_INFRA_FAILURES if infra else jobs.MAX_USER_FAILURES
        spent = not retryable or failures >= limit
        self.state = {"cancel": "cancelled", "pause": "paused"}.get(self.desired, "failed" if spent else "queued")
        if self.desired == "preempt":
            self.desired = "run"
        if infra:
            self.infra_failures += 1
        else:
            self.user_failures += 1


class Protocol(RuleBasedStateMachine):
    """One project with one expert and a cluster of two slots; ``engine`` and ``store`` are given by the test.

    So is ``watching``: a connection that sees what is committed, without a transaction of its own.
    """

    engine: Engine
    watching: Connection
    store: DirectoryStore
    numbers = Bundle("numbers")
    attempts = Bundle("attempts")

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
            "webhook_deliveries webhook_endpoints queue_places usages month_usages checkpoints job_dependencies "
            "expert_versions job_events attempts jobs experts projects quotas organizations base_models agents leaders"
        )
        with self.engine.begin() as connection:
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
            term = leadership.elect(session, leadership.SCHEDULER, scheduler_id, lease_s=3600)
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
    @rule(part=st.sampled_from([scheduler.schedule, scheduler.tend, scheduler.explain]))
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
            leadership.check_leading(session, leadership.SCHEDULER, self.leader, self.terms[self.leader])
            yield session

    @precondition(lambda self: self._any("waiting"))
    @rule()
    def settle_dependencies(self) -> None:
        with self.leading() as session:
            dependencies.settle(session)
        due = [(m, [need.state for need in m.needs]) for m in self.models if m.state == "waiting"]
        rank = next(self.ranks)
        for model, found in due:
            if {"failed", "cancelled"} & set(found):
                model.state, model.lost_with_another, model.rank = "cancelled", True, rank
            elif set(found) == {"succeeded"}:
                model.state, model.rank = "queued", rank

    @precondition(lambda self: any(model.dead for model in self.models))
    @rule(number=numbers)
    def ask_for_redrive(self, number: int) -> None:
        model = self.models[number]
        refused = contextlib.nullcontext() if model.dead else pytest.raises(ConflictError)
        with refused, system_session(self.engine) as session:
            redrive.request(session, jobs.get_job(session, model.id), by="test")
        if model.dead:
            model.desired = "redrive"

    @precondition(lambda self: any(model.desired == "redrive" for model in self.models))
    @rule()
    def settle_redrives(self) -> None:
        asked = sorted((m for m in self.models if m.desired == "redrive"), key=lambda m: m.id)
        with self.leading() as session:
            redrive.settle(session)
        rank = next(self.ranks)
        for model in asked:
            if model.dead:  # not one that came back with another
                self._revive(model, rank)

    def _revive(self, model: Model, rank: int) -> None:
        waits = any(need.state != "succeeded" for need in model.needs)
        model.state, model.desired, model.rank = "waiting" if waits else "queued", "run", rank
        model.forgiven = model.forgiven[0] + model.user_failures, model.forgiven[1] + model.infra_failures
        model.user_failures = model.infra_failures = 0
        model.lost_with_another = False
        for other in sorted(self.models, key=lambda m: m.id):
            if model in other.needs and other.state == "cancelled" and other.lost_with_another:
                self._revive(other, rank)

    @precondition(lambda self: self._any("queued"))
    @rule()
    def admit(self) -> None:
        with self.leading() as session:
            session.execute(text("UPDATE jobs SET not_before = NULL WHERE state = 'queued'"))
            admitted = {job.job_id for job in admission.admit(session, agent_lost_after_s=3600)}
        used = sum(m.kind == "train" and (m.active or m.state == "admitted") for m in self.models)
        room = SLOTS if self.cap is None else min(SLOTS, int(self.cap))
        waiting = [m for m in self.models if m.state == "queued" and m.desired == "run"]
        ranked = sorted((m for m in waiting if m.kind == "train"), key=lambda m: (m.rank, m.id))
        expected = [*ranked[: max(0, room - used)], *(m for m in waiting if m.kind == "validate")]
        assert admitted == {m.id for m in expected}
        for model in expected:
            model.state = "admitted"
        with self.leading() as session:
            admission.explain(session, agent_lost_after_s=3600)
        told = {row.job_id for row in self._rows("SELECT job_id FROM queue_places")}
        assert told == {m.id for m in self.models if m.state == "queued" and (m.kind == "train" or m.desired != "run")}

    @precondition(lambda self: self._any("admitted"))
    @rule(target=attempts, agent=st.sampled_from(AGENTS), kinds=st.sampled_from([KINDS, ["train"], ["validate"]]))
    def claim(self, agent: uuid.UUID, kinds: list[str]) -> Any:
        with system_session(self.engine) as session:
            found = jobs.claim_up_to(session, 1, agent, "default", kinds, lease_s=3600)
        ready = [m for m in self.models if m.state == "admitted" and m.desired == "run" and m.kind in kinds]
        assert bool(found) == bool(ready)
        if not found:
            return multiple()
        (claim,) = found
        (model,) = [m for m in ready if m.id == claim.job_id]
        model.state, model.fence, model.expired = "starting", model.fence + 1, False
        assert claim.fence == model.fence
        assert (claim.checkpoint and claim.checkpoint["step"]) == (model.checkpoints[-1] if model.checkpoints else None)
        return self.models.index(model), model.fence

    @contextlib.contextmanager
    def by_the_owner_only(self, attempt: Attempt, *, unless_cancelled: bool = False) -> Iterator[Model]:
        """The model of an attempt's job; the write inside has to be refused unless the attempt owns the job."""
        model = self.models[attempt[0]]
        if model.owns(attempt[1]) and not (unless_cancelled and model.desired == "cancel"):
            yield model
        else:
            with pytest.raises(LeaseLostError):
                yield model

    @rule(attempt=attempts)
    def heartbeat(self, attempt: Attempt) -> None:
        with self.by_the_owner_only(attempt) as model:
            event = job_events.Event(1, "info", "message", "Trains.")
            with system_session(self.engine) as session:
                wanted = jobs.heartbeat(session, model.id, attempt[1], lease_s=3600, progressed=True, events=[event])
            assert wanted == model.desired
            model.beat()

    @rule(attempt=attempts, again=st.booleans())
    def checkpoint(self, attempt: Attempt, again: bool) -> None:
        """The attempt reports a checkpoint, or, after a poll whose answer was lost, the last one again."""
        with self.by_the_owner_only(attempt) as model:
            step = max(1, model.reported) if again else model.reported + 1
            reports = self.reports.setdefault(attempt, [])
            if step not in reports:
                reports.append(step)
            first = job_events.Event(1, "info", "message", "Trains.")
            seq = reports.index(step) + 2
            event = job_events.Event(seq, "info", "message", "Checkpoint.", self._report_of(model.id, step))
            with system_session(self.engine) as session:
                jobs.heartbeat(session, model.id, attempt[1], lease_s=3600, progressed=True, events=[first, event])
            model.beat()
            if step > model.reported:
                model.reported = step
                model.checkpoints = [*model.checkpoints, step][-checkpoints.KEEP_CHECKPOINTS :]

    @precondition(lambda self: any(model.checkpoints for model in self.models))
    @rule(number=numbers, position=st.integers(-3, -1))
    def delete_checkpoint(self, number: int, position: int) -> None:
        model = self.models[number]
        if len(model.checkpoints) < -position:
            return
        step = model.checkpoints[position]
        kept = position == -1 and model.state not in states.TERMINAL
        refused = pytest.raises(ConflictError) if kept else contextlib.nullcontext()
        with refused, system_session(self.engine) as session:
            found = session.scalars(
                select(Checkpoint.id).where(Checkpoint.job_id == model.id, Checkpoint.step == step)
            ).one()
            checkpoints.delete_checkpoint(session, jobs.get_job(session, model.id), found)
        if not kept:
            model.checkpoints.remove(step)

    @precondition(lambda self: any(model.checkpoints for model in self.models))
    @rule()
    def sweep(self) -> None:
        checkpoints.sweep(self.engine, self.store, after=timedelta())

    def _report_of(self, job_id: uuid.UUID, step: int) -> dict[str, Any]:
        prefix = f"{checkpoints.job_prefix(self.owner['org_id'], job_id)}/{step:06d}"
        z = {"name": "z.safetensors", "size_bytes": 1, "sha256": "0" * 64}
        what = {"step": step, "key_prefix": prefix, "digest": "0" * 64, "size_bytes": 1}
        return {"type": "checkpoint", "z": z, "metrics": {}, **what}

    @rule(attempt=attempts)
    def publish(self, attempt: Attempt) -> None:
        with self.by_the_owner_only(attempt, unless_cancelled=True) as model:
            with system_session(self.engine) as session:
                if model.kind == "train":
                    manifest = manifest_of(model.id, fence=attempt[1])
                    prefix = f"t/{self.owner['org_id'].hex}/jobs/{model.id.hex}/attempts/{attempt[1]}"
                    versions.publish(session, model.id, attempt[1], manifest, prefix, 1)
                else:
                    job = jobs.succeed(session, model.id, attempt[1])
                    job_events.add(session, job.org_id, job.id, "The job has succeeded.")
            model.state, model.published = "succeeded", model.kind == "train"

    @rule(attempt=attempts, infra=st.booleans(), retryable=st.booleans())
    def fail(self, attempt: Attempt, infra: bool, retryable: bool) -> None:
        with self.by_the_owner_only(attempt) as model:
            failure = jobs.Failure("x", "It failed.", retryable=retryable)
            with system_session(self.engine) as session:
                outcome = "failed_infra" if infra else "failed_user"
                state = jobs.fail(session, model.id, attempt[1], failure, outcome=outcome)
            model.release(infra, retryable)
            assert state == model.state

    @rule(attempt=attempts)
    def stop(self, attempt: Attempt) -> None:
        with self.by_the_owner_only(attempt) as model:
            with system_session(self.engine) as session:
                state = jobs.stopped(session, model.id, attempt[1])
            if model.desired == "run" and model.state != "stopping":  # nobody had asked it to
                model.release(infra=True, retryable=True)
            else:
                model.state = {"cancel": "cancelled", "pause": "paused"}.get(model.desired, "queued")
                if model.desired == "preempt":
                    model.desired = "run"
            assert state == model.state

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        model = self.models[number]
        refused = pytest.raises(ConflictError) if model.state in ("succeeded", "failed") else contextlib.nullcontext()
        with refused, system_session(self.engine) as session:
            request_cancel(session, model.id)
        if not model.ended or (model.state == "cancelled" and model.desired == "redrive"):
            model.desired = "cancel"

    @rule(number=numbers)
    def pause(self, number: int) -> None:
        with self._unless_ending(number) as model, system_session(self.engine) as session:
            request_pause(session, model.id)
            model.desired = "pause"

    @rule(number=numbers)
    def resume(self, number: int) -> None:
        with self._unless_ending(number) as model, system_session(self.engine) as session:
            request_resume(session, model.id)
            if model.desired == "pause":
                model.desired = "run"

    @contextlib.contextmanager
    def _unless_ending(self, number: int) -> Iterator[Model]:
        """The model of a job; the wish inside has to be refused where the job has ended or will be cancelled."""
        model = self.models[number]
        if model.state in states.TERMINAL or model.desired == "cancel":
            with pytest.raises(ConflictError):
                yield model
        else:
            yield model

    @precondition(lambda self: self._any(*states.ACTIVE))
    @rule(number=numbers)
    def preempt(self, number: int) -> None:
        model = self.models[number]
        if model.desired == "run" and model.active:
            with self.engine.begin() as connection:
                connection.execute(text("UPDATE jobs SET desired = 'preempt' WHERE id = :id"), {"id": model.id})
            model.desired = "preempt"

    @precondition(lambda self: self._any(*states.ACTIVE))
    @rule(number=numbers)
    def expire(self, number: int) -> None:
        model = self.models[number]
        if model.active:
            statement = text("UPDATE jobs SET lease_until = now() - interval '1 second' WHERE id = :id")
            with self.engine.begin() as connection:
                connection.execute(statement, {"id": model.id})
            model.expired = True

    @precondition(lambda self: any(model.expired for model in self.models))
    @rule()
    def reap(self) -> None:
        with self.leading() as session:
            reaped = {job.job_id: job.state for job in jobs.reap(session)}
        expected = [m for m in self.models if m.active and m.expired]
        for model in expected:
            model.release(infra=True, retryable=True)
        assert reaped == {m.id: m.state for m in expected}

    @precondition(lambda self: self._any("paused") or any(model.desired != "run" for model in self.models))
    @rule()
    def settle(self) -> None:
        with self.leading() as session:
            wishes.settle(session)
        for model in self.models:
            if model.state == "waiting" and model.desired == "cancel":
                model.state = "cancelled"
            if model.state in ("queued", "admitted", "paused"):
                settled = {"cancel": "cancelled", "pause": "paused"}.get(model.desired)
                resumed = "queued" if model.state == "paused" else model.state
                model.state = settled or resumed

    @invariant()
    def the_rows_say_what_the_model_says(self) -> None:
        fields = ("state", "desired", "fence", "user_failures", "infra_failures")
        forgiven = ("forgiven_user_failures", "forgiven_infra_failures")
        rows = self._rows(f"SELECT id, {', '.join(fields + forgiven)} FROM jobs")
        found = {row.id: tuple(row)[1:] for row in rows}
        assert found == {m.id: (*(getattr(m, field) for field in fields), *m.forgiven) for m in self.models}

    @invariant()
    def every_state_was_reached_by_a_legal_move(self) -> None:
        for model in self.models:
            seen = self.history.setdefault(model.id, [self.born[model.id]])
            if seen[-1] != model.state:
                # One move of the machine is one transaction, so no state in between is missed.
                assert model.state in states.TRANSITIONS[seen[-1]], seen
                seen.append(model.state)

    @invariant()
    def fences_only_grow(self) -> None:
        for row in self._rows("SELECT id, fence FROM jobs"):
            assert row.fence >= self.fences.get(row.id, 0)
            self.fences[row.id] = row.fence

    @invariant()
    def every_fence_has_one_attempt_and_all_but_the_owners_have_ended(self) -> None:
        found: dict[uuid.UUID, list[tuple[int, bool]]] = {}
        for row in self._rows("SELECT job_id, fence, ended_at IS NULL AS open FROM attempts ORDER BY fence"):
            found.setdefault(row.job_id, []).append((row.fence, row.open))
        for model in self.models:
            expected = [(fence, model.owns(fence)) for fence in range(1, model.fence + 1)]
            assert found.get(model.id, []) == expected

    @invariant()
    def a_version_stands_for_each_success_and_for_nothing_else(self) -> None:
        found = self._rows("SELECT job_id, fence, version FROM expert_versions ORDER BY version")
        assert [row.version for row in found] == list(range(1, len(found) + 1))
        assert {(row.job_id, row.fence) for row in found} == {(m.id, m.fence) for m in self.models if m.published}

    @invariant()
    def workers_are_never_given_out_twice(self) -> None:
        assert sum(m.kind == "train" and (m.active or m.state == "admitted") for m in self.models) <= SLOTS
        (taken,) = self._rows("SELECT coalesce(sum(workers), 0) AS n FROM attempts WHERE ended_at IS NULL")
        assert taken.n == sum(m.kind == "train" and m.active for m in self.models)

    @invariant()
    def what_a_user_should_know_has_its_event(self) -> None:
        counts = {row.job_id: row.n for row in self._rows("SELECT job_id, count(*) AS n FROM job_events GROUP BY 1")}
        for model in self.models:
            assert counts[model.id] >= len(self.history.get(model.id, []))

    @invariant()
    def every_job_keeps_its_newest_checkpoints(self) -> None:
        found: dict[uuid.UUID, list[int]] = {}
        for row in self._rows("SELECT job_id, step FROM checkpoints WHERE deleted_at IS NULL ORDER BY step"):
            found.setdefault(row.job_id, []).append(row.step)
        assert found == {m.id: m.checkpoints for m in self.models if m.checkpoints}

    def teardown(self) -> None:
        """When the harm stops, every job comes to an end, or rests because somebody paused it."""
        for _ in range(60):
            if all(model.rests for model in self.models):
                with system_session(self.engine) as session:
                    assert invariants.examine(session) == []
                return
            self.settle()
            self.settle_redrives()
            self.settle_dependencies()
            self.admit()
            for model in self.models:
                if model.active:
                    move = self.publish if model.desired in ("run", "preempt") else self.stop
                    move((self.models.index(model), model.fence))
            self.claim(AGENTS[1], KINDS)
        raise AssertionError([(m.kind, m.state, m.desired) for m in self.models])

    def _any(self, *wanted: str) -> bool:
        return any(model.state in wanted for model in self.models)

    def _rows(self, statement: str) -> Any:
        return self.watching.execute(text(statement)).all()


def test_any_history_keeps_the_protocol(system_engine: Engine, tmp_path: Path) -> None:
    with system_engine.connect() as connection:

        class OnThisDatabase(Protocol):
            engine = system_engine
            watching = connection.execution_options(isolation_level="AUTOCOMMIT")
            store = DirectoryStore(tmp_path)

        run_state_machine_as_test(
            OnThisDatabase,
            settings=settings(
                max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
