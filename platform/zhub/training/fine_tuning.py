"""From a request for fine-tuning to a job: all checks are made here, before a worker is needed."""

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from zhub import states
from zhub.admission import limits
from zhub.datasets import files as datasets
from zhub.datasets.validated import all_rows, distinct_rows, require_validated
from zhub.errors import InvalidRequestError, NotFoundError, NotReadyError
from zhub.evaluation import promotions
from zhub.evaluation.gates import Gate
from zhub.evaluation.grader_requests import read_grader
from zhub.graders import Grader
from zhub.kinds import table
from zhub.manifest import ROUTING_FILE, Z_FILE
from zhub.models import BaseModel, DatasetVersion, Expert, Job
from zhub.queue import dependencies, jobs
from zhub.registry import base_models, versions
from zhub.registry.publish import check_trainable, expert_name, get_or_create_expert
from zhub.specs import (
    RECIPES,
    BaseModelSource,
    BasisReference,
    Hyperparameters,
    Recipe,
    StartingPoint,
    TrainSpec,
    resolve_hyperparameters,
)
from zhub.tenancy import idempotency
from zhub.tenancy.keys import Caller
from zhub.training import estimates
from zhub.training.packing import pack_key
from zhub.training.rows import check_rows

MAX_STARTS = 64  # the newest: a worker fetches them all
GRADER_PARAM = "method.reinforcement.grader"
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
    metadata: dict[str, str] | None = None
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


def create(
    session: Session, caller: Caller, request: JobRequest, *, idempotency_key: str | None, is_retry: bool
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
    resolved = resolve_training(session, caller, request)
    versions.keep(session, resolved.starts)
    expert = get_or_create_expert(session, caller, resolved.spec.expert)
    job = job_of(resolved, expert)
    job.request_hash, job.idempotency_key, job.dedup_key = request_hash, idempotency_key, request.dedup_key
    needs = dependencies.needed(session, caller.project_id, request.depends_on, param="depends_on")
    job.state = states.WAITING if needs else states.QUEUED
    try:
        jobs.enqueue(session, job, f"Created fine-tuning job for expert {caller.project}.{expert.name}.")
    except IntegrityError as exc:
        if idempotency_key is None and request.dedup_key is None:
            raise
        # A job's only unique values are its keys: another request with one was committed after our look.
        raise NotReadyError("A request with this Idempotency-Key or dedup_key is being answered; try again.") from exc
    dependencies.add(session, job, [needed.id for needed in needs])
    if request.promotion is not None:
        promotions.create_for_training(session, caller, request.promotion, job)
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
    spec: TrainSpec
    expected_s: float | None

    @property
    def workers(self) -> int:
        """How many workers it takes where it does not share one."""
        return self.spec.hyperparameters.data_parallel

    @property
    def pack_key(self) -> str | None:
        """See ``zhub.training.packing``."""
        return pack_key(self.spec)

    @property
    def method(self) -> dict[str, Any]:
        """The ``method`` that the API shows: as requested, with the values that were chosen for it."""
        method: dict[str, Any] = {"hyperparameters": self.spec.hyperparameters.model_dump(mode="json")}
        if self.spec.grader is not None:
            method["grader"] = self.spec.grader.model_dump(mode="json")
        return {"type": self.spec.recipe, self.spec.recipe: method}


def check_training(session: Session, caller: Caller, request: JobRequest) -> ResolvedTraining:
    """Make every check of ``create`` but that of the organisation's queue, and write nothing. Raises what it does."""
    resolved = resolve_training(session, caller, request)
    dependencies.needed(session, caller.project_id, request.depends_on, param="depends_on")
    if request.promotion is not None:
        promotions.check_gate_of_training(session, caller, request.promotion, resolved.base)
    return resolved


def resolve_training(session: Session, caller: Caller, request: JobRequest) -> ResolvedTraining:
    """Look up everything that the training of a request needs, and check it. Reads only.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
        NotFoundError, NotReadyError, ConflictError: the base model or a file is missing or not usable yet.
    """
    if request.integrations:
        raise InvalidRequestError("Integrations are not supported; leave them out.", param="integrations")
    inputs = _inputs(session, caller, request)
    limits.check_cluster(session, request.cluster, param="cluster")
    if request.suffix is not None and not 1 <= len(request.suffix) <= 64:
        raise InvalidRequestError("A suffix has 1 to 64 characters.", param="suffix")
    starts = _starts(session, caller, inputs.base, inputs.parent, inputs.hyperparameters)
    name = expert_name(request.suffix, inputs.training.filename)
    check_trainable(session, caller.project_id, name)
    spec = TrainSpec(
        expert=name,
        base=BaseModelSource.model_validate(inputs.base.source),
        basis=inputs.basis,
        training_file=datasets.stored_file(inputs.training),
        validation_file=datasets.stored_file(inputs.validation) if inputs.validation else None,
        recipe=inputs.recipe,
        hyperparameters=inputs.hyperparameters,
        grader=inputs.grader,
        seed=request.seed if request.seed is not None else random.SystemRandom().randrange(2**31),
        starts=[_starting_point(record) for record in starts],
    )
    expected_s = estimates.expected_seconds(session, inputs.base.id, inputs.recipe, inputs.hyperparameters)
    return ResolvedTraining(request, inputs.base, inputs.training, inputs.validation, starts, spec, expected_s)


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
        pack_key=resolved.pack_key,
        workers=resolved.workers,
        expected_s=resolved.expected_s,
    )


@dataclass(frozen=True)
class _Inputs:
    """What a request names, looked up and checked. ``parent`` is the version that training begins from, if any."""

    base: BaseModel
    basis: BasisReference
    parent: versions.VersionRecord | None
    training: DatasetVersion
    validation: DatasetVersion | None
    recipe: Recipe
    hyperparameters: Hyperparameters
    grader: Grader | None


def _inputs(session: Session, caller: Caller, request: JobRequest) -> _Inputs:
    parent = versions.get_version(session, caller.project_id, request.model) if "@" in request.model else None
    base = parent.base if parent else base_models.get(session, caller.org_id, request.model)
    basis = base_models.require_ready(base)
    training = _file(session, caller, request.training_file, "training_file")
    validation = None
    if request.validation_file:
        validation = _file(session, caller, request.validation_file, "validation_file")
    recipe, hyperparameters, grader_json = _method(request)
    check_rows(training, recipe, "training_file")
    if validation is not None:
        check_rows(validation, recipe, "validation_file")
    grader = None
    if recipe == "reinforcement":
        files = [training, validation] if validation is not None else [training]
        grader = _grader(session, caller.org_id, grader_json, base.name, files)
    kept = hyperparameters.get("duplicates") == "keep"
    train_rows = all_rows(training) if kept else distinct_rows(training)
    resolved = resolve_hyperparameters(recipe, hyperparameters, train_rows=train_rows)
    if parent is not None:
        _check_parent(parent, resolved, basis)
    return _Inputs(base, basis, parent, training, validation, recipe, resolved, grader)


def _check_parent(parent: versions.VersionRecord, hyper: Hyperparameters, basis: BasisReference) -> None:
    if parent.is_lora or hyper.adapter != "svf" or hyper.parameterisation != "multiplier":
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
    if parent.version.manifest["basis_fingerprint"] != basis.basis_fingerprint:
        raise InvalidRequestError(
            f"'{parent.name}' belongs to an earlier basis of '{parent.base.name}'. Give the base model.", param="model"
        )


def _starts(
    session: Session,
    caller: Caller,
    base: BaseModel,
    parent: versions.VersionRecord | None,
    hyper: Hyperparameters,
) -> Sequence[versions.VersionRecord]:
    if hyper.warm_start == "nearest":
        return versions.newest(session, caller.project_id, base, limit=MAX_STARTS)
    return [parent] if parent is not None else []


def _starting_point(record: versions.VersionRecord) -> StartingPoint:
    files = {file["name"]: file["sha256"] for file in record.version.manifest["files"]}
    return StartingPoint(
        name=record.name,
        digest=record.version.digest,
        key_prefix=record.version.key_prefix,
        z_sha256=files[Z_FILE],
        routing_sha256=files[ROUTING_FILE],
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


def _method(request: JobRequest) -> tuple[Recipe, Mapping[str, Any], Any]:
    """Return (recipe, hyper-parameters as written, grader as written)."""
    method = request.method or {"type": "supervised", "supervised": {"hyperparameters": request.hyperparameters or {}}}
    if request.method is not None and request.hyperparameters:
        raise InvalidRequestError(
            "Give hyperparameters inside 'method', not at the top level as well.", param="hyperparameters"
        )
    recipe = method.get("type")
    if recipe not in RECIPES:
        raise InvalidRequestError(
            f"method.type must be one of {', '.join(RECIPES)}; got {recipe!r}.", param="method.type"
        )
    unknown = set(method) - {"type", recipe}
    body = method.get(recipe) or {}
    allowed = {"hyperparameters", "grader"} if recipe == "reinforcement" else {"hyperparameters"}
    if not isinstance(body, dict):
        raise InvalidRequestError(f"method.{recipe} must be an object.", param=f"method.{recipe}")
    unknown |= set(body) - allowed
    if unknown:
        raise InvalidRequestError(
            f"Unknown fields in method: {', '.join(sorted(unknown))}. "
            f"Known: type, {recipe} with {', '.join(sorted(allowed))}.",
            param=f"method.{min(unknown)}",
        )
    hyperparameters = body.get("hyperparameters") or {}
    if not isinstance(hyperparameters, dict):
        raise InvalidRequestError("hyperparameters must be an object.", param=f"method.{recipe}.hyperparameters")
    return recipe, hyperparameters, body.get("grader")


def _grader(session: Session, org_id: uuid.UUID, given: Any, base: str, files: Sequence[DatasetVersion]) -> Grader:
    if given is None:
        raise InvalidRequestError(
            "Reinforcement needs a grader: the function that turns an answer into a reward.", param=GRADER_PARAM
        )
    return read_grader(session, org_id, given, param=GRADER_PARAM, bases=[base], files=files)


def list_jobs(
    session: Session,
    project_id: uuid.UUID,
    *,
    after: uuid.UUID | None,
    limit: int,
    metadata: Mapping[str, str] | None = None,
) -> tuple[list[Job], bool]:
    """The project's fine-tuning jobs, newest first, and whether more follow.

    With ``metadata``, only jobs that have all of it; an empty one: only jobs without any.
    """
    # Plan at 10^6 jobs: the next :limit + 1 entries of ix_jobs_project, 0.1 ms.
    statement = select(Job).where(Job.project_id == project_id, Job.kind == "train")
    if after is not None:
        statement = statement.where(Job.id < after)
    if metadata:
        statement = statement.where(Job.request["metadata"].contains(dict(metadata)))
    elif metadata is not None:
        statement = statement.where(Job.request["metadata"] == text("'{}'::jsonb"))
    newest = list(session.scalars(statement.order_by(Job.id.desc()).limit(limit + 1)))
    return newest[:limit], len(newest) > limit
