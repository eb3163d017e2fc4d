"""The guards of the job protocol, of admission, promotions, schedules and deliveries, each with what takes it away."""

from mutant import Mutant

CLAIMS, ATTEMPTS = "platform/zhub/queue/claims.py", "platform/zhub/queue/attempts.py"
REAPER = "platform/zhub/queue/reaper.py"
DESIRED, LEADERSHIP = "platform/zhub/queue/desired.py", "platform/zhub/queue/leadership.py"
DEPENDENCIES, REDRIVE, TICKS = (
    "platform/zhub/queue/dependencies.py",
    "platform/zhub/kinds/redrive.py",
    "platform/zhub/schedules/firing.py",
)
SNAPSHOT, SHARES, BASELINE = (
    "platform/zhub/admission/snapshot.py",
    "platform/zhub/admission/fair_share.py",
    "migrations/versions/0001_baseline.py",
)
ON_JOBS = (
    "tests/integration/queue/test_claims.py",
    "tests/integration/queue/test_fencing.py",
    "tests/integration/queue/test_retries.py",
    "tests/integration/queue/test_cancel_pause.py",
    "tests/integration/queue/test_leadership.py",
    "tests/integration/registry/test_publication.py",
    "tests/integration/queue/test_jobs_machine.py",
)
ON_REDRIVE = ("tests/integration/queue/test_redrive.py", "tests/integration/queue/test_jobs_machine.py")
ON_SCHEDULES = (
    "tests/integration/schedules/test_ticks.py",
    "tests/integration/schedules/test_feedback_schedules.py",
)
ON_DEPENDENCIES = (
    "tests/integration/queue/test_dependencies.py",
    "tests/integration/evaluation/test_gated_trainings.py",
    "tests/integration/queue/test_undecomposed_bases.py",
)
ON_PROMOTIONS = ("tests/integration/evaluation/test_promotions.py", "tests/integration/evaluation/test_aliases.py")
ON_ADMISSION = (
    "tests/unit/admission/test_fair_share.py",
    "tests/integration/admission/test_admit.py",
    "tests/integration/admission/test_shares.py",
    "tests/integration/admission/test_quotas.py",
    "tests/integration/admission/test_job_sizes.py",
    "tests/integration/queue/test_jobs_machine.py",
)


_LOOK_AT_WORKERS = "        held = self._launcher.running().keys()\n"
_LOOK_AT_ROWS = """\
        with system_session(self._engine) as session:
            rows = session.execute(
                select(Job.id, Job.fence, Job.agent_id).where(
                    Job.state.in_(states.ACTIVE), Job.cluster == self._settings.cluster
                )
            ).all()
"""


MUTANTS = (
    Mutant(
        "a heartbeat checks its fence",
        ATTEMPTS,
        "was.id AND fence = :fence AND state",
        "was.id AND :fence = :fence AND state",
        ON_JOBS,
    ),
    Mutant(
        "a success checks its fence",
        ATTEMPTS,
        "fence = :fence AND state IN ('starting', 'running', 'stopping') AND desired <> 'cancel'",
        ":fence = :fence AND state IN ('starting', 'running', 'stopping') AND desired <> 'cancel'",
        ON_JOBS,
    ),
    Mutant(
        "a success checks that nobody cancelled",
        ATTEMPTS,
        "'stopping') AND desired <> 'cancel'",
        "'stopping')",
        ON_JOBS,
    ),
    Mutant(
        "a failure checks its fence",
        ATTEMPTS,
        "SET {RELEASE}\n             WHERE id = :job AND fence = :fence AND",
        "SET {RELEASE}\n             WHERE id = :job AND :fence = :fence AND",
        ON_JOBS,
    ),
    Mutant(
        "a stop checks its fence",
        ATTEMPTS,
        "WHERE jobs.id = was.id AND fence = :fence\n",
        "WHERE jobs.id = was.id AND :fence = :fence\n",
        ON_JOBS,
    ),
    Mutant("a claim raises the fence", CLAIMS, "fence = fence + 1", "fence = greatest(fence, 1)", ON_JOBS),
    Mutant(
        "a claim passes what is not wanted",
        CLAIMS,
        "state = 'admitted' AND desired = 'run' AND cluster",
        "state = 'admitted' AND cluster",
        ON_JOBS,
    ),
    Mutant("a claim does not wait for another", CLAIMS, "LIMIT :limit FOR UPDATE SKIP LOCKED", "LIMIT :limit", ON_JOBS),
    Mutant(
        "a lost job runs alone",
        CLAIMS,
        "CASE infra_failures WHEN 0 THEN pack_key END",
        "pack_key",
        ON_JOBS,
    ),
    Mutant(
        "a worker that died with its node was not brought down by its job",
        "platform/zhub/queue/poison.py",
        "AND died_on = ANY(:nodes) AND",
        "AND (died_on = ANY(:nodes) OR died_on IS NOT NULL) AND",
        ("tests/integration/queue/test_poison.py",),
    ),
    Mutant(
        "a worker that ended with its lease was not brought down by its job",
        ATTEMPTS,
        "    if not in_time:  # a worker",
        "    if False:  # a worker",
        ("tests/integration/queue/test_poison.py",),
    ),
    Mutant(
        "no job goes before one that needs a worker",
        CLAIMS,
        "ORDER BY admitted_at, id LIMIT :limit",
        "ORDER BY (:free > 0 OR pack_key = ANY(:packs)) DESC, admitted_at, id LIMIT :limit",
        ("tests/integration/queue/test_claims.py",),
    ),
    Mutant(
        "the reaper takes expired leases alone",
        REAPER,
        "WHERE lease_until < now() ORDER BY",
        "WHERE lease_until IS NOT NULL ORDER BY",
        ON_JOBS,
    ),
    Mutant(
        "a failure pays from its own budget",
        ATTEMPTS,
        "infra_failures = infra_failures + :infra",
        "infra_failures = infra_failures",
        ON_JOBS,
    ),
    Mutant(
        "a requested change does not replace a cancellation",
        DESIRED,
        'instead_of=("run", "preempt")',
        'instead_of=("run", "preempt", "cancel")',
        ON_JOBS,
    ),
    Mutant(
        "a leader's pass checks its term",
        LEADERSHIP,
        "holder = :holder AND term = :term FOR SHARE",
        ":holder = :holder AND :term = :term FOR SHARE",
        ON_JOBS,
    ),
    Mutant(
        "one version for each job",
        BASELINE,
        'sa.UniqueConstraint("job_id", name=op.f("uq_expert_versions_job_id")),',
        "",
        ON_JOBS,
    ),
    Mutant(
        "what is held is not given out",
        SNAPSHOT,
        "self.workers - sum(job.workers for job in self.running)",
        "self.workers",
        ON_ADMISSION,
    ),
    Mutant(
        "what a pass gives out is gone",
        SHARES,
        "            free -= job.workers\n            given",
        "            given",
        ON_ADMISSION,
    ),
    Mutant("a quota holds", SHARES, "return self.held + workers <= self.cap + ROUNDING", "return True", ON_ADMISSION),
    Mutant("a weight counts", SHARES, "HORIZON_S) / self.weight", "HORIZON_S)", ON_ADMISSION),
    Mutant(
        "a reservation is kept",
        SHARES,
        "if fits and (reserved is None or reserved.leaves_room(job)):",
        "if fits:",
        ON_ADMISSION,
    ),
    Mutant(
        "a job waits for all that it needs",
        DEPENDENCIES,
        "coalesce(bool_and(n.state = 'succeeded'), true) AS won",
        "coalesce(bool_or(n.state = 'succeeded'), true) AS won",
        ON_DEPENDENCIES,
    ),
    Mutant("a job waits for its base", DEPENDENCIES, "won AND based OR lost", "won OR lost", ON_DEPENDENCIES),
    Mutant(
        "what needs a job that did not succeed never runs",
        DEPENDENCIES,
        "CASE WHEN lost THEN 'cancelled' ELSE 'queued' END",
        "'queued'",
        ON_DEPENDENCIES,
    ),
    Mutant("gates are left to decide", DEPENDENCIES, " AND j.kind <> ALL(:without_worker)", "", ON_DEPENDENCIES),
    Mutant(
        "a redrive takes dead jobs alone",
        REDRIVE,
        "WHERE id = :job AND state IN ('failed', 'cancelled') RETURNING",
        "WHERE id = :job RETURNING",
        ON_REDRIVE,
    ),
    Mutant(
        "a redrive keeps the fence",
        REDRIVE,
        "SET desired = 'run', error = NULL, finished_at = NULL",
        "SET desired = 'run', fence = 0, error = NULL, finished_at = NULL",
        ON_REDRIVE,
    ),
    Mutant(
        "a redrive waits for what the job needs",
        REDRIVE,
        "AND n.state <> 'succeeded') THEN 'waiting'",
        "AND n.state = 'none') THEN 'waiting'",
        ON_REDRIVE,
    ),
    Mutant(
        "a redrive brings back what was cancelled with the job and nothing else",
        REDRIVE,
        '            Job.error["code"].astext == "dependency_failed",\n',
        "",
        ON_REDRIVE,
    ),
    Mutant(
        "one redrive that is impossible stops no other",
        REDRIVE,
        "except ConflictError as exc:",
        "except ZeroDivisionError as exc:",
        ON_REDRIVE,
    ),
    Mutant(
        "a gate moves an alias only from where it looked",
        "platform/zhub/registry/aliases.py",
        "if expected is not None and expected.version_id != before:",
        "if False:",
        ON_PROMOTIONS,
    ),
    Mutant(
        "a gate is decided once",
        "platform/zhub/evaluation/promotions.py",
        "undecided = (Job.id == measured.job.id, Job.state == states.WAITING, ",
        "undecided = (Job.id == measured.job.id, ",
        ON_PROMOTIONS,
    ),
    Mutant(
        "a cancelled promotion is not decided",
        "platform/zhub/evaluation/promotions.py",
        'Job.state == states.WAITING, Job.desired == "run")\n    job =',
        "Job.state == states.WAITING)\n    job =",
        ON_PROMOTIONS,
    ),
    Mutant(
        "no gate is decided by a comparison with an earlier version",
        "platform/zhub/evaluation/promotions.py",
        "if aliases.current(session, aliases.owner_of(record), promotion.alias) != compared_with:",
        "if False:",
        ON_PROMOTIONS,
    ),
    Mutant(
        "no scheduler waits for another's gate",
        "platform/zhub/evaluation/promotions.py",
        ".with_for_update(skip_locked=True)",
        ".with_for_update()",
        ON_PROMOTIONS,
    ),
    Mutant(
        "no scheduler waits for another's schedule",
        TICKS,
        "LIMIT 1 FOR UPDATE SKIP LOCKED",
        "LIMIT 1 FOR UPDATE",
        ON_SCHEDULES,
    ),
    Mutant(
        "one scheduler looks after a schedule at a time",
        TICKS,
        "LIMIT 1 FOR UPDATE SKIP LOCKED",
        "LIMIT 1",
        ON_SCHEDULES,
    ),
    Mutant(
        "a tick that has an outcome gets no other",
        TICKS,
        "is not None:\n        return earlier",
        "is not None and False:\n        return earlier",
        ON_SCHEDULES,
    ),
    Mutant(
        "a tick has one row",
        "migrations/versions/0006_schedules.py",
        'sa.UniqueConstraint("schedule_id", "key", name=op.f("uq_schedule_ticks_schedule_id_key")),',
        "",
        ON_SCHEDULES,
    ),
    Mutant(
        "an agent looks at the workers before the rows",
        "workers/zhub_workers/agent/loop.py",
        _LOOK_AT_WORKERS + _LOOK_AT_ROWS,
        _LOOK_AT_ROWS + _LOOK_AT_WORKERS,
        ("tests/integration/agent/test_lost_agents_and_workers.py", "-k", "looks_around or adopts"),
    ),
    Mutant(
        "a reader of events stops at the oldest open transaction",
        "platform/zhub/queue/job_events.py",
        "JobEvent.xid < _HORIZON",
        "JobEvent.xid >= 0",
        ("tests/integration/queue/test_job_events.py",),
    ),
    Mutant(
        "a stream ends only with the last event",
        "api/zhub_api/routes/job_events.py",
        "job.state in states.TERMINAL and is_all",
        "job.state in states.TERMINAL",
        ("tests/integration/queue/test_job_event_streams.py",),
    ),
    Mutant(
        "a delivery that is being sent is kept from others",
        "platform/zhub/webhooks/deliveries.py",
        "SET sending_until = now() + make_interval(secs => :claim_s)",
        "SET sending_until = now() + 0 * make_interval(secs => :claim_s)",
        ("tests/integration/webhooks/test_deliveries.py",),
    ),
    Mutant(
        "an endpoint that is sent to is kept from other schedulers",
        "platform/zhub/webhooks/deliveries.py",
        " AND coalesce(sending_until <= now(), true)",
        "",
        ("tests/integration/webhooks/test_deliveries.py",),
    ),
    Mutant(
        "every address of a name is checked",
        "platform/zhub/webhooks/safe_http.py",
        "for address in addresses:\n            check_address",
        "for address in addresses[:1]:\n            check_address",
        ("tests/unit/webhooks/test_safe_http.py",),
    ),
)
