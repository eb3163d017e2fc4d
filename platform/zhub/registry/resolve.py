"""Resolve the model name of a request.

``auto`` and ``auto:<base>`` let the prompt choose among the versions that the project's ``@prod`` point to,
``<project>.<expert>@v<number>`` is one version, ``<project>.<expert>@<alias>`` the one that the alias points to,
``<project>.<expert>@ftjob-<32 hex digits>:step-<n>`` a checkpoint, anything else is a base model. A version that was
never promoted and a checkpoint answer only by their names; no list of models has a checkpoint.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.errors import InvalidRequestError, NotFoundError
from zhub.models import BaseModel
from zhub.registry import base_models, missing, versions
from zhub.registry.names import AUTO, CHECKPOINT_NAME
from zhub.registry.versions import CheckpointRecord, VersionRecord
from zhub.tenancy.keys import Caller

MAX_OTHERS = 32  # experts that a prompt is compared with though they may not answer


class MixturePart(NamedTuple):
    """A part of a mixture as a request names it; ``layers``: the blocks that it changes, None for all."""

    model: str
    weight: float
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class WeightedVersion:
    """One part of a mixture: ``z = 1 + Σ weight · (z_k − 1)``, in the blocks ``layers``, or in all of them."""

    record: VersionRecord | CheckpointRecord
    weight: float
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ResolvedModel:
    """What answers a request: a base and the experts to put on it, or the candidates to choose from.

    ``others``: the project's experts without ``@prod``, each at its newest version.
    """

    base: BaseModel
    experts: Sequence[WeightedVersion] = ()
    candidates: Sequence[VersionRecord] | None = None
    others: Sequence[VersionRecord] = ()


def resolve(session: Session, caller: Caller, model: str, mixture: Sequence[MixturePart]) -> ResolvedModel:
    """Turn the ``model`` of a request, or the ``experts`` of its body, into versions or checkpoints on one base.

    Raises:
        NotFoundError: no such version or base model.
        InvalidRequestError: a mixture over several bases.
        NotReadyError: the files of the base model are not all there.
        ConflictError: the base model could not be decomposed.
    """
    if mixture:
        return _resolve_mixture(session, caller, model, mixture)
    if model == AUTO or model.startswith(f"{AUTO}:"):
        named = model.removeprefix(f"{AUTO}:")
        base = _default_base(session) if model == AUTO else base_models.get(session, caller.org_id, named)
        base_models.basis_of(base)  # the base alone answers until it is decomposed: no version is on it
        candidates = versions.promoted(session, caller.project_id, base)
        if not candidates:
            return ResolvedModel(base, candidates=candidates)
        others = versions.never_promoted(session, caller.project_id, base, limit=MAX_OTHERS)
        return ResolvedModel(base, candidates=candidates, others=others)
    if "@" in model:
        record = _version_or_checkpoint(session, caller.project_id, model)
        return ResolvedModel(record.base, [WeightedVersion(record, 1.0)])
    try:
        base = base_models.get(session, caller.org_id, model)
    except NotFoundError as exc:
        raise missing.model(session, caller.project_id, model) from exc
    base_models.basis_of(base)
    return ResolvedModel(base)


def _resolve_mixture(session: Session, caller: Caller, model: str, mixture: Sequence[MixturePart]) -> ResolvedModel:
    parts = [
        WeightedVersion(_version_or_checkpoint(session, caller.project_id, part.model), part.weight, part.layers)
        for part in mixture
    ]
    bases = {part.record.base.name: part.record.base for part in parts}
    if len(bases) > 1:
        raise InvalidRequestError(
            f"A mixture needs experts of one base model; these belong to {', '.join(sorted(bases))}.", param="experts"
        )
    (base,) = bases.values()
    if model not in (base.name, AUTO, *(part.model for part in mixture)):
        raise InvalidRequestError(
            f"'model' is '{model}', but the experts of this mixture belong to '{base.name}'. Give that as the model.",
            param="model",
        )
    return ResolvedModel(base, parts)


def _version_or_checkpoint(session: Session, project_id: uuid.UUID, name: str) -> VersionRecord | CheckpointRecord:
    get = versions.get_checkpoint if CHECKPOINT_NAME.fullmatch(name) else versions.get_version
    return get(session, project_id, name)


def _default_base(session: Session) -> BaseModel:
    base = session.scalar(select(BaseModel).where(BaseModel.is_default))
    if base is None:
        raise NotFoundError("base model", AUTO, "There is no base model yet; POST /v1/base_models adds one.")
    return base
