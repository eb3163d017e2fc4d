"""How much a version changes its base, by matrix and layer, and how two versions of one basis differ.

What a worker wrote beside the version is read here, checked against its digest and bounded in size: no weight is.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from sqlalchemy.orm import Session

from zhub.errors import ArtifactError, ConflictError, DigestMismatchError
from zhub.manifest import CHANGE_FILE, STRENGTH_FILE, Manifest, MatrixStrength, Strengths
from zhub.registry import versions
from zhub.registry.versions import VersionRecord
from zhub.storage.object_store import ObjectStore

MAX_STRENGTH_BYTES = 4 << 20
MAX_CHANGE_BYTES = 8 << 20  # a base of 8 B parameters has vectors of 6 MB
MAX_SIMILAR = 16

Vectors = Mapping[str, NDArray[np.float32]]


def summed(matrices: Sequence[MatrixStrength]) -> dict[str, float | None]:
    """Several matrices as one: ``share``, the norm of the change as a share of the weights' norm, and ``distance``."""
    norm, weight_norm = (
        math.hypot(*values) for values in zip(*((m.norm, m.weight_norm) for m in matrices), strict=True)
    )
    distances = [matrix.distance for matrix in matrices if matrix.distance is not None]
    return {
        "share": norm / weight_norm if weight_norm else 0.0,
        "distance": math.hypot(*distances) if distances else None,
    }


def read_strengths(store: ObjectStore, record: VersionRecord) -> Strengths:
    """What a version changes.

    Raises:
        ConflictError: it was published by a release that did not measure this.
        DigestMismatchError, ArtifactError: the file is not what the version lists.
    """
    content = _read(store, record, STRENGTH_FILE, MAX_STRENGTH_BYTES)
    if content is None:
        raise ConflictError(
            f"'{record.name}' was published by a release that did not measure how much an expert changes, or the base "
            "has too many matrices. Download the version and import it again."
        )
    try:
        return Strengths.model_validate_json(content)
    except ValidationError as exc:
        raise ArtifactError(f"{record.name}: {STRENGTH_FILE} is malformed: {exc}") from exc


def read_vectors(store: ObjectStore, record: VersionRecord) -> Vectors | None:
    """``s (z − 1)`` of each matrix; None for a version of another kind than ``svf``, or one that is too large.

    Raises:
        DigestMismatchError, ArtifactError: the file is not what the version lists.
    """
    content = _read(store, record, CHANGE_FILE, MAX_CHANGE_BYTES)
    if content is None:
        return None
    try:
        size = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + size])
        tensors = memoryview(content)[8 + size :]
        return {
            name: np.frombuffer(tensors[slice(*entry["data_offsets"])], np.dtype("<f4"))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError) as exc:
        raise ArtifactError(f"{record.name}: {CHANGE_FILE} is malformed: {exc}") from exc


def cosine(a: Vectors, b: Vectors) -> float | None:
    """Of the angle between two changes of one basis; None where one of them changes nothing."""
    lengths = [math.sqrt(sum(_dot(vector, vector) for vector in vectors.values())) for vectors in (a, b)]
    if not all(lengths):
        return None
    inner = sum(_dot(a[name], b[name]) for name in a.keys() & b.keys() if len(a[name]) == len(b[name]))
    return inner / (lengths[0] * lengths[1])


def difference(a: Vectors, b: Vectors, weight_norms: Mapping[str, float]) -> list[dict[str, Any]]:
    """By matrix: the norm of the difference of two changes as a share of the weight's norm, and their cosine."""
    return [
        {
            "name": name,
            "share": math.sqrt(_dot(gap, gap)) / weight_norms[name] if weight_norms.get(name) else None,
            "cosine": cosine({name: own}, {name: other}),
        }
        for name in sorted(a.keys() | b.keys())
        for own, other in [_both(name, a, b)]
        for gap in [own - other]
    ]


def by_layer(a: Vectors, b: Vectors, matrices: Sequence[MatrixStrength]) -> list[dict[str, Any]]:
    """By layer, those matrices that are in none last: the cosine of two changes, and the norm of their difference as a
    share of the weights' norm. ``matrices``: those of both, of which one may leave some alone."""
    layers = {matrix.name: matrix.layer for matrix in matrices}
    norms = {matrix.name: matrix.weight_norm for matrix in matrices}
    return [
        {
            "layer": layer,
            "matrices": len(names),
            "cosine": cosine(*({name: sides[of] for name, sides in pairs.items()} for of in (0, 1))),
            "share": math.hypot(*(math.sqrt(_dot(own - other, own - other)) for own, other in pairs.values()))
            / math.hypot(*(norms[name] for name in names)),
        }
        for layer in sorted(set(layers.values()), key=lambda layer: (layer is None, layer or 0))
        for names in [sorted(name for name, of in layers.items() if of == layer and (name in a or name in b))]
        if names
        for pairs in [{name: _both(name, a, b) for name in names}]
    ]


def similar_to(session: Session, record: VersionRecord) -> list[VersionRecord]:
    """What a version is compared with: of each expert of its basis what would answer, the newest first."""
    found = versions.newest(session, record.project.id, record.base, limit=MAX_SIMILAR + 1)
    return [other for other in found if other.version.id != record.version.id][:MAX_SIMILAR]


def check_comparable(record: VersionRecord, other: VersionRecord) -> None:
    """Raise ConflictError unless the two versions have one basis."""
    fingerprints = [version.version.manifest["basis_fingerprint"] for version in (record, other)]
    if fingerprints[0] != fingerprints[1]:
        raise ConflictError(
            f"'{record.name}' belongs to the basis {fingerprints[0]}, '{other.name}' to {fingerprints[1]}: changes of "
            "different bases cannot be compared."
        )


def _read(store: ObjectStore, record: VersionRecord, name: str, limit: int) -> bytes | None:
    """A file of the version, checked; None where it has none, or a larger one than is read here."""
    manifest = Manifest.model_validate(record.version.manifest)
    entry = next((file for file in manifest.files if file.name == name), None)
    if entry is None or entry.size_bytes > limit:
        return None
    key = f"{record.version.key_prefix}/{name}"
    content = b""
    for piece in store.open(key):
        content += piece
        if len(content) > limit:
            break
    if (actual := hashlib.sha256(content).hexdigest()) != entry.sha256:
        raise DigestMismatchError(key, expected=entry.sha256, actual=actual)
    return content


def _both(name: str, a: Vectors, b: Vectors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One matrix in two changes; zeros in the one that leaves it alone."""
    own, other = a.get(name), b.get(name)
    if own is None or other is None:
        present = own if own is not None else b[name]
        zeros = np.zeros_like(present)
        return (present, zeros) if own is not None else (zeros, present)
    return own, other


def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.dot(a.astype(np.float64), b.astype(np.float64)))
