"""From a request for fine-tuning to a job: all checks are made here, before a worker is needed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from zhub import states
from zhub.admission import limits
from zhub.answering import Attested
from zhub.datasets import files as datasets
from zhub.datasets.token_counts import long_rows_error
from zhub.datasets.validated import all_rows, distinct_rows, require_validated
from zhub.errors import InvalidRequestError, NotFoundError, NotReadyError
from zhub.evaluation import gates, promotions
from zhub.evaluation.gates import Gate
from zhub.evaluation.grader_requests import check_grader
from zhub.graders import Grader
from zhub.graders.parsing import GraderReader, parse_grader
from zhub.kinds import table
from zhub.manifest import ROUTING_FILE, Z_FILE
from zhub.models import BaseModel, DatasetVersion, Expert, Job
from zhub.queue import dependencies, jobs
from zhub.recipes import FewShotHyperparameters, Hyperparameters, Recipe
from zhub.registry import base_models, sharing, signing, versions
from zhub.registry.limitations import check_trainable_base
from zhub.registry.publish import check_trainable, expert_name, get_or_create_expert
from zhub.specs import BaseModelSource, BasisReference, StartingPoint, TrainPlan
from zhub.tenancy import idempotency
from zhub.tenancy.keys import Caller
from zhub.tenancy.metadata import Metadata
from zhub.training import estimates, few_shot
from zhub.training.estimates import Estimate
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub.training.methods import read_method
from zhub.training.packing import pack_key
from zhub.training.rows import check_rows

MAX_STARTS = 64  # the newest: a worker fetches them all
RETRY_WINDOW = timedelta(minutes=10)


class JobRequest(Schema):
    """A request for fine-tuning, in the shape of the OpenAI dialect."""

    model_config = ConfigDict(extra="forbid")
    model: str
    training_file: str
    validation_file: str | None = None
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None
    suffix: str | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    metadata: Metadata | None = None
    integrations: list[Any] | None = None
    depends_on: Annotated[list[str], Field(max_length=dependencies.MAX_NEEDED)] = []
    """Not in the dialect: fine-tuning jobs that must have succeeded before this one is queued."""
    dedup_key: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Not in the dialect: while a job of the project with this key has not ended, the answer is that one."""
    promotion: Gate | None = None
    """Not in the dialect: the gate that the version must pass to get an alias."""
    cluster: str = limits.DEFAULT_CLUSTER
    """Not in the dialect: which workers train it, by the name of their agent's cluster."""
    priority: Annotated[int, Field(strict=True, ge=0, le=jobs.MAX_PRIORITY)] = 0
    """Not in the dialect: each one is a head start of ten minutes over the other jobs of the organisation."""


@dataclass(frozen=True)
class Graders:
    """The graders of a request: its own, None where the recipe needs none, and those of its gate's suites."""

    own: Grader | None
    gate: Sequence[Grader]


def read_graders(request: JobRequest, read: GraderReader = parse_grader) -> Graders:
    """Read the graders of a request, which may take seconds: before a session begins.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
    """
    method = read_method(request.method, request.hyperparameters)
    own = None if method.grader is None else read(method.grader, param=method.grader_param)
    gate = request.promotion
    return Graders(own, gates.read_graders(gate, within="promotion.", read=read) if gate is not None else ())


def create(
    session: Session,
    caller: Caller,
    request: JobRequest,
    graders: Graders,
    *,
    idempotency_key: str | None,
    is_retry: bool,
) -> Job:
    """Validate a request against dataset, base model and hyper-parameters, and enqueue its job.

    With ``is_retry`` the client repeats a call because it got no answer: if an equal request was made in the last
    ten minutes, its job is returned, and none is made.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
        NotFoundError, NotReadyError, ConflictError: the base model or a file is missing or not usable yet, or the
            expert is archived or was renamed.
        QuotaExceededError: the organisation's queue is full.
        IdempotencyMismatchError: the key came with another body before.
    """
    request_hash = idempotency.hash_of(request)
    if earlier := _earlier(session, caller, request_hash, idempotency_key, is_retry):
        return earlier
    if request.dedup_key is not None and (
        live := jobs.find_by_dedup_key(session, caller.project_id, request.dedup_key)
    ):
        return live
    limits.check_queue(session, caller.org_id, table.names())
    resolved = resolve_training(session, caller, request, graders.own)
    versions.keep(session, resolved.starts)
    expert = get_or_create_expert(session, caller, resolved.spec.expert)
    job = job_of(resolved, expert)
    job.request_hash, job.idempotency_key, job.dedup_key = request_hash, idempotency_key, request.dedup_key
    job.asked_by = caller.key_id
    needs = dependencies.needed(session, caller.project_id, request.depends_on, param="depends_on")
    for_base = dependencies.waits_for_base(job)
    job.state = states.WAITING if needs or for_base else states.QUEUED
    created = f"Created fine-tuning job for expert {caller.project}.{expert.name}."
    if for_base:
        created += f" It waits for the base model '{resolved.base.name}' to be decomposed."
    try:
        jobs.enqueue(session, job, created)
    except IntegrityError as exc:
        if idempotency_key is None and request.dedup_key is None:
            raise
        # A job's only unique values are its keys: another request with one was committed after our look.
        raise NotReadyError("A request with this Idempotency-Key or dedup_key is being answered; try again.") from exc
    dependencies.add(session, job, [needed.id for needed in needs])
    if request.promotion is not None:
        promotions.create_for_training(session, caller, request.promotion, graders.gate, job)
    session.refresh(job)
    return job


@dataclass(frozen=True)
class ResolvedTraining:
    """A request with everything that it names looked up and checked. The expert may be new: only its name is known."""

    request: JobRequest
    base: BaseModel
    training: DatasetVersion
    validation: DatasetVersion | None
    starts: Sequence[versions.VersionRecord]
    spec: TrainPlan
    estimate: Estimate

    @property
    def workers(self) -> int:
        """How many workers it takes where it does not share one."""
        return self.spec.hyperparameters.data_parallel

    @property
    def method(self) -> dict[str, Any]:
        """The ``method`` that the API shows: as requested, with the values that were chosen for it."""
        method: dict[str, Any] = {"hyperparameters": self.spec.hyperparameters.model_dump(mode="json")}
        if self.spec.grader is not None:
            method["grader"] = self.spec.grader.model_dump(mode="json")
        if self.spec.recipe == "few_shot":
            method["experts"] = [start.name for start in self.starts]
        return {"type": self.spec.recipe, self.spec.recipe: method}


def check_training(session: Session, caller: Caller, request: JobRequest, graders: Graders) -> ResolvedTraining:
    """Make every check of ``create`` but that of the organisation's queue, and write nothing. Raises what it does."""
    resolved = resolve_training(session, caller, request, graders.own)
    dependencies.needed(session, caller.project_id, request.depends_on, param="depends_on")
    if request.promotion is not None:
        promotions.check_gate_of_training(session, caller, request.promotion, graders.gate, resolved.base)
    return resolved


def resolve_training(session: Session, caller: Caller, request: JobRequest, grader: Grader | None) -> ResolvedTraining:
    """Look up everything that the training of a request needs, and check it. Reads only.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
        NotFoundError, NotReadyError, ConflictError: the base model or a file is missing or not usable yet.
    """
    if request.integrations:
        raise InvalidRequestError("Integrations are not supported; leave them out.", param="integrations")
    inputs = _inputs(session, caller, request, grader)
    limits.check_cluster(session, request.cluster, param="cluster")
    if request.suffix is not None and not 1 <= len(request.suffix) <= 64:
        raise InvalidRequestError("A suffix has 1 to 64 characters.", param="suffix")
    starts = _starts(session, caller, inputs)
    signed = signing.attested(session, [record.version.id for record in starts])
    name = expert_name(request.suffix, inputs.training.filename)
    check_trainable(session, caller.project_id, name)
    spec = TrainPlan(
        expert=name,
        base=BaseModelSource.model_validate(inputs.base.source),
        basis=inputs.basis,
        training_file=datasets.stored_file(inputs.training),
        validation_file=datasets.stored_file(inputs.validation) if inputs.validation else None,
        recipe=inputs.recipe,
        hyperparameters=inputs.hyperparameters,
        grader=grader,
        seed=request.seed if request.seed is not None else random.SystemRandom().randrange(2**31),
        starts=[_starting_point(record, signed.get(record.version.id)) for record in starts],
    )
    estimated = estimates.estimate(session, inputs.base.id, inputs.recipe, inputs.hyperparameters)
    return ResolvedTraining(request, inputs.base, inputs.training, inputs.validation, starts, spec, estimated)


def job_of(resolved: ResolvedTraining, expert: Expert) -> Job:
    """The job of a training, not enqueued."""
    request = resolved.request
    return Job(
        org_id=expert.org_id,
        project_id=expert.project_id,
        kind="train",
        spec=resolved.spec.model_dump(mode="json"),
        request={
            "model": request.model,
            "method": resolved.method,
            "suffix": request.suffix,
            "seed": resolved.spec.seed,
            "metadata": request.metadata or {},
        },
        base_model_id=resolved.base.id,
        dataset_version_id=resolved.training.id,
        validation_version_id=resolved.validation.id if resolved.validation else None,
        expert_id=expert.id,
        cluster=request.cluster,
        priority=request.priority,
        pack_key=pack_key(resolved.spec),
        workers=resolved.workers,
        expected_s=resolved.estimate.seconds,
    )


@dataclass(frozen=True)
class _Inputs:
    """What a request names, looked up and checked.

    ``parent`` is the version that training begins from, if any, and ``mixed`` are those that a few-shot search mixes.
    """

    base: BaseModel
    basis: BasisReference | None
    parent: versions.VersionRecord | None
    mixed: Sequence[versions.VersionRecord]
    training: DatasetVersion
    validation: DatasetVersion | None
    recipe: Recipe
    hyperparameters: Hyperparameters


def _inputs(session: Session, caller: Caller, request: JobRequest, grader: Grader | None) -> _Inputs:
    parent = sharing.get_version(session, caller, request.model, "fork") if "@" in request.model else None
    base = parent.base if parent else base_models.get(session, caller.org_id, request.model)
    basis = base_models.basis_of(base)
    check_trainable_base(base.name, base.details)
    training = _file(session, caller, request.training_file, "training_file")
    validation = None
    if request.validation_file:
        validation = _file(session, caller, request.validation_file, "validation_file")
    method = read_method(request.method, request.hyperparameters)
    check_rows(training, method.recipe, "training_file")
    if validation is not None:
        check_rows(validation, method.recipe, "validation_file")
    if grader is not None:
        files = [training, validation] if validation is not None else [training]
        check_grader(session, caller.org_id, grader, param=method.grader_param, bases=[base.name], files=files)
    kept = method.hyperparameters.get("duplicates") == "keep"
    train_rows = all_rows(training) if kept else distinct_rows(training)
    resolved = resolve_hyperparameters(method.recipe, method.hyperparameters, train_rows=train_rows)
    few_shot.check_start(resolved, grader)
    if parent is not None:
        _check_parent(parent, resolved, basis)
    mixed = few_shot.mixed_versions(session, caller.project_id, base, basis, method.experts)
    if resolved.long_rows == "refuse" and (error := long_rows_error(session, base, training, validation)):
        raise InvalidRequestError(str(error), param="training_file", code=error.code)
    return _Inputs(base, basis, parent, mixed, training, validation, method.recipe, resolved)


def _check_parent(parent: versions.VersionRecord, hyper: Hyperparameters, basis: BasisReference | None) -> None:
    if isinstance(hyper, FewShotHyperparameters):
        raise InvalidRequestError(
            f"A few-shot search begins from the base. Give '{parent.base.name}' as the model, and '{parent.name}' "
            "among the experts.",
            param="model",
        )
    if parent.adapter != "svf" or hyper.adapter != "svf" or hyper.parameterisation != "multiplier":
        raise InvalidRequestError(
            "Only a training of the adapter 'svf', with the parameterisation 'multiplier', can begin from an expert, "
            "and only from one of that adapter. Give the base model.",
            param="model",
        )
    if hyper.warm_start != "off":
        raise InvalidRequestError(
            f"The training begins from '{parent.name}' already: leave warm_start out, or give the base model.",
            param="model",
        )
    if basis is None or parent.version.manifest["basis_fingerprint"] != basis.basis_fingerprint:
        raise InvalidRequestError(
            f"'{parent.name}' belongs to an earlier basis of '{parent.base.name}'. Give the base model.", param="model"
        )


def _starts(session: Session, caller: Caller, inputs: _Inputs) -> Sequence[versions.VersionRecord]:
    hyper = inputs.hyperparameters
    if isinstance(hyper, FewShotHyperparameters):
        return inputs.mixed
    if hyper.warm_start == "nearest":
        return versions.newest(session, caller.project_id, inputs.base, limit=MAX_STARTS)
    return [inputs.parent] if inputs.parent is not None else []


def _starting_point(record: versions.VersionRecord, attested: Attested | None) -> StartingPoint:
    files = {file["name"]: file["sha256"] for file in record.version.manifest["files"]}
    return StartingPoint(
        name=record.name,
        digest=record.version.digest,
        key_prefix=record.version.key_prefix,
        z_sha256=files[Z_FILE],
        routing_sha256=files.get(ROUTING_FILE),
        attested=attested,
    )


def _earlier(
    session: Session, caller: Caller, request_hash: str, idempotency_key: str | None, is_retry: bool
) -> Job | None:
    if idempotency_key is not None:
        return idempotency.made_before(session, caller, Job, idempotency_key, request_hash, otherwise="another request")
    if not is_retry:
        return None
    return session.scalar(
        select(Job)
        .where(
            Job.project_id == caller.project_id,
            Job.kind == "train",
            Job.request_hash == request_hash,
            Job.created_at > func.now() - RETRY_WINDOW,
        )
        .order_by(Job.id.desc())
        .limit(1)
    )


def _file(session: Session, caller: Caller, file_id: str, param: str) -> DatasetVersion:
    try:
        return require_validated(session, caller.project_id, file_id, param=param)
    except NotFoundError as exc:
        raise InvalidRequestError(
            f"{param}: there is no file '{file_id}' in this project. Upload it with POST /v1/files first.",
            param=param,
            code="file_not_found",
        ) from exc
