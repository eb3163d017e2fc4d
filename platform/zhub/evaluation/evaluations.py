"""Evaluations: a model measured on a suite, once, and compared on the same rows with the others.

A suite is a dataset file with a grader and the settings of sampling; its digest names it. The same subject on the
same suite is never run twice in a project: a second request gets the first evaluation, unless its job failed.
Functions take a Session and never commit.
"""

import hashlib
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.admission import limits
from zhub.datasets import files
from zhub.datasets.validated import distinct_rows, require_validated
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError
from zhub.evaluation import subjects
from zhub.evaluation.grader_requests import check_grader
from zhub.evaluation.statistics import accuracy
from zhub.evaluation.subjects import Subject, measures_base
from zhub.graders import Grader, GraderJson
from zhub.graders.types import STORED
from zhub.ids import public_id
from zhub.manifest import Z_FILE, Manifest, canonical_json
from zhub.models import DatasetVersion, Evaluation, Job
from zhub.queue import job_events, jobs
from zhub.queue.attempts import Succeeded
from zhub.registry import base_models, signing
from zhub.registry.versions import VersionRecord
from zhub.specs import BaseModelSource, EvaluatedZ, EvaluateSpec
from zhub.storage.keys import job_prefix
from zhub.tenancy.keys import Caller

MAX_EVALUATED_ROWS = 10_000
MAX_COMPARED = 20
SAMPLES_PER_K = 2  # for pass@k: n = 2k samples a row, so that the estimator averages over choices of k


class EvaluationRequest(Schema):
    """What to measure, on what, and what to compare it with. ``k`` of 2 or more adds pass@k from sampled answers."""

    model_config = ConfigDict(extra="forbid")
    model: str
    file: str
    grader: GraderJson
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=8192)] = 64
    k: Annotated[int, Field(strict=True, ge=1, le=50)] = 1
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**62)] = 0
    compare_with: Annotated[list[str], Field(max_length=MAX_COMPARED)] = []
    cluster: str | None = None
    """Which workers measure, by the name of their agent's cluster; None: ``default``, or where it waits already."""


class EvaluationReport(Schema):
    """A worker's report of a finished evaluation: one reward and one ``parsed`` for each distinct row, in order."""

    model_config = ConfigDict(frozen=True)
    rewards: Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=MAX_EVALUATED_ROWS)
    ]
    parsed: list[bool]
    pass_at_k: float | None
    rows_key: str


def create(session: Session, caller: Caller, request: EvaluationRequest, grader: Grader) -> list[Evaluation]:
    """The evaluations of ``model``, of its base and of ``compare_with``, in this order; the missing ones are enqueued.

    ``grader`` is the request's, parsed before the session began.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
        NotFoundError, NotReadyError, ConflictError: a model or the file is missing or not usable yet.
    """
    if request.cluster is not None:
        limits.check_cluster(session, request.cluster, param="cluster")
    return measure(session, caller, request, grader)


def check_suite(session: Session, caller: Caller, file_id: str, grader: Grader, *, base: str, param: str) -> None:
    """Refuse a file and a grader that could not be measured on this base; the fields lie within ``param``.

    Raises:
        InvalidRequestError, NotFoundError, NotReadyError: what ``create`` would raise.
    """
    file = _file(session, caller, file_id, f"{param}.file")
    check_grader(session, caller.org_id, grader, param=f"{param}.grader", bases=[base], files=[file])


def measure(session: Session, caller: Caller, request: EvaluationRequest, grader: Grader) -> list[Evaluation]:
    """Do what ``create`` does, without its checks of the organisation's queue and of the cluster's agents."""
    file = _file(session, caller, request.file, "file")
    named = [subjects.find(session, caller, request.model, "model")]
    named.append(Subject(named[0].base))
    named += [subjects.find(session, caller, name, f"compare_with.{i}") for i, name in enumerate(request.compare_with)]
    subjects.keep(session, named)
    bases = [subject.base.name for subject in named]
    check_grader(session, caller.org_id, grader, param="grader", bases=bases, files=[file])
    sampled = request.k > 1
    settings = {
        "grader": grader.model_dump(mode="json"),
        "max_new_tokens": request.max_new_tokens,
        "k": request.k,
        "n": SAMPLES_PER_K * request.k if sampled else 0,
        # Greedy answers use neither, so another value must not make another suite.
        "temperature": request.temperature if sampled else 0.0,
        "seed": request.seed if sampled else 0,
    }
    suite = {"file": {"name": file.filename, "sha256": file.sha256}, **settings}
    digest = hashlib.sha256(canonical_json({"file": file.sha256, **settings})).hexdigest()
    # Requests for one suite take turns, so that none of its evaluations is enqueued twice.
    session.execute(select(func.pg_advisory_xact_lock(int(digest[:15], 16))))
    made: dict[str, Evaluation] = {}
    for subject in named:
        if subject.name not in made:
            made[subject.name] = _evaluation(session, caller, subject, file, suite, digest, request.cluster)
    return list(made.values())


def finish(session: Session, job: Succeeded, report: Mapping[str, Any]) -> None:
    """Write the results of an evaluation, in the transaction that ends its job.

    Raises:
        ValueError: the report does not fit its schema, or its key lies outside of the job's own prefix.
    """
    measured = EvaluationReport.model_validate(report)
    if len(measured.parsed) != len(measured.rewards):
        raise ValueError(f"{len(measured.rewards)} rewards and {len(measured.parsed)} marks of what was parsed")
    if not measured.rows_key.startswith(f"{job_prefix(job.org_id, job.id)}/"):
        raise ValueError(f"the rows lie at '{measured.rows_key}', not within their job")
    results = accuracy(measured.rewards).model_dump() | {
        "parse_failures": measured.parsed.count(False),
        "pass_at_k": measured.pass_at_k,
    }
    session.execute(
        update(Evaluation)
        .where(Evaluation.job_id == job.id)
        .values(results=results, rewards=measured.rewards, rows_key=measured.rows_key)
    )


def check_redrive(session: Session, job: Job) -> None:
    """Refuse to run a dead evaluation again where that can come to nothing.

    Raises:
        ConflictError: it was asked for again since, and has another job.
        NotFoundError: the version that it measures was deleted.
    """
    evaluation = session.scalar(select(Evaluation).where(Evaluation.job_id == job.id))
    if evaluation is None:
        raise ConflictError("The evaluation was asked for again since and has another job.")
    record = subjects.records(session, [evaluation]).get(evaluation.id)
    if record is not None:
        subjects.keep_record(session, record)


def get(session: Session, project_id: uuid.UUID, evaluation_id: uuid.UUID) -> Evaluation:
    """The evaluation with this id in the project. Raises NotFoundError."""
    evaluation = session.get(Evaluation, evaluation_id)
    if evaluation is None or evaluation.project_id != project_id:
        raise NotFoundError("evaluation", public_id("evaluation", evaluation_id))
    return evaluation


def others(session: Session, evaluation: Evaluation) -> list[Evaluation]:
    """The other evaluations of the same suite in the project: those of bases first, then the newest."""
    return list(
        session.scalars(
            select(Evaluation)
            .where(
                Evaluation.project_id == evaluation.project_id,
                Evaluation.suite_digest == evaluation.suite_digest,
                Evaluation.id != evaluation.id,
            )
            .order_by(~measures_base(), Evaluation.id.desc())
            .limit(MAX_COMPARED)
        )
    )


def _evaluation(
    session: Session,
    caller: Caller,
    subject: Subject,
    file: DatasetVersion,
    suite: dict[str, Any],
    digest: str,
    cluster: str | None,
) -> Evaluation:
    """The evaluation of a subject on a suite; enqueued if there is none, or if its job failed or was cancelled."""
    row = session.execute(
        select(Evaluation, Job.state)
        .join(Job, Job.id == Evaluation.job_id)
        .where(
            Evaluation.project_id == caller.project_id,
            Evaluation.base_model_id == subject.base.id,
            Evaluation.version_id.is_not_distinct_from(subject.version_id),
            Evaluation.release_version_id.is_not_distinct_from(subject.release_version_id),
            Evaluation.suite_digest == digest,
        )
    ).one_or_none()
    earlier: Evaluation | None = row.Evaluation if row is not None else None
    state = row.state if row is not None else None
    if earlier is not None and state not in (states.FAILED, states.CANCELLED):
        if cluster is not None:
            _move(session, earlier.job_id, cluster)
        return earlier
    job = _job(session, caller, subject, file, suite)
    job.cluster = cluster or limits.DEFAULT_CLUSTER
    jobs.enqueue(session, job, f"Evaluation of {subject.name} on {file.filename} enqueued.")
    if earlier is not None:
        session.execute(update(Evaluation).where(Evaluation.id == earlier.id).values(job_id=job.id))
        session.refresh(earlier)
        return earlier
    made = Evaluation(
        org_id=caller.org_id,
        project_id=caller.project_id,
        job_id=job.id,
        base_model_id=subject.base.id,
        version_id=subject.version_id,
        release_version_id=subject.release_version_id,
        suite_digest=digest,
        suite=suite,
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    return made


def _move(session: Session, job_id: uuid.UUID, cluster: str) -> None:
    """Move a job that is still queued to another cluster: the first one may have no agent that would ever run it.

    Only to a cluster with a live agent, and not a job that is just being admitted.
    """
    elsewhere = (Job.id == job_id, Job.state == states.QUEUED, Job.cluster != cluster)
    moved = select(Job.id).where(*elsewhere, limits.is_alive(cluster)).with_for_update(skip_locked=True)
    org_id = session.scalar(update(Job).where(Job.id.in_(moved)).values(cluster=cluster).returning(Job.org_id))
    if org_id is not None:
        job_events.add(session, org_id, job_id, f"It was asked for on cluster '{cluster}', and waits there now.")


def _job(session: Session, caller: Caller, subject: Subject, file: DatasetVersion, suite: dict[str, Any]) -> Job:
    z = None
    if isinstance(subject.record, VersionRecord):
        manifest = Manifest.model_validate(subject.record.version.manifest)
        attested = signing.attested(session, [subject.record.version.id])
        z = EvaluatedZ(
            key=f"{subject.record.version.key_prefix}/{Z_FILE}",
            sha256=manifest.file(Z_FILE).sha256,
            recipe=manifest.recipe,
            hyperparameters=manifest.hyperparameters,
            attested=attested.get(subject.record.version.id),
        )
    spec = EvaluateSpec.model_validate(
        {
            **suite,
            "base": BaseModelSource.model_validate(subject.base.source),
            "basis": base_models.require_ready(subject.base),
            "z": z,
            "release": subject.release,
            "file": files.stored_file(file),
        },
        context=STORED,
    )
    return Job(
        org_id=caller.org_id,
        project_id=caller.project_id,
        kind="evaluate",
        spec=spec.model_dump(mode="json"),
        base_model_id=subject.base.id,
        dataset_version_id=file.id,
        asked_by=caller.key_id,
    )


def _file(session: Session, caller: Caller, file_id: str, param: str) -> DatasetVersion:
    version = require_validated(session, caller.project_id, file_id, param=param)
    if (rows := distinct_rows(version)) > MAX_EVALUATED_ROWS:
        raise InvalidRequestError(
            f"{param}: '{version.filename}' has {rows:,} different rows; an evaluation takes at most "
            f"{MAX_EVALUATED_ROWS:,}. Upload a sample of them.",
            param=param,
            code="dataset_too_large",
        )
    return version
