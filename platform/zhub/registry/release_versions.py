"""New release versions, and what differs between two. Functions take a Session and never commit."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.answering import ReleaseStrategy
from zhub.errors import InvalidRequestError
from zhub.ids import new_id, public_id
from zhub.manifest import canonical_json
from zhub.models import BaseModel, Release, ReleaseExpert, ReleaseVersion
from zhub.recipes import MAX_MIXTURE_WEIGHT
from zhub.registry import base_models, classification, namespace, releases, versions
from zhub.registry.aliases import check_promotable
from zhub.registry.releases import MAX_ROUTING_CHARACTERS, PinnedVersion, ReleaseRecord
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import check_name

MAX_EXPERTS = 16
MAX_DESCRIPTION_CHARACTERS = 4000


class ReleaseExpertRequest(Schema):
    """One expert version of a release."""

    model_config = ConfigDict(extra="forbid")
    model: str
    weight: Annotated[float, Field(ge=-MAX_MIXTURE_WEIGHT, le=MAX_MIXTURE_WEIGHT, allow_inf_nan=False)] | None = None
    """Its part: of a mixture ``z = 1 + Σ weight · (z_k − 1)``, else how strongly it answers once it is chosen. Null:
    an equal part of a mixture, else 1."""
    description: Annotated[str, Field(min_length=1, max_length=MAX_ROUTING_CHARACTERS)] | None = None
    """Which prompts it is for, which the strategy ``prompt`` goes by. Null: the description of the version or of its
    expert, else the expert's name."""


class ReleaseRequest(Schema):
    """A new version of the release ``name``."""

    model_config = ConfigDict(extra="forbid")
    name: str
    strategy: ReleaseStrategy
    experts: Annotated[list[ReleaseExpertRequest], Field(min_length=1, max_length=MAX_EXPERTS)]
    classifier: str | None = None
    """The expert version that the strategy ``classifier`` asks. Beside another strategy, requests may ask for it."""
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARACTERS)] | None = None


@dataclass(frozen=True)
class Difference:
    """One thing that differs between two release versions; None on the side that does not have it."""

    what: str
    before: str | float | None
    after: str | float | None


def create(session: Session, caller: Caller, request: ReleaseRequest) -> ReleaseRecord:
    """Make a version of a release, and the release if it is new. What equals its newest version is that version.

    Raises:
        InvalidRequestError: a name or experts that cannot be, or that do not go together.
        NotFoundError: there is no such expert version.
        ConflictError: an expert has the name, or a version is archived.
        NotReadyError: the base is not decomposed yet.
    """
    check_name(request.name, "release", param="name")
    namespace.claim_for_release(session, caller.project_id, request.name)
    pins = [_pin(session, caller, request, expert) for expert in request.experts]
    _check_distinct(pins, request.strategy)
    base = _one_base(pins)
    classifier = _classifier(session, caller, request, base, pins)
    versions.keep(session, [*(pin.record for pin in pins), *([classifier] if classifier else [])])
    digest = _digest(request.strategy, base, pins, classifier)
    release = _locked_release(session, caller, request.name)
    newest = select(ReleaseVersion).where(
        ReleaseVersion.release_id == release.id,
        ReleaseVersion.version == release.last_version,
        ReleaseVersion.deleted_at.is_(None),
    )
    version = session.scalar(newest)
    if version is None or version.digest != digest:
        release.last_version += 1
        version = ReleaseVersion(
            org_id=caller.org_id,
            release_id=release.id,
            base_model_id=base.id,
            version=release.last_version,
            strategy=request.strategy,
            classifier_version_id=classifier.version.id if classifier else None,
            digest=digest,
            description=request.description or None,
            by=public_id("API key", caller.key_id),
        )
        _insert(session, version, pins)
    return releases.by_id(session, [version.id])[version.id]


def differences(session: Session, before: ReleaseRecord, after: ReleaseRecord) -> list[Difference]:
    """What differs between two release versions in how they answer; nothing where their digests are equal."""
    pins = releases.pinned(session, [before, after])
    compared = [
        Difference("strategy", before.version.strategy, after.version.strategy),
        Difference("base_model", before.base.name, after.base.name),
        Difference("classifier", *(releases.classifier_name(session, record) for record in (before, after))),
    ]
    olds, news = (_by_expert(pins[record.version.id]) for record in (before, after))
    for name in sorted({*olds, *news}):
        compared += _compared(name, olds.get(name), news.get(name))
    return [difference for difference in compared if difference.before != difference.after]


def _by_expert(pins: Sequence[PinnedVersion]) -> dict[str, PinnedVersion]:
    """By the name of the expert; a mixture may hold several versions of it, the further ones then by their own."""
    named: dict[str, PinnedVersion] = {}
    for pin in pins:
        expert = f"{pin.record.project.name}.{pin.record.expert.name}"
        named[pin.record.name if expert in named else expert] = pin
    return named


def _compared(name: str, old: PinnedVersion | None, new: PinnedVersion | None) -> list[Difference]:
    def sides(of: PinnedVersion | None) -> tuple[str | None, float | None, str | None]:
        return (None, None, None) if of is None else (of.record.name, of.weight, of.description)

    labels = (f"{name}: version", f"{name}: weight", f"{name}: description")
    return [Difference(*row) for row in zip(labels, sides(old), sides(new), strict=True)]


def _pin(session: Session, caller: Caller, request: ReleaseRequest, expert: ReleaseExpertRequest) -> PinnedVersion:
    record = versions.get_usable(session, caller.project_id, expert.model)
    check_promotable(record)
    default = 1.0 / len(request.experts) if request.strategy == "mixture" else 1.0
    weight = default if expert.weight is None else expert.weight
    return PinnedVersion(record, weight, expert.description or releases.description_of(record))


def _one_base(pins: Sequence[PinnedVersion]) -> BaseModel:
    bases = {pin.record.base.name: pin.record.base for pin in pins}
    if len(bases) > 1:
        raise InvalidRequestError(
            f"experts: a release needs versions of one base model; these belong to {', '.join(sorted(bases))}.",
            param="experts",
        )
    (base,) = bases.values()
    base_models.require_ready(base)
    for pin in pins:
        _check_fits(pin.record, base, "experts")
    return base


def _check_fits(record: VersionRecord, base: BaseModel, param: str) -> None:
    """Refuse a version of another base than the release's, or of another decomposition of it."""
    if record.base.id != base.id:
        raise InvalidRequestError(
            f"{param}: {record.name} belongs to the base '{record.base.name}', and the release's experts to "
            f"'{base.name}'. Train one on that base.",
            param=param,
        )
    if record.version.manifest["basis_fingerprint"] != base.basis_fingerprint:
        raise InvalidRequestError(
            f"{param}: {record.name} was trained on another decomposition of '{base.name}' than it has now, so it "
            "cannot answer. Train it again.",
            param=param,
        )


def _classifier(
    session: Session, caller: Caller, request: ReleaseRequest, base: BaseModel, pins: Sequence[PinnedVersion]
) -> VersionRecord | None:
    """The classifier that a request names, once it is known to tell the experts of the release apart."""
    if request.classifier is None:
        if request.strategy == "classifier":
            raise InvalidRequestError(
                "classifier: the strategy 'classifier' asks an expert version that was trained to tell the experts "
                "apart. Name one; POST /v1/classification_datasets makes the rows to train it on.",
                param="classifier",
            )
        return None
    record = versions.get_usable(session, caller.project_id, request.classifier)
    check_promotable(record)
    _check_fits(record, base, "classifier")
    known = {label.expert_id for label in classification.labels_of(session, record.version)}
    if not known:
        raise InvalidRequestError(
            f"classifier: {record.name} was not trained to tell experts apart. POST /v1/classification_datasets makes "
            "the rows to train one on.",
            param="classifier",
        )
    if unknown := [pin.record.name for pin in pins if pin.record.expert.id not in known]:
        raise InvalidRequestError(
            f"classifier: {record.name} does not know {', '.join(unknown)}. Train another one that does, or leave "
            f"{'it' if len(unknown) == 1 else 'them'} out.",
            param="classifier",
        )
    return record


def _check_distinct(pins: Sequence[PinnedVersion], strategy: ReleaseStrategy) -> None:
    """A mixture may hold two versions of one expert; a router chooses among experts."""
    seen: dict[object, str] = {}
    for pin in pins:
        key = pin.record.version.id if strategy == "mixture" else pin.record.expert.id
        if key in seen:
            raise InvalidRequestError(
                f"experts: {pin.record.name} and {seen[key]} are of one expert, between which '{strategy}' cannot "
                "choose. Name each once."
                if strategy != "mixture"
                else f"experts: {pin.record.name} is named twice. Name it once, with its whole weight.",
                param="experts",
            )
        seen[key] = pin.record.name


def _digest(
    strategy: ReleaseStrategy, base: BaseModel, pins: Sequence[PinnedVersion], classifier: VersionRecord | None
) -> str:
    """SHA-256 of all that decides how the release answers. No names: an expert may be renamed."""
    experts = [
        {"digest": pin.record.version.digest, "weight": pin.weight, "description": pin.description} for pin in pins
    ]
    content = {"basis": base.basis_fingerprint, "strategy": strategy, "experts": experts}
    if classifier is not None:
        content["classifier"] = classifier.version.digest
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _locked_release(session: Session, caller: Caller, name: str) -> Release:
    """The release of this name, created if it is new. Requests for new versions of it take turns."""
    session.execute(
        insert(Release)
        .values(id=new_id(), org_id=caller.org_id, project_id=caller.project_id, name=name, last_version=0)
        .on_conflict_do_nothing()
    )
    of_name = select(Release).where(Release.project_id == caller.project_id, Release.name == name)
    return session.scalars(of_name.with_for_update().execution_options(populate_existing=True)).one()


def _insert(session: Session, version: ReleaseVersion, pins: Sequence[PinnedVersion]) -> None:
    session.add(version)
    session.flush()
    for position, pin in enumerate(pins):
        row = {"version_id": pin.record.version.id, "weight": pin.weight, "description": pin.description}
        session.add(ReleaseExpert(org_id=version.org_id, release_version_id=version.id, position=position, **row))
    session.flush()
