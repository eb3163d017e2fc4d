"""``/v1/experts/{name}/comparisons/{against}``: two versions side by side."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from zhub.database.sessions import tenant_session
from zhub.errors import ConflictError
from zhub.evaluation import version_comparison
from zhub.evaluation.comparison import compare
from zhub.evaluation.version_comparison import MeasuredBoth
from zhub.ids import public_id
from zhub.registry import strengths, versions
from zhub.registry.versions import VersionRecord
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/experts")

MAX_ROWS = 100  # whose places are told: the rows themselves come with each evaluation


@router.get("/{name}/comparisons/{against}", dependencies=[needs("models:read")])
def compare_versions(caller: CallerDep, context: ContextDep, name: str, against: str) -> dict[str, Any]:
    """How a version differs from the version ``against``: how both were made, what they got on the suites that both
    were measured on, and how their changes differ.

    ``better_rows`` and ``worse_rows`` are places in the suite, from 0, of answers that got more or less than the
    other's; ``GET /v1/evaluations/{evaluation_id}/rows`` has the answers, in this order.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        record = versions.get_version(session, caller.project_id, name)
        other = versions.get_version(session, caller.project_id, against)
        suites = version_comparison.measured_both(session, record, other)
    configuration = version_comparison.configuration(record, other)
    return {
        "object": "expert.comparison",
        "model": record.name,
        "against": other.name,
        "configuration": [{"what": one.what, "model": one.after, "against": one.before} for one in configuration],
        "held_out": _held_out(record, other),
        "suites": [_suite(record, other, measured) for measured in suites],
        **_changes(context, record, other),
    }


def _held_out(record: VersionRecord, other: VersionRecord) -> list[dict[str, Any]]:
    """On the rows of each one's own training: of the same rows only where both were trained on one dataset."""
    own, theirs = (version_comparison.held_out(version) for version in (record, other))

    def shown(evaluations: Mapping[str, Any], split: str) -> dict[str, Any] | None:
        return evaluations[split].expert.model_dump() if split in evaluations else None

    same = record.version.manifest["dataset_digest"] == other.version.manifest["dataset_digest"] is not None
    return [
        {"split": split, "same_rows": same, "model": shown(own, split), "against": shown(theirs, split)}
        for split in sorted({*own, *theirs})
    ]


def _suite(record: VersionRecord, other: VersionRecord, measured: MeasuredBoth) -> dict[str, Any]:
    comparison = compare(*measured.rewards)
    better, worse = measured.rows(better=True), measured.rows(better=False)
    return {
        "suite_digest": measured.own.suite_digest,
        "suite": measured.own.suite,
        "model": {"evaluation": public_id("evaluation", measured.own.id), "results": measured.own.results},
        "against": {"evaluation": public_id("evaluation", measured.other.id), "results": measured.other.results},
        "comparison": asdict(comparison)
        | {"verdict": comparison.verdict, "sentence": comparison.sentence(record.name, other.name)},
        "better": len(better),
        "worse": len(worse),
        "better_rows": better[:MAX_ROWS],
        "worse_rows": worse[:MAX_ROWS],
    }


def _changes(context: Context, record: VersionRecord, other: VersionRecord) -> dict[str, Any]:
    """How the changes differ, as a whole and by layer; or why that is not known."""
    try:
        strengths.check_comparable(record, other)
        measured = [strengths.read_strengths(context.store, version).matrices for version in (record, other)]
    except ConflictError as exc:
        return {"z": None, "z_missing": str(exc)}
    own, theirs = (strengths.read_vectors(context.store, version) for version in (record, other))
    norms = [strengths.summed(matrices) if matrices else None for matrices in measured]
    changes: dict[str, Any] = {"model": norms[0], "against": norms[1], "cosine": None, "layers": []}
    if own is None or theirs is None:
        return {"z": changes, "z_missing": "Only versions of the kind svf are compared matrix by matrix."}
    layers = strengths.by_layer(own, theirs, [*measured[0], *measured[1]])
    return {"z": changes | {"cosine": strengths.cosine(own, theirs), "layers": layers}, "z_missing": None}
