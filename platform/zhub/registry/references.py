"""What serving and workers get of the versions that answer: digests and keys, so that they need no database."""

from collections.abc import Sequence

from zhub.answering import Answering, Classifier, ExpertReference, Label
from zhub.manifest import ROUTING_FILE, Z_FILE, Manifest
from zhub.registry.resolve import ResolvedClassifier, ResolvedModel, WeightedVersion
from zhub.registry.versions import CheckpointRecord, VersionRecord


def answering(resolved: ResolvedModel) -> Answering:
    """Who answers, of what a model's name has been resolved to."""
    candidates = resolved.candidates
    return Answering(
        experts=[_part(part, resolved) for part in resolved.experts],
        candidates=None if candidates is None else [_part(part, resolved) for part in candidates],
        others=[_reference(record, 1.0, resolved) for record in resolved.others],
        router=resolved.router,
        classifier=None
        if resolved.classifier is None
        else _classifier(resolved.classifier, candidates or (), resolved),
        release=resolved.release.name if resolved.release else None,
    )


def _part(part: WeightedVersion, resolved: ResolvedModel) -> ExpertReference:
    layers = None if part.layers is None else list(part.layers)
    more = {"layers": layers, "description": part.description, "warning": resolved.warnings.get(part.record.name)}
    return _reference(part.record, part.weight, resolved).model_copy(update=more)


def _classifier(
    classifier: ResolvedClassifier, candidates: Sequence[WeightedVersion], resolved: ResolvedModel
) -> Classifier:
    """A label stands for an expert: it is answered by the version of it that the release pins, whichever that is."""
    pinned = {part.record.expert.id: part.record.name for part in candidates}
    labels = [Label(label=known.label, candidate=pinned.get(known.expert_id)) for known in classifier.labels]
    return Classifier(expert=_reference(classifier.record, 1.0, resolved), labels=labels)


def _reference(record: VersionRecord | CheckpointRecord, weight: float, resolved: ResolvedModel) -> ExpertReference:
    if isinstance(record, CheckpointRecord):
        checkpoint = record.checkpoint
        return ExpertReference(
            name=record.name,
            digest=checkpoint.digest,
            z_key=f"{checkpoint.key_prefix}/{checkpoint.z['name']}",
            z_sha256=checkpoint.z["sha256"],
            # Never read: only what may be routed to has prompts of its own, and a checkpoint may not.
            routing_key="",
            routing_sha256="",
            weight=weight,
        )
    version = record.version
    manifest = Manifest.model_validate(version.manifest)
    return ExpertReference(
        name=record.name,
        digest=version.digest,
        z_key=f"{version.key_prefix}/{Z_FILE}",
        z_sha256=manifest.file(Z_FILE).sha256,
        # Never read where there is none: such a version is no candidate.
        routing_key=f"{version.key_prefix}/{ROUTING_FILE}" if manifest.routing else "",
        routing_sha256=manifest.routing.sha256 if manifest.routing else "",
        attested=resolved.attested.get(version.id),
        weight=weight,
    )
