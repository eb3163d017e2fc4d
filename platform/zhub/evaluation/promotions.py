"""Promotions: a version gets an alias such as ``@prod`` if it passes its gate, and only then.

A promotion is a job of the kind ``gate``. It waits for a training, if it was asked for with one, has the version and
what the alias stands on measured on the gate's suites, waits for these evaluations, and decides. Nothing of it needs a
worker: every scheduler looks after gates, and the lock on a gate's row is what lets one of them decide.

Functions take a Session and never commit.
"""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import exists, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from zhub import states
from zhub.admission import admit
from zhub.errors import ConflictError, NotFoundError, ZhubError
from zhub.evaluation import evaluations
from zhub.evaluation.evaluations import Comparison, EvaluationRequest
from zhub.graders import GraderJson
from zhub.ids import public_id
from zhub.models import BaseModel, Evaluation, Job, JobDependency, Project, Promotion
from zhub.queue import dependencies, job_events, jobs
from zhub.queue.desired import request_cancel
from zhub.registry import aliases, versions
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

MAX_SUITES = 5

log = logging.getLogger("zhub.promotions")

Rule = Literal["not_worse", "better"]


class Suite(Schema):
    """What to measure on: an evaluation's file and grader."""

    model_config = ConfigDict(extra="forbid")
    file: str
    grader: GraderJson
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=8192)] = 64
    min_mean: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The mean reward that the version must reach."""


class Gate(Schema):
    """What a version must pass to get the alias: ``rule`` on every suite, against what the alias stands on.

    ``not_worse``: not significantly worse. ``better``: significantly better. Where the alias stands on nothing yet,
    against the base. Worse than the base passes neither.
    """

    model_config = ConfigDict(extra="forbid")
    alias: str = "prod"
    rule: Rule = "not_worse"
    suites: Annotated[list[Suite], Field(min_length=1, max_length=MAX_SUITES)]
    cluster: str | None = None
    """Which workers measure, as in an evaluation; None: those that trained, where the gate came with a training."""


class PromotionRequest(Gate):
    """A gate for a version that exists."""

    model: str


@dataclass(frozen=True)
class Finding:
    """What a gate found on one suite."""

    file: str
    passed: bool
    sentences: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        return {"file": self.file, "passed": self.passed, "sentences": list(self.sentences)}


def create(session: Session, caller: Caller, request: PromotionRequest) -> Promotion:
    """Have a version measured and, if it passes, promoted.

    Raises:
        InvalidRequestError, NotFoundError, NotReadyError: the version, a file or a grader is not usable.
        QuotaExceededError: as many jobs of the organisation wait as may.
    """
    record = versions.version(session, caller.project_id, request.model)
    gate = Gate.model_validate(request.model_dump(exclude={"model"}))
    _check(session, caller, gate, record.base.name, "")
    return _add(session, caller, gate, version_id=record.version.id)


def create_for_training(session: Session, caller: Caller, gate: Gate, training: Job) -> Promotion:
    """Have what a training will publish measured and, if it passes, promoted.

    Raises:
        InvalidRequestError, NotFoundError, NotReadyError: a file or a grader is not usable.
    """
    base = session.get_one(BaseModel, training.base_model_id)
    _check(session, caller, gate, base.name, "promotion.")
    gate = gate.model_copy(update={"cluster": gate.cluster or training.cluster})
    return _add(session, caller, gate, training_job_id=training.id)


def get(session: Session, project_id: uuid.UUID, promotion_id: uuid.UUID) -> Promotion:
    """The promotion with this id in the project. Raises NotFoundError."""
    found = session.get(Promotion, promotion_id)
    if found is None or found.project_id != project_id:
        raise NotFoundError("promotion", public_id("promotion", promotion_id))
    return found


def list_promotions(
    session: Session, project_id: uuid.UUID, *, after: uuid.UUID | None, limit: int
) -> tuple[list[Promotion], bool]:
    """The project's promotions, newest first, and whether more follow."""
    statement = select(Promotion).where(Promotion.project_id == project_id)
    if after is not None:
        statement = statement.where(Promotion.id < after)
    found = list(session.scalars(statement.order_by(Promotion.id.desc()).limit(limit + 1)))
    return found[:limit], len(found) > limit


def of_trainings(session: Session, job_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
    """The promotion that waits or has waited for each of these trainings, where there is one."""
    rows = session.execute(
        select(Promotion.training_job_id, Promotion.id).where(Promotion.training_job_id.in_(job_ids))
    )
    return {training_id: promotion_id for training_id, promotion_id in rows if training_id is not None}


def cancel(session: Session, promotion: Promotion) -> None:
    """Ask for a promotion not to happen. Its evaluations go on: their figures are worth having.

    Raises:
        ConflictError: it has ended.
    """
    request_cancel(session, promotion.job_id)


def advance(session: Session) -> bool:
    """Take one gate whose dependencies have ended one step further; False where there is none.

    Its row stays locked until the transaction ends, and other schedulers pass it by.
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
    promotion = session.scalars(select(Promotion).where(Promotion.job_id == job.id)).one()
    try:
        with session.begin_nested():
            _step(session, job, promotion)
    except ZhubError as exc:
        _end(session, job, states.FAILED, str(exc), code=exc.code)
    except DBAPIError:
        raise
    except Exception:  # it must not stand in the way of every other gate
        log.exception("gate %s", job.id, extra={"action": "gate_failed", "org_id": job.org_id, "job_id": job.id})
        _end(session, job, states.FAILED, "zhub failed to decide; its log says why.", code="internal_error")
    return True


def decide(
    rule: Rule, name: str, mean: float, minimum: float | None, against: Sequence[tuple[str, Comparison]]
) -> tuple[bool, list[str]]:
    """Whether a version passes on one suite, and the sentences that say why.

    ``against`` has the comparison that the rule speaks of first; the base follows where it is not that itself.
    """
    sentences = [compared.sentence(name, other) for other, compared in against]
    first = against[0][1].verdict
    passed = first == "better" if rule == "better" else first != "worse"
    passed = passed and all(compared.verdict != "worse" for _, compared in against)
    if minimum is not None:
        reached = mean >= minimum
        sentences.append(f"Its mean reward is {mean:.3f}; the gate asks for {minimum:.3f}.")
        passed = passed and reached
    return passed, sentences


def _check(session: Session, caller: Caller, gate: Gate, base: str, prefix: str) -> None:
    aliases.check_alias(gate.alias, param=f"{prefix}alias")
    if gate.cluster is not None:
        admit.check_cluster(session, gate.cluster, param=f"{prefix}cluster")
    for i, suite in enumerate(gate.suites):
        param = f"{prefix}suites.{i}"
        evaluations.check_suite(session, caller, suite.file, suite.grader, base=base, param=param)


def _add(
    session: Session,
    caller: Caller,
    gate: Gate,
    *,
    version_id: uuid.UUID | None = None,
    training_job_id: uuid.UUID | None = None,
) -> Promotion:
    job = Job(org_id=caller.org_id, project_id=caller.project_id, kind="gate", spec={}, state=states.WAITING)
    jobs.enqueue(session, job, f"Promotion to @{gate.alias} asked for.")
    if training_job_id is not None:
        dependencies.add(session, job, [training_job_id])
    promotion = Promotion(
        org_id=caller.org_id,
        project_id=caller.project_id,
        job_id=job.id,
        training_job_id=training_job_id,
        version_id=version_id,
        alias=gate.alias,
        gate=gate.model_dump(mode="json"),
    )
    session.add(promotion)
    session.flush()
    session.refresh(promotion)
    return promotion


def _step(session: Session, job: Job, promotion: Promotion) -> None:
    needs = dependencies.of(session, [job.id]).get(job.id, [])
    for lost in needs:
        if lost.kind == "evaluate" and lost.state != states.SUCCEEDED:
            why = (lost.error or {}).get("message", "it was cancelled")
            return _end(session, job, states.FAILED, f"An evaluation did not succeed: {why}", code="dependency_failed")
    if promotion.version_id is None:
        version = versions.published(session, promotion.training_job_id) if promotion.training_job_id else None
        if version is None:
            message = "The training did not succeed, so there is nothing to promote."
            return _end(session, job, states.CANCELLED, message, code="dependency_failed")
        promotion.version_id = version.id
        session.flush()
    records = versions.versions_by_id(session, [promotion.version_id])
    record = records[promotion.version_id]
    gate = Gate.model_validate(promotion.gate)
    standing_id = aliases.current(session, record.expert.id, gate.alias)
    standing = versions.versions_by_id(session, [standing_id])[standing_id] if standing_id else None
    measured = [_measure(session, job, record, standing, suite, gate.cluster) for suite in gate.suites]
    evaluating = {one.job_id for found in measured for one in found}
    dependencies.add(session, job, sorted(evaluating - {needed.id for needed in needs}))
    if session.scalar(select(Job.id).where(Job.id.in_(evaluating), Job.finished_at.is_(None)).limit(1)):
        return job_events.add(session, job.org_id, job.id, f"{record.name} is being measured.")
    findings = [
        _finding(gate, record, standing, suite, found) for suite, found in zip(gate.suites, measured, strict=True)
    ]
    return _settle(session, job, promotion, record, standing, findings)


def _measure(
    session: Session,
    job: Job,
    record: VersionRecord,
    standing: VersionRecord | None,
    suite: Suite,
    cluster: str | None,
) -> list[Evaluation]:
    """Evaluations of the version, of its base, and of what the alias stands on, made where they are missing."""
    request = EvaluationRequest(
        model=record.name,
        file=suite.file,
        grader=suite.grader,
        max_new_tokens=suite.max_new_tokens,
        compare_with=[standing.name] if standing is not None else [],
        cluster=cluster,
    )
    project = session.scalars(select(Project).where(Project.id == job.project_id)).one()
    # The gate speaks for whoever asked for it, within the one project.
    caller = Caller(job.id, job.org_id, job.project_id, project.name, frozenset())
    return evaluations.measure(session, caller, request)


def _finding(
    gate: Gate, record: VersionRecord, standing: VersionRecord | None, suite: Suite, found: Sequence[Evaluation]
) -> Finding:
    own = found[0]
    others = {one.version_id: one for one in found[1:]}
    file = own.suite["file"]["name"]
    assert own.results is not None and own.rewards is not None
    names = [(standing.version.id, standing.name)] if standing is not None and standing.version.id in others else []
    against = [
        (name, evaluations.compare(tuple(own.rewards), tuple(others[version_id].rewards or ())))
        for version_id, name in [*names, (None, record.base.name)]
    ]
    passed, sentences = decide(gate.rule, record.name, own.results["mean"], suite.min_mean, against)
    return Finding(file, passed, [*sentences, *evaluations.warnings(own, record)])


def _settle(
    session: Session,
    job: Job,
    promotion: Promotion,
    record: VersionRecord,
    standing: VersionRecord | None,
    findings: Sequence[Finding],
) -> None:
    passed = all(finding.passed for finding in findings)
    if passed:
        expected = aliases.Expected(standing.version.id if standing is not None else None)
        by = public_id("promotion", promotion.id)
        try:
            with session.begin_nested():
                aliases.move(session, promotion.alias, record, by=by, reason="passed its gate", expected=expected)
        except ConflictError:
            return  # it moved a moment ago: the next look compares with where it stands now
    promotion.promoted = passed
    promotion.findings = [finding.as_json() for finding in findings]
    for finding in findings:
        for sentence in finding.sentences:
            job_events.add(session, job.org_id, job.id, f"{finding.file}: {sentence}")
    alias = f"@{promotion.alias}"
    outcome = f"{record.name} is {alias} now." if passed else f"{record.name} did not pass: {alias} stays where it is."
    _end(session, job, states.SUCCEEDED, outcome)


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
