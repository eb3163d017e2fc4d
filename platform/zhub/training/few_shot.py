"""Which expert versions a few-shot search mixes, from the names in its request, and whether they can be mixed."""

import uuid
from collections.abc import Sequence

from sqlalchemy.orm import Session

from zhub.errors import InvalidRequestError
from zhub.graders import Grader
from zhub.models import BaseModel
from zhub.recipes import FewShotHyperparameters, Hyperparameters
from zhub.registry import releases, versions
from zhub.registry.versions import SVF, VersionRecord
from zhub.specs import BasisReference

EXPERTS_PARAM = "method.few_shot.experts"
MAX_MIXED = 64  # a worker holds the multipliers of them all


def mixed_versions(
    session: Session, project_id: uuid.UUID, base: BaseModel, basis: BasisReference | None, names: Sequence[str]
) -> list[VersionRecord]:
    """The expert versions that ``names`` mean, each once: a version by its name, all that a release pins by its own.

    Raises:
        NotFoundError: there is no such version or release.
        InvalidRequestError: one of them has no multipliers on this base's basis, or they are too many.
    """
    records: dict[uuid.UUID, VersionRecord] = {}
    for name in names:
        release = releases.find_kept(session, project_id, name)
        if release is None:
            named = [versions.get_usable(session, project_id, name)]
        else:
            named = [pin.record for pin in releases.pinned(session, [release])[release.version.id]]
        records |= {record.version.id: record for record in named}
    for record in records.values():
        _check(record, base, basis)
    if len(records) > MAX_MIXED:
        raise InvalidRequestError(f"At most {MAX_MIXED} experts are mixed, not {len(records)}.", param=EXPERTS_PARAM)
    return list(records.values())


def check_start(hyper: Hyperparameters, grader: Grader | None) -> None:
    """Refuse the start ``gradient`` where the grader knows no right answer.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
    """
    if not isinstance(hyper, FewShotHyperparameters) or hyper.start != "gradient":
        return
    if getattr(grader, "reference", None) is None or getattr(grader, "operation", "eq") == "ne":
        what = "there is no grader" if grader is None else f"the grader '{grader.name}' has no right answer to a row"
        raise InvalidRequestError(
            f"The start 'gradient' goes by the right answers to the shots, and {what}. Use the start 'uniform', or a "
            "grader with a reference.",
            param="method.few_shot.hyperparameters.start",
        )


def _check(record: VersionRecord, base: BaseModel, basis: BasisReference | None) -> None:
    if record.base.id != base.id:
        raise InvalidRequestError(
            f"Experts of one base model are mixed: '{record.name}' belongs to '{record.base.name}', and the model of "
            f"this job is '{base.name}'.",
            param=EXPERTS_PARAM,
        )
    if record.adapter != SVF:
        raise InvalidRequestError(
            f"Only experts of the adapter 'svf' are mixed into one: '{record.name}' is of the adapter "
            f"'{record.adapter}'. A request or a release can mix it with others ('experts' of a chat request).",
            param=EXPERTS_PARAM,
        )
    if basis is None or record.version.manifest["basis_fingerprint"] != basis.basis_fingerprint:
        raise InvalidRequestError(
            f"'{record.name}' belongs to an earlier basis of '{base.name}': its multipliers mean other singular "
            "values. Train it again.",
            param=EXPERTS_PARAM,
        )
