"""Two versions side by side: how they were made, and what they got on the suites that both were measured on.

Functions take a Session and never commit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased

from zhub.manifest import Manifest
from zhub.models import Evaluation
from zhub.registry.release_versions import Difference
from zhub.registry.versions import VersionRecord

MAX_SUITES = 10  # each takes a tenth of a second to compare
COMPARED = (
    "base_model", "basis_fingerprint", "dataset_digest", "validation_digest", "recipe", "grader", "seed", "steps",
    "best_step", "parent_digest", "parameters", "code_version", "hardware",
)  # fmt: skip


@dataclass(frozen=True)
class MeasuredBoth:
    """The evaluations of two versions on one suite, which have both succeeded: ``own`` is the first version's."""

    own: Evaluation
    other: Evaluation

    @property
    def rewards(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return tuple(self.own.rewards or ()), tuple(self.other.rewards or ())

    def rows(self, *, better: bool) -> list[int]:
        """The rows, by their place in the suite from 0, for whose answer the first got more, or less, than the other.

        The largest differences first.
        """
        own, other = self.rewards if better else self.rewards[::-1]
        gaps = [mine - theirs for mine, theirs in zip(own, other, strict=True)]
        return sorted((row for row, gap in enumerate(gaps) if gap > 0), key=lambda row: (-gaps[row], row))


def measured_both(session: Session, record: VersionRecord, other: VersionRecord) -> list[MeasuredBoth]:
    """The suites that both versions were measured on, the newest measurement of the first version first."""
    theirs = aliased(Evaluation)
    same = and_(theirs.suite_digest == Evaluation.suite_digest, theirs.project_id == Evaluation.project_id)
    statement = (
        select(Evaluation, theirs)
        .join(theirs, same)
        .where(Evaluation.project_id == record.project.id)
        .where(Evaluation.version_id == record.version.id, Evaluation.rewards.is_not(None))
        .where(theirs.version_id == other.version.id, theirs.rewards.is_not(None))
        .order_by(Evaluation.id.desc())
        .limit(MAX_SUITES)
    )
    return [MeasuredBoth(*row) for row in session.execute(statement)]


def configuration(record: VersionRecord, other: VersionRecord) -> list[Difference]:
    """What differs in how two versions were made; ``before`` is the other's, ``after`` the first one's."""
    own, theirs = (_made_of(version.version.manifest) for version in (record, other))
    return [
        Difference(what, theirs.get(what), own.get(what))
        for what in sorted({*own, *theirs}, key=_order)
        if own.get(what) != theirs.get(what)
    ]


def held_out(record: VersionRecord) -> Mapping[str, Any]:
    """How base and version did on the rows that its own training held out, by split."""
    manifest = Manifest.model_validate(record.version.manifest)
    return {evaluation.split: evaluation for evaluation in manifest.evaluations if ":" not in evaluation.split}


def _made_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {f"hyperparameters.{name}": value for name, value in manifest["hyperparameters"].items()}
    return {name: manifest.get(name) for name in COMPARED} | parameters


def _order(what: str) -> tuple[int, str]:
    return COMPARED.index(what) if what in COMPARED else len(COMPARED), what
