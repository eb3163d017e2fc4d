"""What the leader does in the jobs' state machine: it applies requested changes, admits, preempts and reaps."""

from hypothesis.stateful import precondition, rule
from job_machine_model import Model
from job_machine_world import SLOTS, World, numbers
from sqlalchemy import text

from zhub import states
from zhub.admission import admit as admission
from zhub.admission.explain import explain
from zhub.kinds import table
from zhub.kinds.redrive import process_redrives
from zhub.queue import reaper
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes


class LeaderMoves(World):
    """Moves of the leader, and of time: leases run out."""

    @precondition(lambda self: self.any_in("waiting"))
    @rule()
    def settle_dependencies(self) -> None:
        with self.leading() as session:
            release_dependents(session, table.names())
        due = [(m, [need.state for need in m.needs]) for m in self.models if m.state == "waiting"]
        rank = next(self.ranks)
        for model, needed in due:
            if {"failed", "cancelled"} & set(needed):
                model.state, model.lost_with_another, model.rank = "cancelled", True, rank
            elif set(needed) == {"succeeded"}:
                model.state, model.rank = "queued", rank

    @precondition(lambda self: any(model.desired == "redrive" for model in self.models))
    @rule()
    def settle_redrives(self) -> None:
        asked = sorted((m for m in self.models if m.desired == "redrive"), key=lambda m: m.id)
        with self.leading() as session:
            process_redrives(session)
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

    @precondition(lambda self: self.any_in("queued"))
    @rule()
    def admit(self) -> None:
        with self.leading() as session:
            session.execute(text("UPDATE jobs SET not_before = NULL WHERE state = 'queued'"))
            admitted = {job.job_id for job in admission.admit(session, table.names(), agent_lost_after_s=3600)}
        used = sum(m.kind == "train" and (m.active or m.state == "admitted") for m in self.models)
        room = SLOTS if self.cap is None else min(SLOTS, int(self.cap))
        waiting = [m for m in self.models if m.state == "queued" and m.desired == "run"]
        ranked = sorted((m for m in waiting if m.kind == "train"), key=lambda m: (m.rank, m.id))
        expected = [*ranked[: max(0, room - used)], *(m for m in waiting if m.kind == "validate")]
        assert admitted == {m.id for m in expected}
        for model in expected:
            model.state = "admitted"
        with self.leading() as session:
            explain(session, table.names(), agent_lost_after_s=3600)
        told = {row.job_id for row in self.rows("SELECT job_id FROM queue_places")}
        assert told == {m.id for m in self.models if m.state == "queued" and (m.kind == "train" or m.desired != "run")}

    @precondition(lambda self: self.any_in(*states.ACTIVE))
    @rule(number=numbers)
    def preempt(self, number: int) -> None:
        model = self.models[number]
        if model.desired == "run" and model.active:
            with self.engine.begin() as connection:
                connection.execute(text("UPDATE jobs SET desired = 'preempt' WHERE id = :id"), {"id": model.id})
            model.desired = "preempt"

    @precondition(lambda self: self.any_in(*states.ACTIVE))
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
            reaped = {job.job_id: job.state for job in reaper.reap(session)}
        expected = [m for m in self.models if m.active and m.expired]
        for model in expected:
            model.release(infra=True, retryable=True)
        assert reaped == {m.id: m.state for m in expected}

    @precondition(lambda self: self.any_in("paused") or any(model.desired != "run" for model in self.models))
    @rule()
    def apply_changes(self) -> None:
        with self.leading() as session:
            apply_requested_changes(session)
        for model in self.models:
            if model.state == "waiting" and model.desired == "cancel":
                model.state = "cancelled"
            if model.state in ("queued", "admitted", "paused"):
                requested = {"cancel": "cancelled", "pause": "paused"}.get(model.desired)
                resumed = "queued" if model.state == "paused" else model.state
                model.state = requested or resumed
