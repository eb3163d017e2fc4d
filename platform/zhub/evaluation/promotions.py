"""Promotions: a version of an expert or release gets an alias such as ``@prod`` if it passes its gate, and only then.

A promotion is a job of the kind ``gate``. It waits for a training, if it was requested with one, has the version and
the one that the alias points to measured on the gate's suites, waits for these evaluations, and decides. No worker is
needed for that: every scheduler looks after gates. It takes a gate's next step under a lock on the gate's row. It
compares what was measured without a transaction, and writes the decision in another one, where it still holds.

Functions take a Session and never commit.
"""

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import exists, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from zhub import states
from zhub.admission import limits
from zhub.errors import ConflictError, ZhubError
from zhub.evaluation import evaluations, gates, subjects
from zhub.evaluation.evaluations import EvaluationRequest
from zhub.evaluation.gates import Finding, Gate, MeasuredSuite, Suite
from zhub.evaluation.subjects import Record
from zhub.graders import Grader
from zhub.graders.parsing import stored_grader
from zhub.ids import public_id
from zhub.models import BaseModel, Evaluation, Job, JobDependency, Project, Promotion
from zhub.queue import dependencies, job_events, jobs
from zhub.queue.desired import request_cancel
from zhub.registry import aliases, releases, versions
from zhub.registry.publish import published
from zhub.registry.releases import ReleaseRecord
from zhub.registry.versions import VersionRecord
from zhub.tenancy import audit
from zhub.tenancy.audit import Actor
from zhub.tenancy.keys import Caller

FAILED_TO_DECIDE = "zhub failed to decide; its log says why."

log = logging.getLogger("zhub.promotions")


class PromotionRequest(Gate):
    """A gate for a version that exists."""

    model: str


@dataclass(frozen=True)
class Measured:
    """A gate whose evaluations have all succeeded: what to decide by, and ``current``, to which the alias points."""

    job: Job
    gate: Gate
    record: Record
    current: Record | None
    suites: Sequence[MeasuredSuite]


def create(session: Session, caller: Caller, request: PromotionRequest, graders: Sequence[Grader]) -> Promotion:
    """Have a version measured, and promoted if it passes. ``graders``: see ``gates.read_graders``.

    Raises:
        InvalidRequestError, NotFoundError, NotReadyError: the version, a file or a grader is not usable.
        QuotaExceededError: the organisation's queue is full.
    """
    record = subjects.find_version(session, caller.project_id, request.model)
    subjects.keep_record(session, record)
    _check_promotable(record)
    gate = Gate.model_validate(request.model_dump(exclude={"model"}))
    _check(session, caller, gate, graders, base=record.base.name)
    return _add(session, caller, gate, record=record)


def create_for_training(
    session: Session, caller: Caller, gate: Gate, graders: Sequence[Grader], training: Job
) -> Promotion:
    """Have the version that a training will publish measured, and promoted if it passes.

    Raises:
        InvalidRequestError, NotFoundError, NotReadyError: a file or a grader is not usable.
    """
    check_gate_of_training(session, caller, gate, graders, session.get_one(BaseModel, training.base_model_id))
    gate = gate.model_copy(update={"cluster": gate.cluster or training.cluster})
    return _add(session, caller, gate, training_job_id=training.id)


def check_gate_of_training(
    session: Session, caller: Caller, gate: Gate, graders: Sequence[Grader], base: BaseModel
) -> None:
    """Refuse the gate of a training on this base where ``create_for_training`` would; write nothing."""
    _check(session, caller, gate, graders, base=base.name, within="promotion.")


def cancel(session: Session, promotion: Promotion) -> None:
    """Request that a promotion is cancelled. Its evaluations go on: their figures are useful by themselves.

    Raises:
        ConflictError: it has ended.
    """
    request_cancel(session, promotion.job_id)


def advance(session: Session) -> Measured | bool:
    """Take one gate whose dependencies have ended one step further; False where there is none.

    Its row stays locked until the transaction ends, and other schedulers pass it by. A gate that can be decided is
    returned for ``compare`` and ``record_decision``. The caller commits before it compares.
    """
    needed = aliased(Job)
    unfinished = exists().where(
        JobDependency.job_id == Job.id, JobDependency.needs_job_id == needed.id, needed.finished_at.is_(None)
    )
    job = session.scalar(
        select(Job)
        .where(Job.kind == "gate", Job.state == states.WAITING, Job.desired == "run", ~unfinished)
        .order_by(Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if job is None:
        return False
    measured = None
    with _fails_alone(session, job):
        measured = _step(session, job, _promotion(session, job))
    return measured or True


def compare(measured: Measured) -> list[Finding] | None:
    """Compare what was measured, without a session: it takes a while. None where that failed; the log says why."""
    try:
        return [gates.finding(measured.gate.rule, measured.record.name, suite) for suite in measured.suites]
    except Exception:
        _log_failure(measured.job)
        return None


def record_decision(session: Session, measured: Measured, findings: Sequence[Finding] | None) -> None:
    """Write a decision, and move the alias if the version passed.

    Nothing is written where another scheduler has decided meanwhile, where the promotion was cancelled, or where the
    alias has moved: the next step of the gate compares with the version that it points to then. The evaluations cannot
    have changed: one that succeeded is final.
    """
    undecided = (Job.id == measured.job.id, Job.state == states.WAITING, Job.desired == "run")
    job = session.scalar(select(Job).where(*undecided).with_for_update())
    if job is None:
        return
    if findings is None:
        return _end(session, job, states.FAILED, FAILED_TO_DECIDE, code="internal_error")
    with _fails_alone(session, job):
        _record_decision(session, job, _promotion(session, job), measured, findings)


def _check(
    session: Session, caller: Caller, gate: Gate, graders: Sequence[Grader], *, base: str, within: str = ""
) -> None:
    aliases.check_alias(gate.alias, param=f"{within}alias")
    if gate.cluster is not None:
        limits.check_cluster(session, gate.cluster, param=f"{within}cluster")
    for i, (suite, grader) in enumerate(zip(gate.suites, graders, strict=True)):
        evaluations.check_suite(session, caller, suite.file, grader, base=base, param=f"{within}suites.{i}")


def _add(
    session: Session,
    caller: Caller,
    gate: Gate,
    *,
    record: Record | None = None,
    training_job_id: uuid.UUID | None = None,
) -> Promotion:
    job = Job(org_id=caller.org_id, project_id=caller.project_id, kind="gate", spec={}, state=states.WAITING)
    jobs.enqueue(session, job, f"Promotion to @{gate.alias} requested.")
    if training_job_id is not None:
        dependencies.add(session, job, [training_job_id])
    promotion = Promotion(
        org_id=caller.org_id,
        project_id=caller.project_id,
        job_id=job.id,
        training_job_id=training_job_id,
        version_id=record.version.id if isinstance(record, VersionRecord) else None,
        release_version_id=record.version.id if isinstance(record, ReleaseRecord) else None,
        alias=gate.alias,
        gate=gate.model_dump(mode="json"),
    )
    session.add(promotion)
    session.flush()
    session.refresh(promotion)
    return promotion


def _promotion(session: Session, job: Job) -> Promotion:
    return session.scalars(select(Promotion).where(Promotion.job_id == job.id)).one()


@contextmanager
def _fails_alone(session: Session, job: Job) -> Iterator[None]:
    """End a gate that cannot be decided: it must not stand in the way of every other gate."""
    try:
        with session.begin_nested():
            yield
    except ZhubError as exc:
        _end(session, job, states.FAILED, str(exc), code=exc.code)
    except DBAPIError:
        raise
    except Exception:
        _log_failure(job)
        _end(session, job, states.FAILED, FAILED_TO_DECIDE, code="internal_error")


def _log_failure(job: Job) -> None:
    log.exception("gate %s", job.id, extra={"action": "gate_failed", "org_id": job.org_id, "job_id": job.id})


def _step(session: Session, job: Job, promotion: Promotion) -> Measured | None:
    """End the gate, have what is missing measured, or return what was measured once all of it is there."""
    needs = dependencies.of(session, [job.id]).get(job.id, [])
    for needed in needs:
        if needed.kind == "evaluate" and needed.state != states.SUCCEEDED:
            why = (needed.error or {}).get("message", "it was cancelled")
            _end(session, job, states.FAILED, f"An evaluation did not succeed: {why}", code="dependency_failed")
            return None
    record = _version(session, promotion)
    if record is None:
        message = "The training did not succeed, so there is nothing to promote."
        _end(session, job, states.CANCELLED, message, code="dependency_failed")
        return None
    _check_promotable(record)
    gate = Gate.model_validate(promotion.gate)
    current = _current(session, record, gate.alias)
    measured = [_measure(session, job, record, current, suite, gate.cluster) for suite in gate.suites]
    evaluating = {evaluation.job_id for of_suite in measured for evaluation in of_suite}
    dependencies.add(session, job, sorted(evaluating - {needed.id for needed in needs}))
    if session.scalar(select(Job.id).where(Job.id.in_(evaluating), Job.finished_at.is_(None)).limit(1)):
        job_events.add(session, job.org_id, job.id, f"{record.name} is being measured.")
        return None
    suites = [
        _measured_suite(session, record, current, suite, of_suite)
        for suite, of_suite in zip(gate.suites, measured, strict=True)
    ]
    return Measured(job, gate, record, current, suites)


def _check_promotable(record: Record) -> None:
    if isinstance(record, VersionRecord):
        aliases.check_promotable(record)


def _current(session: Session, record: Record, alias: str) -> Record | None:
    """The version that the alias points to, of what ``record`` is a version of."""
    current_id = aliases.current(session, aliases.owner_of(record), alias)
    if current_id is None:
        return None
    by_id = versions.by_id if isinstance(record, VersionRecord) else releases.by_id
    return by_id(session, [current_id])[current_id]


def _version(session: Session, promotion: Promotion) -> Record | None:
    """The version that is to be promoted; None where its training ended without one."""
    if promotion.release_version_id is not None:
        return releases.by_id(session, [promotion.release_version_id])[promotion.release_version_id]
    if promotion.version_id is None:
        version = published(session, promotion.training_job_id) if promotion.training_job_id else None
        if version is None:
            return None
        promotion.version_id = version.id
        session.flush()
    return versions.by_id(session, [promotion.version_id])[promotion.version_id]


def _measure(
    session: Session,
    job: Job,
    record: Record,
    current: Record | None,
    suite: Suite,
    cluster: str | None,
) -> list[Evaluation]:
    """Evaluations of the version, of its base, and of the version that the alias points to; enqueued where missing."""
    request = EvaluationRequest(
        model=record.name,
        file=suite.file,
        grader=suite.grader,
        max_new_tokens=suite.max_new_tokens,
        compare_with=[current.name] if current is not None else [],
        cluster=cluster,
    )
    project = session.scalars(select(Project).where(Project.id == job.project_id)).one()
    # The gate acts for whoever requested it, within the one project.
    caller = Caller(job.id, job.org_id, job.project_id, project.name, frozenset())
    return evaluations.measure(session, caller, request, stored_grader(suite.grader, param="grader"))


def _measured_suite(
    session: Session, record: Record, current: Record | None, suite: Suite, measured: Sequence[Evaluation]
) -> MeasuredSuite:
    own, *others = measured
    assert own.results is not None and own.rewards is not None
    by_version = {other.version_id or other.release_version_id: tuple(other.rewards or ()) for other in others}
    compared = [(record.base.name, by_version[None])]
    warnings = subjects.warnings(session, [own], {own.id: record})[own.id]
    if current is not None and current.version.id == record.version.id:
        warnings.append(f"The alias points to {record.name} already: it is compared with its base only.")
    elif current is not None:
        compared.insert(0, (current.name, by_version[current.version.id]))
    return MeasuredSuite(
        file=own.suite["file"]["name"],
        min_mean=suite.min_mean,
        mean=own.results["mean"],
        rewards=tuple(own.rewards),
        others=compared,
        warnings=warnings,
    )


def _audit_move(session: Session, job: Job, record: Record, promotion: Promotion, measured: Measured) -> None:
    before = {"version": None if measured.current is None else measured.current.name}
    audit.add(
        session,
        job.org_id,
        Actor(f"gate {public_id('promotion', promotion.id)}"),
        "alias.moved",
        f"{record.name.partition('@')[0]}@{promotion.alias}",
        project_id=job.project_id,
        before=before,
        after={"version": record.name},
    )


def _record_decision(
    session: Session, job: Job, promotion: Promotion, measured: Measured, findings: Sequence[Finding]
) -> None:
    record, alias = measured.record, f"@{promotion.alias}"
    compared_with = measured.current.version.id if measured.current is not None else None
    if aliases.current(session, aliases.owner_of(record), promotion.alias) != compared_with:
        return
    passed = all(finding.passed for finding in findings)
    if passed:
        expected = aliases.Expected(compared_with)
        by = public_id("promotion", promotion.id)
        try:
            with session.begin_nested():
                aliases.move(session, promotion.alias, record, by=by, reason="passed its gate", expected=expected)
                if compared_with != record.version.id:
                    _audit_move(session, job, record, promotion, measured)
        except ConflictError:
            return  # it has moved since we looked
    promotion.promoted = passed
    promotion.findings = [finding.as_json() for finding in findings]
    for finding in findings:
        for sentence in finding.sentences:
            job_events.add(session, job.org_id, job.id, f"{finding.file}: {sentence}")
    _end(
        session,
        job,
        states.SUCCEEDED,
        _outcome(record.name, alias, passed, was_current=compared_with == record.version.id),
    )


def _outcome(name: str, alias: str, passed: bool, *, was_current: bool) -> str:
    if passed:
        return f"{name} passed: {alias} points to it already." if was_current else f"{name} is {alias} now."
    return f"{name} did not pass: {alias} {'still points to it' if was_current else 'stays where it is'}."


def _end(session: Session, job: Job, state: str, message: str, *, code: str | None = None) -> None:
    error = {"code": code, "message": message, "param": None} if code is not None else None
    changed = session.scalar(
        update(Job)
        .where(Job.id == job.id, Job.state == states.WAITING)
        .values(state=state, finished_at=func.now(), error=error)
        .returning(Job.id)
    )
    if changed is not None:
        job_events.add(session, job.org_id, job.id, message, level="error" if code is not None else "info")
