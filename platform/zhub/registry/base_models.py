"""Base models: frozen weights that experts adapt. Added file by file or from the hub, then decomposed by a job.

Those of the platform are for every organisation, and an operator adds them; a private one is seen and used only by the
organisation that added it. Whoever began a base model alone adds its files.
"""

import re
import uuid
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from zhub.admission import limits
from zhub.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    NotReadyError,
    UnsupportedModelError,
)
from zhub.models import BaseModel, Job
from zhub.queue import jobs
from zhub.queue.attempts import Released, Succeeded
from zhub.registry.model_directory import FILE_SUFFIXES, REFUSED_SUFFIXES
from zhub.registry.names import HUB_ID, REVISION
from zhub.specs import BaseModelSource, BasisReference, DecomposeSpec, StoredFile
from zhub.suggestions import did_you_mean
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import OPERATOR_SCOPE

NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
RESERVED = ("auto", "base")
MAX_FILE_NAME_CHARACTERS = 255


def create(
    session: Session,
    caller: Caller,
    name: str,
    *,
    private: bool | None,
    hub_id: str | None,
    hub_revision: str | None,
    cluster: str,
    rank: int | None = None,
) -> BaseModel:
    """Add a base model that ``cluster`` shall decompose; its files follow, unless it comes from the hub.

    ``private`` None: for everybody where the caller may add such, else private. ``rank``: of how many leading singular
    directions of each matrix its basis shall be; None: of all.

    Raises:
        InvalidRequestError: a bad name, a hub id that is none or without a full commit hash, or a cluster that no agent
            has offered.
        PermissionDeniedError: one for everybody, without an operator's right.
        ConflictError: the name is taken.
    """
    if private is None:
        private = OPERATOR_SCOPE not in caller.scopes
    if not private:
        caller.require(OPERATOR_SCOPE)
    if not NAME.fullmatch(name) or name in RESERVED:
        raise InvalidRequestError(
            f"'{name}' cannot name a base model: use 1 to 64 lower-case letters, digits, '.', '-' or '_'"
            f" (and not {' or '.join(RESERVED)}).",
            param="name",
        )
    if hub_id is not None and (not HUB_ID.fullmatch(hub_id) or ".." in hub_id):
        raise InvalidRequestError(f"{hub_id!r} is not the id of a model of the hub: 'owner/name'.", param="hub_id")
    if hub_id is not None and not REVISION.fullmatch(hub_revision or ""):
        raise InvalidRequestError(
            f"A hub model is added at a commit, so that it never changes: '{hub_id}@<40 hex digits>'.", param="hub"
        )
    limits.check_cluster(session, cluster, param="cluster")
    existing = _find(session, caller.org_id, name)
    if existing is not None and not (existing.private == private and _may_begin_again(existing, caller)):
        raise ConflictError(f"The base model '{name}' exists already. Choose another name.")
    source = BaseModelSource(name=name, hub_id=hub_id, hub_revision=hub_revision).model_dump(mode="json")
    owned = {"owner_org_id": caller.org_id, "private": private, "cluster": cluster, "source": source, "rank": rank}
    if existing is not None:  # an upload that broke off, or a model that was refused: begin again
        again = {"status": "uploading", "error": None}
        session.execute(update(BaseModel).where(BaseModel.id == existing.id).values(owned | again))
        session.refresh(existing)
        return existing
    of_platform = select(func.count()).select_from(BaseModel).where(~BaseModel.private)
    base = BaseModel(name=name, is_default=not private and session.scalar(of_platform) == 0, **owned)
    session.add(base)
    session.flush()
    return base


def _may_begin_again(base: BaseModel, caller: Caller) -> bool:
    if base.status in ("ready", "decomposing"):
        return False
    # Without an owner: begun by a release that noted none, and for everybody.
    return base.owner_org_id in (None, caller.org_id)


def check_file_name(filename: str) -> None:
    """Refuse what could run code when loaded, and what is no part of a model."""
    if not filename.isprintable() or len(filename) > MAX_FILE_NAME_CHARACTERS:
        raise InvalidRequestError(
            f"{filename[:80]!r} cannot name a file: use at most {MAX_FILE_NAME_CHARACTERS} characters, no control "
            "characters and no line breaks.",
            param="filename",
        )
    path = PurePosixPath(filename)
    if path.suffix in REFUSED_SUFFIXES:
        raise UnsupportedModelError(
            f"'{filename}' is a pickle or another format that can run code when it is loaded. "
            "Save the model with `save_pretrained(..., safe_serialization=True)`.",
            param="filename",
        )
    if path.name != filename or filename.startswith(".") or path.suffix not in FILE_SUFFIXES:
        raise InvalidRequestError(
            f"'{filename}' is not a file of a model directory; known endings: {', '.join(FILE_SUFFIXES)}.",
            param="filename",
        )


def add_file(session: Session, caller: Caller, name: str, file: StoredFile) -> BaseModel:
    """Record one uploaded file of a base model that is still ``uploading``; the same name replaces."""
    base = _lock_own(session, caller, name)
    if base.status != "uploading":
        raise ConflictError(f"The base model '{name}' is {base.status}; its files cannot change any more.")
    source = BaseModelSource.model_validate(base.source)
    files = [*(f for f in source.files if f.name != file.name), file]
    base.source = source.model_copy(update={"files": files}).model_dump(mode="json")
    session.flush()
    return base


def complete(session: Session, caller: Caller, name: str) -> BaseModel:
    """All files are there: enqueue the decomposition."""
    base = _lock_own(session, caller, name)
    if base.status != "uploading":
        raise ConflictError(f"The base model '{name}' is already {base.status}.")
    source = BaseModelSource.model_validate(base.source)
    names = {file.name for file in source.files}
    if source.hub_id is None and ("config.json" not in names or not any(n.endswith(".safetensors") for n in names)):
        raise UnsupportedModelError(
            f"The base model '{name}' needs at least config.json and one .safetensors file; it has: "
            f"{', '.join(sorted(names)) or 'none'}.",
            param="files",
        )
    base.status = "decomposing"
    session.flush()
    job = Job(
        org_id=caller.org_id,
        project_id=caller.project_id,
        kind="decompose",
        spec=DecomposeSpec(base=source, rank=base.rank).model_dump(mode="json"),
        base_model_id=base.id,
        cluster=base.cluster,
        asked_by=caller.key_id,
    )
    jobs.enqueue(session, job, f"Decomposition of base model {name} enqueued.")
    return base


def get(session: Session, org_id: uuid.UUID, name: str) -> BaseModel:
    """The base model that an organisation calls by this name, its own before the platform's.

    Raises:
        NotFoundError: it lists what there is.
    """
    base = _find(session, org_id, name)
    if base is None:
        known = sorted(set(session.scalars(select(BaseModel.name).where(_visible_to(org_id)))))
        near = did_you_mean(name, known).lstrip()
        hint = f"Base models: {', '.join(known) or 'none yet'}. POST /v1/base_models adds one."
        raise NotFoundError("base model", name, f"{near} {hint}".lstrip())
    return base


def _find(session: Session, org_id: uuid.UUID, name: str) -> BaseModel | None:
    of_name = select(BaseModel).where(BaseModel.name == name, _visible_to(org_id))
    return session.scalar(of_name.order_by(BaseModel.private.desc()).limit(1))


def _visible_to(org_id: uuid.UUID) -> ColumnElement[bool]:
    """Row-level security says the same to the API; the scheduler's sessions see every tenant."""
    return or_(~BaseModel.private, BaseModel.owner_org_id == org_id)


def check_may_change(session: Session, caller: Caller, name: str) -> BaseModel:
    """The base model, if the caller may add files to it.

    Raises:
        NotFoundError: there is no such base model, or another organisation began it.
        PermissionDeniedError: it is for everybody, and the caller is no operator.
    """
    base = get(session, caller.org_id, name)
    if base.owner_org_id != caller.org_id:
        raise NotFoundError("upload of a base model", name, "Another organisation began to add it.")
    if not base.private:
        caller.require(OPERATOR_SCOPE)
    return base


def _lock_own(session: Session, caller: Caller, name: str) -> BaseModel:
    base = check_may_change(session, caller, name)
    session.refresh(base, with_for_update=True)
    return base


def decomposition(session: Session, base: BaseModel) -> Job:
    """The newest job that decomposes a base, for the organisation that added it. Raises NotFoundError."""
    of_base = select(Job).where(Job.kind == "decompose", Job.base_model_id == base.id)
    job = session.scalar(of_base.order_by(Job.id.desc()).limit(1))
    if job is None:
        raise NotFoundError("decomposition", base.name, "Its files are not complete, or another organisation added it.")
    return job


def require_ready(base: BaseModel) -> BasisReference:
    """The base's basis. Raises NotReadyError while it is being decomposed, ConflictError if that failed."""
    basis = basis_of(base)
    if basis is None:
        raise _not_ready(base)
    return basis


def basis_of(base: BaseModel) -> BasisReference | None:
    """The base's basis; None while it is being decomposed, when the base alone can answer already.

    Raises:
        NotReadyError: its files are not all there.
        ConflictError: its decomposition failed.
    """
    if base.status == "error":
        raise ConflictError(f"The base model '{base.name}' cannot be used: {base.error}")
    if base.status == "decomposing":
        return None
    if base.status != "ready":
        raise _not_ready(base)
    assert base.weights_fingerprint and base.basis_fingerprint and base.basis_key_prefix
    return BasisReference(
        weights_fingerprint=base.weights_fingerprint,
        basis_fingerprint=base.basis_fingerprint,
        key_prefix=base.basis_key_prefix,
    )


def _not_ready(base: BaseModel) -> NotReadyError:
    return NotReadyError(f"The base model '{base.name}' is still '{base.status}'. Wait until it is 'ready'.")


def list_base_models(session: Session, *, after: str | None, limit: int) -> tuple[list[BaseModel], bool]:
    """The base models that the session sees, by name, from the one after ``after``, and whether more follow.

    Of two with one name the organisation's own, which is the one that ``get`` means.
    """
    statement = select(BaseModel).ext(distinct_on(BaseModel.name))
    if after is not None:
        statement = statement.where(BaseModel.name > after)
    bases = list(session.scalars(statement.order_by(BaseModel.name, BaseModel.private.desc()).limit(limit + 1)))
    return bases[:limit], len(bases) > limit


def fail_decomposition(session: Session, job: Released) -> None:
    """The job that decomposes the base has failed."""
    failed = {"status": "error", "error": job.reason}
    session.execute(update(BaseModel).where(BaseModel.id == job.base_model_id).values(failed))


def restart_decomposition(session: Session, job: Job) -> None:
    """The job that decomposes the base is queued again."""
    again = {"status": "decomposing", "error": None}
    failed = (BaseModel.id == job.base_model_id, BaseModel.status == "error")
    session.execute(update(BaseModel).where(*failed).values(again))


def finish_decomposition(session: Session, job: Succeeded, result: Mapping[str, Any]) -> None:
    """The basis is in the store: the base model is ready."""
    session.execute(
        update(BaseModel)
        .where(BaseModel.id == job.base_model_id)
        .values(
            status="ready",
            error=None,
            weights_fingerprint=result["weights_fingerprint"],
            basis_fingerprint=result["basis_fingerprint"],
            basis_key_prefix=result["basis_key_prefix"],
            details=result["details"],
        )
    )
