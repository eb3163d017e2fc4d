"""``/v1/experts/{name}/z``: how much a version changes, where, and what it is like."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fastapi import APIRouter

from zhub.database.sessions import tenant_session
from zhub.manifest import MatrixStrength
from zhub.registry import strengths, versions
from zhub.registry.strengths import Vectors
from zhub.registry.versions import VersionRecord
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/experts")

SHOWN = {
    "svf": "The change of each matrix is U diag(s (z - 1)) Vh: its norm, and the distance of z from 1.",
    "frames": "The change of each matrix is U C Vh: its norm. There is no z.",
    "core": "The change of each matrix is U C Vh: its norm. There is no z.",
    "lora": "The change of each matrix is B A, with its scale: its norm. There is no z, and nothing is compared.",
    "dora": "The change of each matrix is that of B A and of the rows' lengths: its norm. There is no z.",
}


@router.get("/{name}/z", dependencies=[needs("models:read")])
def show_strengths(caller: CallerDep, context: ContextDep, name: str, against: str | None = None) -> dict[str, Any]:
    """How much a version changes of each layer and matrix, which other versions of its basis change the same, and how
    it differs from the version ``against``.

    ``share`` is the norm of the change as a share of the weights' norm, ``distance`` is ‖z − 1‖. ``similar`` has the
    cosine between the changes, with up to 16 versions; and, as ``against``, only versions of the kind ``svf``.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        record = versions.get_version(session, caller.project_id, name)
        other = None if against is None else versions.get_version(session, caller.project_id, against)
        beside = strengths.similar_to(session, record)
    if other is not None:
        strengths.check_comparable(record, other)
    measured = strengths.read_strengths(context.store, record)
    vectors = strengths.read_vectors(context.store, record)
    return {
        "object": "expert.z",
        "model": record.name,
        "kind": record.adapter,
        "shown": SHOWN[record.adapter],
        **(strengths.summed(measured.matrices) if measured.matrices else {"share": 0.0, "distance": None}),
        "layers": _by_layer(measured.matrices),
        "matrices": [
            {"name": matrix.name, "layer": matrix.layer, **strengths.summed([matrix])} for matrix in measured.matrices
        ],
        "similar": _similar(context, vectors, beside),
        "against": None if other is None else _against(context, measured.matrices, vectors, other),
    }


def _by_layer(matrices: Sequence[MatrixStrength]) -> list[dict[str, Any]]:
    """The layers in order, those matrices that are in none last."""
    ordered = sorted(matrices, key=_place)
    return [
        {"layer": of_layer[0].layer, "matrices": len(of_layer), **strengths.summed(of_layer)}
        for _, group in groupby(ordered, key=_place)
        for of_layer in [list(group)]
    ]


def _place(matrix: MatrixStrength) -> tuple[bool, int]:
    return matrix.layer is None, matrix.layer or 0


def _similar(context: Context, vectors: Vectors | None, beside: Sequence[VersionRecord]) -> list[dict[str, Any]]:
    if vectors is None:
        return []
    compared = [(other.name, strengths.read_vectors(context.store, other)) for other in beside]
    cosines = [(name, strengths.cosine(vectors, theirs)) for name, theirs in compared if theirs is not None]
    alike = [{"model": name, "cosine": value} for name, value in cosines if value is not None]
    return sorted(alike, key=lambda entry: -float(str(entry["cosine"])))


def _against(
    context: Context, matrices: Sequence[MatrixStrength], vectors: Vectors | None, other: VersionRecord
) -> dict[str, Any]:
    theirs = strengths.read_vectors(context.store, other)
    if vectors is None or theirs is None:
        return {"model": other.name, "cosine": None, "matrices": []}
    norms = {matrix.name: matrix.weight_norm for matrix in matrices}
    norms |= {matrix.name: matrix.weight_norm for matrix in strengths.read_strengths(context.store, other).matrices}
    return {
        "model": other.name,
        "cosine": strengths.cosine(vectors, theirs),
        "matrices": strengths.difference(vectors, theirs, norms),
    }
