"""Resolve the model name of a request.

``auto`` is the project's release ``auto@prod`` where there is one. Else it, and always ``auto:<base>`` of another base,
let the prompt choose among the versions that the project's ``@prod`` point to. ``<project>.<expert>@v<number>`` is one
version, ``<project>.<expert>@<alias>`` the one that the alias points to, a release is named alike,
``<organisation>.<project>.<expert>@…`` is a version that another organisation shares, and
``<project>.<expert>@ftjob-<32 hex digits>:step-<n>`` is a checkpoint, anything else a base model. A version that was
never promoted and a checkpoint answer only by their names; no list of models has a checkpoint.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.answering import Attested, Router, Strategy
from zhub.errors import InvalidRequestError, NotFoundError
from zhub.models import BaseModel
from zhub.registry import base_models, classification, life, missing, releases, sharing, signing, versions
from zhub.registry.names import AUTO, CHECKPOINT_NAME, PROD, VERSION_NAME
from zhub.registry.releases import ReleaseRecord
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
    """One part of a mixture: ``z = 1 + Σ weight · (z_k − 1)``, in the blocks ``layers``, or in all of them.

    ``description``: which prompts it is for.
    """

    record: VersionRecord | CheckpointRecord
    weight: float
    layers: tuple[int, ...] | None = None
    description: str = ""


@dataclass(frozen=True)
class ResolvedClassifier:
    """The expert that the router ``classifier`` asks; ``labels`` as ``classification.labels_of`` has them."""

    record: VersionRecord
    labels: Sequence[classification.KnownExpert]


@dataclass(frozen=True)
class ResolvedModel:
    """What answers a request: a base and the experts to put on it, or the candidates to choose from.

    ``others``: the project's experts without ``@prod``, each at its newest version. ``router`` chooses among the
    candidates; None where no release says how.
    """

    base: BaseModel
    experts: Sequence[WeightedVersion] = ()
    candidates: Sequence[WeightedVersion] | None = None
    others: Sequence[VersionRecord] = ()
    release: ReleaseRecord | None = None
    alias: str | None = None
    """Of the release, by which it was found and answers as it says: another version may be tried beside it."""
    router: Router | None = None
    classifier: ResolvedClassifier | None = None
    warnings: Mapping[str, str] = field(default_factory=dict)
    """By the name of a deprecated version, what whoever gets an answer of it is told."""
    attested: Mapping[uuid.UUID, Attested] = field(default_factory=dict)
    """By the id of a version that is signed, what its files are verified by."""


def resolve(
    session: Session,
    caller: Caller,
    model: str,
    mixture: Sequence[MixturePart],
    *,
    strategy: Strategy | None = None,
    requester: str | None = None,
) -> ResolvedModel:
    """Turn the ``model`` of a request, or the ``experts`` of its body, into versions or checkpoints on one base.

    Args:
        strategy: in place of the one of the release or of ``auto``.
        requester: who asks, which decides who gets the canary of an alias; None: nobody does.

    Raises:
        NotFoundError: no such version, release or base model; or a version was yanked.
        AccessNotGrantedError: an expert that others show, and that the caller may not use.
        InvalidRequestError: a mixture over several bases, or a strategy for what has nothing to choose from.
        NotReadyError: the files of the base model are not all there.
        ConflictError: the base model could not be decomposed, or a file of a version is lost.
    """
    resolved = _resolve(session, caller, model, mixture, strategy, requester)
    parts = [part.record for part in (*resolved.experts, *(resolved.candidates or ()))]
    told = {record.name: life.warning(session, record) for record in parts if isinstance(record, VersionRecord)}
    warnings = {name: warning for name, warning in told.items() if warning is not None}
    listed = [*parts, *resolved.others, *([resolved.classifier.record] if resolved.classifier else [])]
    signed = signing.attested(session, [one.version.id for one in listed if isinstance(one, VersionRecord)])
    return replace(resolved, warnings=warnings, attested=signed)


def _resolve(
    session: Session,
    caller: Caller,
    model: str,
    mixture: Sequence[MixturePart],
    strategy: Strategy | None,
    requester: str | None,
) -> ResolvedModel:
    if mixture:
        resolved = _resolve_mixture(session, caller, model, mixture)
    elif model == AUTO or model.startswith(f"{AUTO}:"):
        return _resolve_auto(session, caller, model, strategy, requester)
    elif "@" in model:
        release = releases.find_kept(session, caller.project_id, model, requester=requester)
        if release is not None:
            resolved = _resolve_release(session, release, strategy)
            is_tried = strategy is None and VERSION_NAME.fullmatch(model) is None
            return replace(resolved, alias=model) if is_tried else resolved
        record = _version_or_checkpoint(session, caller, model)
        resolved = ResolvedModel(record.base, [WeightedVersion(record, 1.0)])
    else:
        try:
            base = base_models.get(session, caller.org_id, model)
        except NotFoundError as exc:
            raise missing.model(session, caller.project_id, model) from exc
        base_models.basis_of(base)
        resolved = ResolvedModel(base)
    if strategy is not None and not (mixture and strategy == "mixture"):
        raise InvalidRequestError(
            f"strategy: '{strategy}' is for 'auto' and for releases, which have experts to choose from; this request "
            "says by itself who answers. Leave it out.",
            param="strategy",
        )
    return resolved


def _resolve_auto(
    session: Session, caller: Caller, model: str, strategy: Strategy | None, requester: str | None
) -> ResolvedModel:
    named = model.removeprefix(f"{AUTO}:")
    release = releases.promoted(session, caller, AUTO, requester=requester)
    if release is not None and named in (AUTO, release.base.name):
        resolved = _resolve_release(session, release, strategy)
        return replace(resolved, alias=f"{caller.project}.{AUTO}@{PROD}") if strategy is None else resolved
    base = _default_base(session) if model == AUTO else base_models.get(session, caller.org_id, named)
    base_models.basis_of(base)  # the base alone answers until it is decomposed: no version is on it
    if strategy == "base":
        return ResolvedModel(base)
    if strategy == "classifier":
        raise InvalidRequestError(
            "strategy: 'auto' has no classifier without a release 'auto' that has one. Name a release with a "
            "classifier, or leave 'strategy' out.",
            param="strategy",
        )
    if strategy == "mixture":
        raise InvalidRequestError(
            "strategy: a mixture has weights, and 'auto' has none without a release 'auto'. Name the release that has "
            "them, or give 'experts' with their weights.",
            param="strategy",
        )
    candidates = [
        WeightedVersion(record, 1.0, description=releases.description_of(record))
        for record in versions.promoted(session, caller.project_id, base)
    ]
    others = versions.never_promoted(session, caller.project_id, base, limit=MAX_OTHERS) if candidates else []
    return ResolvedModel(base, candidates=candidates, others=others, router=strategy)


def _resolve_release(session: Session, release: ReleaseRecord, strategy: Strategy | None) -> ResolvedModel:
    """What a release pins, by its own strategy, or by another one: then its weights are not those of its mixture."""
    own = release.version.strategy
    chosen = strategy or own
    resolved = ResolvedModel(release.base, release=release)
    if chosen == "base":
        return resolved
    pins = releases.pinned(session, [release])[release.version.id]
    for pin in pins:
        _check_answers(session, release, pin.record)
    is_mixture = chosen == "mixture"
    equal = 1.0 / len(pins) if is_mixture else 1.0
    parts = [
        WeightedVersion(
            pin.record, pin.weight if is_mixture is (own == "mixture") else equal, description=pin.description
        )
        for pin in pins
    ]
    if chosen == "mixture":
        return replace(resolved, experts=parts)
    if chosen == "classifier":
        return replace(resolved, candidates=parts, router="classifier", classifier=_classifier(session, release))
    return replace(resolved, candidates=parts, router="prompt" if chosen == "prompt" else "centroid")


def _classifier(session: Session, release: ReleaseRecord) -> ResolvedClassifier:
    record = releases.classifiers(session, [release]).get(release.version.id)
    if record is None:
        raise InvalidRequestError(
            f"strategy: {release.name} has no classifier. Make a version of the release that pins one ('classifier'), "
            "or choose another strategy.",
            param="strategy",
        )
    _check_answers(session, release, record)
    return ResolvedClassifier(record, classification.labels_of(session, record.version))


def _check_answers(session: Session, release: ReleaseRecord, record: VersionRecord) -> None:
    """The release answers nothing without a version that it pins.

    Raises:
        NotFoundError: the version was yanked.
        ConflictError: a file of it is lost.
    """
    versions.require_whole(record)
    if record.version.yanked_at is not None:
        why = versions.yanked(session, record)
        raise NotFoundError("model", release.name, f"It pins a version that answers no more: {why}")


def _resolve_mixture(session: Session, caller: Caller, model: str, mixture: Sequence[MixturePart]) -> ResolvedModel:
    parts = [
        WeightedVersion(_version_or_checkpoint(session, caller, part.model), part.weight, part.layers)
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


def _version_or_checkpoint(session: Session, caller: Caller, name: str) -> VersionRecord | CheckpointRecord:
    if CHECKPOINT_NAME.fullmatch(name):
        return versions.get_checkpoint(session, caller.project_id, name)
    return sharing.get_version(session, caller, name, "use")


def _default_base(session: Session) -> BaseModel:
    base = session.scalar(select(BaseModel).where(BaseModel.is_default))
    if base is None:
        raise NotFoundError("base model", AUTO, "There is no base model yet; POST /v1/base_models adds one.")
    return base
