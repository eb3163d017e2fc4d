"""Experts that were made elsewhere: a LoRA that PEFT wrote, or a version of another zhub, on its way to a version.

What can be refused from its configuration is refused here; a worker then reads the weights, and tries the expert on a
few prompts, before it is a version. Functions take a Session and never commit.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from zhub.admission import limits
from zhub.datasets import files as datasets
from zhub.datasets.validated import require_validated
from zhub.errors import InvalidRequestError, NotFoundError, UnsupportedAdapterError
from zhub.expert_file import PROBE_FILE
from zhub.ids import public_id
from zhub.manifest import MANIFEST_FILE, ROUTING_FILE, Z_FILE, FileEntry, Manifest
from zhub.models import BaseModel, DatasetVersion, Job
from zhub.queue import jobs
from zhub.registry import base_models
from zhub.registry.peft_config import CONFIG_FILE, WEIGHTS_FILE, check_base, read_config
from zhub.registry.publish import check_trainable, get_or_create_expert
from zhub.specs import BaseModelSource, BasisReference, ImportSpec, LoraSettings, StoredFile
from zhub.storage.keys import import_prefix
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import check_name

MAX_CONFIG_BYTES = 4 << 20
MAX_WEIGHTS_BYTES = 1 << 30
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class ImportRequest:
    """An expert to import: its files by name, and of them the one that describes it, read."""

    name: str
    base: str
    config: Mapping[str, Any]
    files: Sequence[FileEntry]
    dataset: str | None
    """A file whose prompts are taken to be the expert's: `auto` compares prompts with these."""
    cluster: str


@dataclass(frozen=True)
class CheckedImport:
    """A request that may be met, and what was looked up for it."""

    base: BaseModel
    basis: BasisReference
    dataset: DatasetVersion | None
    lora: LoraSettings | None
    base_check: str


def check_file_names(names: Sequence[str]) -> str:
    """Refuse what is not the directory of an expert, and what could run code; return the name of its description.

    Raises:
        InvalidRequestError: with what such a directory has.
    """
    if pickled := [name for name in names if name.endswith(PICKLES)]:
        raise InvalidRequestError(
            f"'{pickled[0]}' is a pickle, which can run code when it is loaded. Save the adapter with "
            "`save_pretrained(..., safe_serialization=True)`.",
            param="files",
        )
    of_version = (MANIFEST_FILE, Z_FILE, (ROUTING_FILE, PROBE_FILE))
    for description, weights, others in ((CONFIG_FILE, WEIGHTS_FILE, ()), of_version):
        is_unique = len(set(names)) == len(names)
        if is_unique and {description, weights} <= set(names) <= {description, weights, *others}:
            return description
    raise InvalidRequestError(
        f"Give {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT writes them; or {MANIFEST_FILE}, {Z_FILE} and "
        f"{ROUTING_FILE} of a version that was downloaded from a zhub, with {PROBE_FILE} where it was exported as one "
        f"file. Found: {', '.join(names) or 'none'}.",
        param="files",
    )


def check(session: Session, caller: Caller, request: ImportRequest) -> CheckedImport:
    """Look up what a request names, and refuse it where no worker could make a version of it.

    Raises:
        InvalidRequestError: with the ``param`` at fault; UnsupportedAdapterError where it would answer otherwise here.
        NotFoundError, NotReadyError, ConflictError: the base, the dataset or the expert is missing or not usable.
    """
    check_name(request.name, "expert", param="name")
    check_trainable(session, caller.project_id, request.name)
    limits.check_cluster(session, request.cluster, param="cluster")
    base = base_models.get(session, caller.org_id, request.base)
    basis = base_models.require_ready(base)
    dataset = None
    if request.dataset is not None:
        dataset = require_validated(session, caller.project_id, request.dataset, param="dataset")
    if check_file_names([file.name for file in request.files]) == MANIFEST_FILE:
        _check_manifest(request, basis)
        told = f"Its basis fingerprint is that of the base '{base.name}': it was made on the same weights."
        return CheckedImport(base, basis, dataset, None, told)
    lora = read_config(request.config)
    return CheckedImport(base, basis, dataset, lora, check_base(request.config, _source(base)))


def create(session: Session, caller: Caller, request: ImportRequest, job_id: uuid.UUID) -> Job:
    """Enqueue the job that makes a version of files that lie under ``import_prefix``. Raises as ``check``."""
    checked = check(session, caller, request)
    expert = get_or_create_expert(session, caller, request.name)
    prefix = import_prefix(caller.org_id, job_id)
    spec = ImportSpec(
        expert=request.name,
        base=_source(checked.base),
        basis=checked.basis,
        lora=checked.lora,
        config=dict(request.config),
        files=[StoredFile(**file.model_dump(), key=f"{prefix}/{file.name}") for file in request.files],
        dataset=datasets.stored_file(checked.dataset) if checked.dataset else None,
        imported_by=public_id("API key", caller.key_id),
        base_check=checked.base_check,
    )
    job = Job(
        id=job_id,
        org_id=caller.org_id,
        project_id=caller.project_id,
        kind="import",
        spec=spec.model_dump(mode="json"),
        base_model_id=checked.base.id,
        dataset_version_id=checked.dataset.id if checked.dataset else None,
        expert_id=expert.id,
        cluster=request.cluster,
        asked_by=caller.key_id,
    )
    jobs.enqueue(session, job, f"Import of the expert {request.name} enqueued.")
    return job


def get(session: Session, project_id: uuid.UUID, job_id: uuid.UUID) -> Job:
    """The project's import with this id. Raises NotFoundError."""
    job = session.get(Job, job_id)
    if job is None or job.project_id != project_id or job.kind != "import":
        raise NotFoundError("expert import", public_id("expert import", job_id))
    return job


def _check_manifest(request: ImportRequest, basis: BasisReference) -> None:
    try:
        manifest = Manifest.model_validate(request.config)
    except ValidationError as exc:
        raise UnsupportedAdapterError(
            f"{MANIFEST_FILE} is not the manifest of a version, or of a newer zhub: {exc}", param="files"
        ) from exc
    if manifest.weights_fingerprint != basis.weights_fingerprint:
        raise InvalidRequestError(
            f"The version was made on other weights: those of '{manifest.base_model}' have the fingerprint "
            f"{manifest.weights_fingerprint}, and those of the base '{request.base}' {basis.weights_fingerprint}. Add "
            "the base that it was made on.",
            param="base",
        )
    if manifest.basis_fingerprint != basis.basis_fingerprint:
        raise InvalidRequestError(
            f"The version belongs to the basis {manifest.basis_fingerprint} of '{manifest.base_model}', and the base "
            f"'{request.base}' has the basis {basis.basis_fingerprint}: an expert is noise on another. Add the base "
            "that it was made on.",
            param="base",
        )
    listed = {file.name: file.sha256 for file in manifest.files}
    for file in request.files:
        if file.name not in (MANIFEST_FILE, PROBE_FILE) and file.sha256 != listed.get(file.name):
            raise InvalidRequestError(
                f"'{file.name}' is not the file that {MANIFEST_FILE} lists: expected sha256 {listed.get(file.name)}, "
                f"found {file.sha256}. Pull the version again.",
                param="files",
            )


def _source(base: BaseModel) -> BaseModelSource:
    return BaseModelSource.model_validate(base.source)
