"""The scheduler process: several may run, one leads. The leader admits jobs, reaps them, and applies requested changes.

Start it with ``python -m zhub.scheduler``. It may be killed at any moment, because each pass is one transaction. Each
scheduler, leader or not, also has threads for work that needs no leader: they fire schedules, decide gates, send
webhooks, sign versions, make datasets of stored completions, count what is stored, and remove what is deleted, and old
logs.
"""

import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from sqlalchemy import Engine, delete, func

from zhub.admission import budgets, usage
from zhub.admission.admit import admit, withdraw
from zhub.admission.explain import explain
from zhub.admission.limits import AGENT_LOST_AFTER_S
from zhub.admission.metrics import QueueCollector
from zhub.completions import collecting, listing
from zhub.database.sessions import make_engine, statement_session, system_session
from zhub.errors import DeposedError, InvalidRequestError, UnavailableError
from zhub.evaluation import feedback, promotions
from zhub.kinds import table
from zhub.kinds.outcomes import reap
from zhub.kinds.redrive import process_redrives
from zhub.models import Agent
from zhub.process.config import Settings
from zhub.process.logs import configure_logging
from zhub.process.metrics import LEASE_LOST, QUEUE_BUCKETS, database_answers, serve_metrics
from zhub.process.pulse import BEAT_WITHIN_S, Beat, Pulse, no_beat
from zhub.process.shutdown import stop_event
from zhub.process.threads import start_vital
from zhub.process.wakeup import SCHEDULER, Wakeup, agent_topic, open_wakeup
from zhub.queue import checkpoints, job_logs, leadership
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes
from zhub.registry import deletion, exports, signing
from zhub.schedules import regressions
from zhub.schedules.firing import process_next_due
from zhub.storage.object_store import ObjectStore, open_store
from zhub.tenancy import month_costs, stored_usage
from zhub.training import bases
from zhub.webhooks.relay import relay
from zhub.webhooks.safe_http import Outbound

POLL_S = 1.0
SWEEP_S = 10.0
SIGN_S = 2.0
LOGS_SWEEP_S = 3600.0
METER_S = 10.0
EXPLAIN_S = 2.0
RUN_WITHIN_S = 900.0  # one run of a thread: a sweep removes many objects of a store that may be slow
AGENT_FORGOTTEN_AFTER = timedelta(days=1)

log = logging.getLogger("zhub.scheduler")

PASS = Histogram("zhub_scheduler_pass_seconds", "Duration of a part of the leader's pass.", ["part"])
ADMISSION_WAIT = Histogram(
    "zhub_admission_wait_seconds",
    "From when a job could have been admitted until it was.",
    buckets=QUEUE_BUCKETS,
)
ATTEMPTS_ENDED = Counter("zhub_attempts_ended_total", "Attempts that have ended.", ["kind", "outcome"])
SWEPT = Counter("zhub_checkpoints_swept_total", "Deleted checkpoints whose objects were removed.")


class _Leading:
    """The term in which this process leads; None while it does not."""

    def __init__(self) -> None:
        self.term: int | None = None
        Gauge("zhub_is_leader", "Whether this scheduler leads.").set_function(lambda: float(self.term is not None))
        Gauge("zhub_leader_term", "The term in which this scheduler leads; 0 while it does not.").set_function(
            lambda: float(self.term or 0)
        )


leading = _Leading()


def main() -> None:
    settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    configure_logging(settings.log_format)
    try:
        secret_key = settings.require_secret_key()
    except InvalidRequestError as exc:
        sys.exit(str(exc))
    stopping = stop_event()
    engine = make_engine(settings.database_url, pool_size=3, pre_ping=False)
    REGISTRY.register(QueueCollector(engine, table.names(), lambda: leading.term))
    try:
        serve_metrics(settings)
    except UnavailableError as exc:
        sys.exit(str(exc))
    store = open_store(settings.store_url)
    pulse = Pulse(settings.alive_file)
    beat_of_passes = partial(pulse.beat, "scheduler", within_s=BEAT_WITHIN_S)
    beat_of_passes()  # before the threads, which vouch for longer
    kept = timedelta(days=settings.logs_kept_days)
    # The relay has its own connections: a pass must not wait while a hundred webhooks end at once.
    relay_engine = make_engine(settings.database_url, pool_size=2, pre_ping=False)
    outbound = Outbound(allow_private=settings.webhook_allow_private)
    threads: tuple[tuple[str, float, Callable[..., object]], ...] = (
        ("sweep", SWEEP_S + RUN_WITHIN_S, partial(sweep, engine, store, stopping)),
        ("sign", SIGN_S + RUN_WITHIN_S, partial(sign, engine, store, secret_key, stopping)),
        ("log-sweep", LOGS_SWEEP_S + RUN_WITHIN_S, partial(sweep_logs, engine, store, kept, stopping)),
        ("meter", METER_S + RUN_WITHIN_S, partial(meter, engine, stopping)),
        ("collect", POLL_S + RUN_WITHIN_S, partial(collect, engine, store, stopping)),
        ("follow-up", POLL_S + RUN_WITHIN_S, partial(follow_up, engine, stopping)),
        ("relay", BEAT_WITHIN_S, partial(relay, relay_engine, outbound, secret_key, stopping)),
    )
    for name, within_s, body in threads:
        beat = partial(pulse.beat, name, within_s=within_s)
        start_vital(partial(body, beat=beat), name=name, stopping=stopping)
    run(
        engine,
        open_wakeup(settings.redis_url),
        stopping,
        leader_lease_s=settings.leader_lease_s,
        beat=beat_of_passes,
    )


def run(
    engine: Engine, wakeup: Wakeup, stopping: threading.Event, *, leader_lease_s: float, beat: Beat = no_beat
) -> None:
    """Repeat the passes until ``stopping`` is set, also while the database is unavailable."""
    holder = uuid.uuid4()
    term: int | None = None
    elected_at = maintained_at = explained_at = float("-inf")
    while not stopping.is_set():
        beat()
        try:
            if term is None or time.monotonic() - elected_at >= leader_lease_s / 3:
                began = time.monotonic()
                with statement_session(engine) as session:
                    term = leadership.elect(session, holder, lease_s=leader_lease_s)
                elected_at = began
            _note_leading(term)
            if term is not None:
                for cluster in admission_pass(engine, holder, term):
                    wakeup.notify(agent_topic(cluster))
                if time.monotonic() - maintained_at >= POLL_S:
                    maintenance_pass(engine, holder, term)
                    maintained_at = time.monotonic()
                if time.monotonic() - explained_at >= EXPLAIN_S:
                    explanation_pass(engine, holder, term)
                    explained_at = time.monotonic()
            database_answers.came()
        except UnavailableError as exc:
            database_answers.failed()
            log.warning("%s", exc, extra={"action": "database_away"})
        except DeposedError as exc:
            log.warning("%s", exc, extra={"action": "deposed"})
            term = None
            continue  # without a wait: there may be no leader now
        wakeup.wait(SCHEDULER, POLL_S)
    leading.term = None
    try:
        with system_session(engine) as session:
            leadership.resign(session, holder)
    except UnavailableError as exc:
        # The next leader waits for the lease to run out.
        log.warning("%s", exc, extra={"action": "database_away"})
    log.info("stopped", extra={"action": "stopped"})


def _note_leading(term: int | None) -> None:
    if term == leading.term:
        return
    leading.term = term
    if term is None:
        log.info("another scheduler leads", extra={"action": "following"})
    else:
        log.info("leading, term %s", term, extra={"action": "leading", "term": term})


def admission_pass(engine: Engine, holder: uuid.UUID, term: int) -> set[str]:
    """Admit jobs in one transaction; return the clusters whose agents have new jobs to claim. Users wait for this."""
    with PASS.labels("schedule").time(), system_session(engine) as session:
        leadership.check_leading(session, holder, term)
        admitted = admit(session, table.names(), agent_lost_after_s=AGENT_LOST_AFTER_S)
    for job in admitted:
        log.info(
            "job %s: admitted to cluster %s", job.job_id, job.cluster, extra={"action": "admitted", **job._asdict()}
        )
        if job.waited_s is not None:
            ADMISSION_WAIT.observe(job.waited_s)
    return {job.cluster for job in admitted}


def maintenance_pass(engine: Engine, holder: uuid.UUID, term: int) -> None:
    """Do everything that may wait a second, in one transaction.

    Apply requested changes, process redrives, give trainings the basis that they wait for, release dependents, withdraw
    jobs that no agent can claim, reap lost jobs, charge usage, pause jobs of spent budgets, tell organisations of
    their budgets, and delete agents that were last seen long ago.
    """
    with PASS.labels("maintenance").time(), system_session(engine) as session:
        leadership.check_leading(session, holder, term)
        apply_requested_changes(session)
        process_redrives(session)
        bases.follow_decompositions(session)
        release_dependents(session, table.names())
        withdraw(session, agent_lost_after_s=AGENT_LOST_AFTER_S)
        reaped = reap(session)
        ended = usage.charge(session)
        budgets.pause_spent(session, table.names())
        notices = budgets.give_notice(session)
        session.execute(delete(Agent).where(Agent.seen_at < func.now() - AGENT_FORGOTTEN_AFTER))
    for job in reaped:
        LEASE_LOST.labels("expired").inc()
        log.warning(
            "job %s: lease ran out, now %s", job.job_id, job.state, extra={"action": "lease_expired", **job._asdict()}
        )
    for notice in notices:
        extra = {"action": "budget_notice", "org_id": notice.org_id, "percent": notice.percent}
        log.warning("%d %% of a budget: %s", notice.percent, notice.use.sentence(), extra=extra)
    for (kind, outcome), count in ended.items():
        ATTEMPTS_ENDED.labels(kind, outcome).inc(count)


def explanation_pass(engine: Engine, holder: uuid.UUID, term: int) -> None:
    """Explain to each queued job what it waits for, in a transaction of its own: no admission waits for this."""
    with PASS.labels("explain").time(), system_session(engine) as session:
        leadership.check_leading(session, holder, term)
        explain(session, table.names(), agent_lost_after_s=AGENT_LOST_AFTER_S)


def follow_up(engine: Engine, stopping: threading.Event, beat: Beat = no_beat) -> None:
    """Fire schedules and decide gates until ``stopping`` is set, in transactions of their own."""

    def run_once() -> bool:
        with system_session(engine) as session:
            fired = process_next_due(session)
        watched = follow_regressions(engine)
        return advance_gate(engine) or fired or watched

    _run_periodically(run_once, POLL_S, stopping, beat, "following up", away="database_away", failed="follow_up_failed")


def follow_regressions(engine: Engine) -> bool:
    """Compare the new evaluations of one watched alias with its base, and fire its schedule; False if there are none.

    The comparison runs between two transactions, because it takes longer than a row may be locked.
    """
    with system_session(engine) as session:
        watched = regressions.next_watched(session)
    if watched is None:
        return False
    verdicts = regressions.verdicts_of(watched)
    with system_session(engine) as session:
        regressions.record(session, watched, verdicts)
    return True


def advance_gate(engine: Engine) -> bool:
    """Advance one gate by a step, and decide it if all is measured; False if no gate can be advanced.

    The comparison runs between two transactions, because it takes longer than a row may be locked.
    """
    with system_session(engine) as session:
        step = promotions.advance(session)
    if isinstance(step, promotions.Measured):
        findings = promotions.compare(step)
        with system_session(engine) as session:
            promotions.record_decision(session, step, findings)
        return True
    return step


def sweep(engine: Engine, store: ObjectStore, stopping: threading.Event, beat: Beat = no_beat) -> None:
    """Remove deleted checkpoints, versions and feedback, and exports and stored completions whose time is over.

    Until ``stopping`` is set. Run in a thread: no pass waits.
    """

    def run_once() -> bool:
        count = checkpoints.sweep(engine, store)
        if count:
            SWEPT.inc(count)
            log.info("swept %d deleted checkpoints", count, extra={"action": "swept", "checkpoints": count})
        if versions := deletion.sweep(engine, store):
            log.info("swept %d deleted expert versions", versions, extra={"action": "swept", "versions": versions})
        if exported := exports.sweep(engine, store):
            log.info("swept %d exports", exported, extra={"action": "swept", "exports": exported})
        with system_session(engine) as session:
            completions = listing.sweep(session)
        if completions:
            extra = {"action": "swept", "completions": completions}
            log.info("swept %d stored completions", completions, extra=extra)
        with system_session(engine) as session:
            return feedback.sweep(session) > 0 or any((count, versions, exported, completions))

    _run_periodically(run_once, SWEEP_S, stopping, beat, "sweeping", away="sweep_failed", failed="sweep_failed")


def meter(engine: Engine, stopping: threading.Event, beat: Beat = no_beat) -> None:
    """Count the bytes that are stored, and add up the months of organisations with a budget in money."""

    def run_once() -> bool:
        with system_session(engine) as session:
            stored_usage.sample(session)
        with system_session(engine) as session:
            return month_costs.compute_next(session)

    _run_periodically(run_once, METER_S, stopping, beat, "metering", away="database_away", failed="meter_failed")


def collect(engine: Engine, store: ObjectStore, stopping: threading.Event, beat: Beat = no_beat) -> None:
    """Make datasets of stored completions until ``stopping`` is set. Each may take minutes: no schedule waits."""
    run_once = partial(collecting.collect_next, engine, store, stopping)
    what = "collecting completions"
    _run_periodically(run_once, POLL_S, stopping, beat, what, away="database_away", failed="collect_failed")


def sign(engine: Engine, store: ObjectStore, secret_key: str, stopping: threading.Event, beat: Beat = no_beat) -> None:
    """Sign what was published until ``stopping`` is set."""
    _run_periodically(
        lambda: signing.sign_next(engine, store, secret_key) > 0,
        SIGN_S,
        stopping,
        beat,
        "signing versions",
        away="sign_failed",
        failed="sign_failed",
    )


def sweep_logs(
    engine: Engine, store: ObjectStore, kept: timedelta, stopping: threading.Event, beat: Beat = no_beat
) -> None:
    """Remove the logs of attempts that ended more than ``kept`` ago until ``stopping`` is set."""
    swept: job_logs.Swept | None = None

    def run_once() -> bool:
        nonlocal swept
        before = swept
        count, swept = job_logs.sweep(engine, store, kept=kept, after=before)
        if count:
            log.info("swept %d chunks of old logs", count, extra={"action": "logs_swept", "chunks": count})
        return swept != before

    what = "sweeping logs"
    _run_periodically(run_once, LOGS_SWEEP_S, stopping, beat, what, away="sweep_failed", failed="sweep_failed")


def _run_periodically(
    run_once: Callable[[], bool],
    every_s: float,
    stopping: threading.Event,
    beat: Beat,
    what: str,
    *,
    away: str,
    failed: str,
) -> None:
    """Call ``run_once`` every ``every_s`` seconds until ``stopping`` is set, and at once again while it returns True.

    ``beat`` is called before each call. ``away`` is the action that is logged if a service does not answer, ``failed``
    the one for any other error. No error ends the loop: the next call may succeed, and this thread is the only one that
    calls.
    """
    while not stopping.is_set():
        try:
            beat()
            while run_once() and not stopping.is_set():
                beat()
        except UnavailableError as exc:
            log.warning("%s", exc, extra={"action": away})
        except Exception:
            log.exception("%s failed", what, extra={"action": failed})
        stopping.wait(every_s)


if __name__ == "__main__":
    main()
