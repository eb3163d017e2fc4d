"""The agent's loop: it claims admitted jobs from SQL, runs them on workers, and records how they end.

The agent is the only process that drives Ray. It may be killed at any moment: attempts go on in their detached actors,
and the next agent adopts them. Each round reads and writes SQL in short transactions and calls Ray between
transactions, never inside one.
"""

import logging
import threading
import time
import uuid
from functools import partial

from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert

from zhub import states
from zhub.database.sessions import statement_session, system_session
from zhub.errors import LeaseLostError, UnavailableError
from zhub.kinds import outcomes, table
from zhub.models import Agent as AgentRow
from zhub.models import Job
from zhub.process import tracing
from zhub.process.config import Settings
from zhub.process.metrics import LEASE_LOST, database_answers
from zhub.process.pulse import Beat, no_beat
from zhub.process.wakeup import SCHEDULER, Wakeup, agent_topic, job_topic
from zhub.queue import attempts, claims, job_events
from zhub.states import POOLS
from zhub_workers.agent.endings import STALLED, UNRECORDABLE, Recorder, record_failure, record_release
from zhub_workers.agent.followed import CLUSTER_STOPS, LEAVING, Followed
from zhub_workers.agent.launcher import Launcher, WorkerLostError, WorkerSilentError
from zhub_workers.agent.metrics import FENCE_REJECTED, FOLLOWED, ORPHANS_KILLED, PICKUP, ROUND, START
from zhub_workers.agent.reconcile import Adopt, Kill, Lose, reconcile
from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus

log = logging.getLogger("zhub.agent")

STOP_GRACE_S = 10.0  # from the first stop request until the agent kills the worker
RELEASE_S = 6.0  # for all attempts, where the process is ended 8 seconds after it was asked to stop
RELEASE_POLL_S = 0.05
ANNOUNCE_S = 5.0  # the leader takes an agent for lost after half a minute
RECONCILE_S = 5.0
MAX_CLAIMS = 8  # in one statement: the leases run while the attempts are started one after the other


class Agent:
    """Claims the jobs of one cluster and polls their attempts."""

    def __init__(self, settings: Settings, engine: Engine, launcher: Launcher, beat: Beat = no_beat) -> None:
        self.id = uuid.uuid4()
        self._settings = settings
        self._engine = engine
        self._launcher = launcher
        self._beat = beat
        self._followed: dict[AttemptKey, Followed] = {}
        self._jobs_with_news: set[uuid.UUID] = set()
        """Jobs with new events: ``run`` wakes the streams that follow them."""
        self._announced_at = self._reconciled_at = float("-inf")
        self._cluster_stops = False

    def run(self, wakeup: Wakeup, stopping: threading.Event, cluster_stops: threading.Event | None = None) -> None:
        """Repeat ``round`` until ``stopping`` is set. Attempts are left running: the next agent adopts them.

        Where ``cluster_stops`` is set then, there will be nothing to adopt: the attempts are released.
        """
        while not stopping.is_set():
            self._beat()
            try:
                with ROUND.time():
                    ended = self.round()
                database_answers.came()
                if ended:
                    wakeup.notify(SCHEDULER)
                while self._jobs_with_news:
                    wakeup.notify(job_topic(self._jobs_with_news.pop()))
            except UnavailableError as exc:
                database_answers.failed()
                log.warning("%s", exc, extra={"action": "database_away"})
            FOLLOWED.set(len(self._followed))
            wakeup.wait(agent_topic(self._settings.cluster), self._settings.poll_s)
        if cluster_stops is not None and cluster_stops.is_set():
            self.release(RELEASE_S)
            for job_id in self._jobs_with_news:
                wakeup.notify(job_topic(job_id))
        running = len(self._followed)
        extra = {"action": "stopped", "attempts": running}
        log.info("stopped; %d attempts go on in their workers", running, extra=extra)

    def release(self, grace_s: float) -> None:
        """Have all attempts leave their workers with a checkpoint, so that their jobs are queued again at once.

        An attempt that has not left after ``grace_s`` seconds is killed: its job goes on from the checkpoint before.
        """
        self._cluster_stops = True
        deadline = time.monotonic() + grace_s
        try:
            while self._followed and time.monotonic() < deadline:
                for followed in list(self._followed.values()):
                    self._follow(followed)
                time.sleep(RELEASE_POLL_S)
            for key in list(self._followed):
                self._launcher.kill(key)
                self._end(key, partial(record_release, key=key))
        except UnavailableError as exc:
            log.warning("jobs are not released: %s", exc, extra={"action": "database_away"})

    def round(self) -> bool:
        """Claim jobs and poll every attempt once. True if an attempt ended, so the scheduler may admit another job."""
        self._launcher.restore_pool_sizes()  # before the announcement, which counts the replacements of dead workers
        if time.monotonic() - self._announced_at >= ANNOUNCE_S:
            self._announce()
            self._announced_at = time.monotonic()
        self._claim()  # before polling, because admitted jobs wait for nothing else
        if time.monotonic() - self._reconciled_at >= RECONCILE_S:
            self._reconcile()
            self._reconciled_at = time.monotonic()
        ended = [self._follow(followed) for followed in list(self._followed.values())]
        if any(ended):
            self._claim()
        return any(ended)

    def _announce(self) -> None:
        settings = self._settings
        # At least one, also while no worker is ready: the first job may be admitted, and waits for the first worker.
        slots = max(1, self._launcher.slots())
        row = {"id": self.id, "cluster": settings.cluster, "slots": slots}
        row |= {"jobs_per_worker": settings.jobs_per_worker}
        now = {"seen_at": func.now(), "slots": slots}
        with system_session(self._engine) as session:
            statement = insert(AgentRow).values(row)
            session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=now))

    def _claim(self) -> None:
        for pool in POOLS:
            while True:
                free, packs = self._launcher.free(pool), self._launcher.packs(pool)
                if not free and not packs:
                    break
                limit = min(max(free, 1), MAX_CLAIMS)
                with statement_session(self._engine) as session:
                    claimed = claims.claim_up_to(
                        session,
                        limit,
                        self.id,
                        self._settings.cluster,
                        table.of_pool(pool),
                        lease_s=self._settings.lease_s,
                        light=table.names().light,
                        free=free,
                        packs=packs,
                    )
                for claim in claimed:
                    self._beat()
                    PICKUP.observe(claim.waited_s)
                    self._start(pool, claim)
                if len(claimed) < limit:
                    break

    def _start(self, pool: str, claim: claims.Claim) -> None:
        key = AttemptKey(claim.job_id, claim.fence)
        claimed_at = time.monotonic()
        tracing.note_span("queue", claim.queued_s, ended_s_ago=claim.waited_s, parent=claim.traceparent)
        tracing.note_span("pickup", claim.waited_s, parent=claim.traceparent)
        attempt = Attempt(
            key=key,
            org_id=claim.org_id,
            spec=claim.spec,
            store_url=self._settings.store_url,
            cache_dir=self._settings.cache_dir,
            device=self._settings.device,
            pack_key=claim.pack_key,
            checkpoint=claim.checkpoint,
            traceparent=claim.traceparent,
            workers=claim.workers,
            metric_sinks=tuple(self._settings.metric_sinks),
        )
        try:
            with tracing.span("start", parent=claim.traceparent, job_id=str(key.job_id), fence=key.fence):
                name = self._launcher.start(pool, attempt, self._settings.lease_s)
        except WorkerLostError as exc:
            log.warning("attempt %s: %s", key, exc, extra=_fields("worker_lost", key))
            # Discard the node: the worker may have died before this attempt started, so the job is not to blame.
            self._launcher.died_on(key)
            self._lose(key, "worker_died")
            return
        except WorkerSilentError as exc:
            name = "?"  # the attempt may have started: the next poll shows whether it has
            log.warning("attempt %s: %s", key, exc, extra=_fields("worker_silent", key))
        with system_session(self._engine) as session:
            attempts.note_actor(session, *key, name)
        self._followed[key] = Followed(key, claimed_at=claimed_at)
        about = {"org_id": claim.org_id, "kind": claim.kind, "worker": name}
        log.info("attempt %s: %s started on %s", key, claim.kind, name, extra=_fields("started", key) | about)

    def _follow(self, followed: Followed) -> bool:
        """Poll one attempt and record its report; True if it has ended."""
        key = followed.key
        self._beat()  # a round lasts long where many workers are silent
        try:
            status = self._launcher.poll(key, followed.seq, self._settings.lease_s)
        except WorkerLostError as exc:
            log.warning("attempt %s: %s", key, exc, extra=_fields("worker_lost", key))
            return self._lose(key, "worker_died")
        except WorkerSilentError as exc:
            # The lease is not renewed: if the worker stays silent, the leader reaps the job.
            log.warning("attempt %s: %s", key, exc, extra=_fields("worker_silent", key))
            return self._check_lease(key)
        progressed = status.progress != followed.progress
        if progressed:
            followed.progress, followed.progressed_at = status.progress, time.monotonic()
        try:
            with system_session(self._engine) as session:
                desired = attempts.heartbeat(
                    session,
                    *key,
                    lease_s=self._settings.lease_s,
                    progressed=progressed,
                    events=status.events,
                )
        except LeaseLostError as exc:
            return self._abandon(key, exc)
        except UNRECORDABLE as exc:
            self._launcher.kill(key)
            return self._fail_unrecordable(key, exc)
        if followed.claimed_at is not None:
            START.observe(time.monotonic() - followed.claimed_at)
            followed.claimed_at = None
        if status.events or status.state != "running":
            self._jobs_with_news.add(key.job_id)
        if status.events:
            followed.seq = status.events[-1].seq
        if status.state != "running":
            return self._record_end(key, status)
        if desired == "run" and (self._cluster_stops or key in self._launcher.leaving()):
            with system_session(self._engine) as session:
                attempts.preempt(session, *key, CLUSTER_STOPS if self._cluster_stops else LEAVING)
            desired = "preempt"
        # An attempt that has acknowledged a stop request stops, also if its job was resumed: another attempt follows.
        if desired != "run" or followed.stop_acknowledged:
            self._stop(followed)
            return False
        followed.stop_requested_at = None
        if time.monotonic() - followed.progressed_at > self._settings.stall_s:
            log.warning(
                "attempt %s: no progress for %.0f s", key, self._settings.stall_s, extra=_fields("stalled", key)
            )
            self._launcher.kill(key)
            LEASE_LOST.labels("stalled").inc()
            return self._end(
                key, lambda session: outcomes.record_failure(session, *key, STALLED, outcome="failed_infra")
            )
        return False

    def _stop(self, followed: Followed) -> None:
        """Resend the stop request until it is acknowledged; kill the worker after STOP_GRACE_S seconds."""
        now = time.monotonic()
        if followed.stop_requested_at is None:
            followed.stop_requested_at = now
        elif now - followed.stop_requested_at > STOP_GRACE_S:
            self._launcher.kill(followed.key)
            self._end(followed.key, lambda session: outcomes.record_stop(session, *followed.key))
            return
        if not followed.stop_acknowledged:
            try:
                self._launcher.request_stop(followed.key)
                followed.stop_acknowledged = True
            except (WorkerLostError, WorkerSilentError) as exc:
                log.warning("attempt %s: %s", followed.key, exc, extra=_fields("stop_unheard", followed.key))

    def _record_end(self, key: AttemptKey, status: AttemptStatus) -> bool:
        match status.state:
            case "succeeded":
                result = status.result or {}
                try:
                    ended = self._end(key, lambda session: outcomes.record_success(session, *key, result))
                except UNRECORDABLE as exc:
                    ended = self._fail_unrecordable(key, exc)
            case "stopped":
                ended = self._end(key, lambda session: outcomes.record_stop(session, *key))
            case _:
                failure = status.failure or attempts.LOST
                ended = self._end(key, lambda session: record_failure(session, key, failure))
        try:
            self._launcher.forget(key)
        except (WorkerLostError, WorkerSilentError) as exc:
            log.warning("attempt %s: %s", key, exc, extra=_fields("forget_failed", key))
        return ended

    def _end(self, key: AttemptKey, record: Recorder) -> bool:
        """Write the end of an attempt in one transaction, and stop polling it.

        If the connection breaks during the commit, the agent goes on polling the attempt. If the commit took effect,
        the next round's heartbeat raises LeaseLostError, and the agent abandons the attempt.
        """
        try:
            with system_session(self._engine) as session:
                state = record(session)
        except LeaseLostError as exc:
            return self._abandon(key, exc)
        log.info("attempt %s: ended, its job is %s", key, state, extra=_fields("ended", key) | {"state": state})
        self._followed.pop(key, None)
        return True

    def _fail_unrecordable(self, key: AttemptKey, reason: Exception) -> bool:
        """Fail the job of an attempt whose report cannot be stored: a second try would fail in the same way."""
        extra = _fields("unrecordable", key)
        log.error("attempt %s: its report cannot be recorded", key, exc_info=reason, extra=extra)
        failure = attempts.Failure(
            "internal_error", f"The attempt's report cannot be recorded ({type(reason).__name__})."
        )
        return self._end(key, lambda session: record_failure(session, key, failure))

    def _lose(self, key: AttemptKey, reason: str) -> bool:
        LEASE_LOST.labels(reason).inc()
        died_on = self._launcher.died_on(key)
        nodes = self._launcher.nodes() if died_on is not None else ()
        return self._end(key, lambda session: outcomes.record_loss(session, *key, died_on=died_on, nodes=nodes))

    def _abandon(self, key: AttemptKey, reason: LeaseLostError) -> bool:
        """Stop an attempt whose job another attempt owns, or whose job has ended; write nothing."""
        with system_session(self._engine) as session:
            job = session.get(Job, key.job_id)
            cancelled = job is not None and job.fence == key.fence and job.state in states.ACTIVE
        if cancelled:  # the attempt succeeded after the cancellation was accepted
            return self._end(key, lambda session: outcomes.record_stop(session, *key))
        FENCE_REJECTED.inc()
        log.warning("attempt %s: %s; abandoned", key, reason, extra=_fields("abandoned", key))
        self._release(key)
        self._followed.pop(key, None)
        return True

    def _release(self, key: AttemptKey) -> None:
        """Free the worker of an abandoned attempt: forget the attempt if it has ended, else kill the worker."""
        try:
            status = self._launcher.poll(key, 0, self._settings.lease_s)
            if status.state == "running":
                self._launcher.kill(key)
            else:
                self._launcher.forget(key)
        except WorkerLostError:
            return
        except WorkerSilentError:
            self._launcher.kill(key)

    def _check_lease(self, key: AttemptKey) -> bool:
        with system_session(self._engine) as session:
            job = session.get(Job, key.job_id)
            owned = job is not None and job.fence == key.fence and job.state in states.ACTIVE
        return False if owned else self._abandon(key, LeaseLostError(*key))

    def _reconcile(self) -> None:
        self._launcher.clean_up()
        # Workers first, rows second: else an attempt that another agent starts in between would look like an orphan.
        held = self._launcher.running().keys()
        with system_session(self._engine) as session:
            rows = session.execute(
                select(Job.id, Job.fence, Job.agent_id).where(
                    Job.state.in_(states.ACTIVE), Job.cluster == self._settings.cluster
                )
            ).all()
        leased = {AttemptKey(row.id, row.fence): row.agent_id == self.id for row in rows}
        for action in reconcile(leased, held, self._followed.keys()):
            self._beat()
            key = action.key
            name = type(action).__name__.lower()
            log.info("attempt %s: %s", key, name, extra=_fields(name, key))
            match action:
                case Kill():
                    ORPHANS_KILLED.inc()
                    self._release(key)
                case Adopt():
                    self._adopt(key)
                case Lose():
                    self._lose(key, "worker_missing")

    def _adopt(self, key: AttemptKey) -> None:
        """Poll an attempt that an earlier agent started, from the event after the last stored one."""
        with system_session(self._engine) as session:
            session.execute(update(Job).where(Job.id == key.job_id, Job.fence == key.fence).values(agent_id=self.id))
            seq = job_events.last_seq(session, *key)
        self._followed[key] = Followed(key, seq=seq)


def _fields(action: str, key: AttemptKey) -> dict[str, object]:
    """The fields of a log record about an attempt."""
    return {"action": action, **key._asdict()}
