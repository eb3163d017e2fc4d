"""Any order of submissions, claims, heartbeats, results, failures, requests and lost leases keeps the protocol.

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

import uuid
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test
from job_machine_attempts import AttemptMoves
from job_machine_leader import LeaderMoves
from job_machine_users import UserMoves
from job_machine_world import AGENTS, KINDS, SLOTS
from sqlalchemy import Engine

from zhub import states
from zhub.database.sessions import system_session
from zhub.queue import invariants
from zhub.storage.directory import DirectoryStore


class Protocol(LeaderMoves, AttemptMoves, UserMoves):
    """All moves in any order, and what must hold after each of them."""

    @invariant()
    def the_rows_say_what_the_model_says(self) -> None:
        fields = ("state", "desired", "fence", "user_failures", "infra_failures")
        forgiven = ("forgiven_user_failures", "forgiven_infra_failures")
        rows = self.rows(f"SELECT id, {', '.join(fields + forgiven)} FROM jobs")
        by_job = {row.id: tuple(row)[1:] for row in rows}
        assert by_job == {m.id: (*(getattr(m, field) for field in fields), *m.forgiven) for m in self.models}

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
        for row in self.rows("SELECT id, fence FROM jobs"):
            assert row.fence >= self.fences.get(row.id, 0)
            self.fences[row.id] = row.fence

    @invariant()
    def every_fence_has_one_attempt_and_all_but_the_owners_have_ended(self) -> None:
        by_job: dict[uuid.UUID, list[tuple[int, bool]]] = {}
        for row in self.rows("SELECT job_id, fence, ended_at IS NULL AS open FROM attempts ORDER BY fence"):
            by_job.setdefault(row.job_id, []).append((row.fence, row.open))
        for model in self.models:
            expected = [(fence, model.owns(fence)) for fence in range(1, model.fence + 1)]
            assert by_job.get(model.id, []) == expected

    @invariant()
    def a_version_stands_for_each_success_and_for_nothing_else(self) -> None:
        versions = self.rows("SELECT job_id, fence, version FROM expert_versions ORDER BY version")
        assert [row.version for row in versions] == list(range(1, len(versions) + 1))
        assert {(row.job_id, row.fence) for row in versions} == {(m.id, m.fence) for m in self.models if m.published}

    @invariant()
    def workers_are_never_given_out_twice(self) -> None:
        assert sum(m.kind == "train" and (m.active or m.state == "admitted") for m in self.models) <= SLOTS
        (taken,) = self.rows("SELECT coalesce(sum(workers), 0) AS n FROM attempts WHERE ended_at IS NULL")
        assert taken.n == sum(m.kind == "train" and m.active for m in self.models)

    @invariant()
    def what_a_user_should_know_has_its_event(self) -> None:
        counts = {row.job_id: row.n for row in self.rows("SELECT job_id, count(*) AS n FROM job_events GROUP BY 1")}
        for model in self.models:
            assert counts[model.id] >= len(self.history.get(model.id, []))

    @invariant()
    def every_job_keeps_its_newest_checkpoints(self) -> None:
        steps_by_job: dict[uuid.UUID, list[int]] = {}
        for row in self.rows("SELECT job_id, step FROM checkpoints WHERE deleted_at IS NULL ORDER BY step"):
            steps_by_job.setdefault(row.job_id, []).append(row.step)
        assert steps_by_job == {m.id: m.checkpoints for m in self.models if m.checkpoints}

    def teardown(self) -> None:
        """When the harm stops, every job comes to an end, or rests because somebody paused it."""
        for _ in range(60):
            if all(model.rests for model in self.models):
                with system_session(self.engine) as session:
                    assert invariants.examine(session) == []
                return
            self.apply_changes()
            self.settle_redrives()
            self.settle_dependencies()
            self.admit()
            for model in self.models:
                if model.active:
                    move = self.publish if model.desired in ("run", "preempt") else self.stop
                    move((self.models.index(model), model.fence))
            self.claim(AGENTS[1], KINDS)
        raise AssertionError([(m.kind, m.state, m.desired) for m in self.models])


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
