"""The state of a version: ``ready``, ``deprecated`` or ``yanked``, and back; ``deletion`` does the rest of its life.

A deprecated version answers, and its answers name the successor. A yanked one answers nothing, by no name, and nothing
begins from it. Each change has a row of ``expert_changes``. Functions take a Session and never commit.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from zhub.errors import InvalidRequestError
from zhub.ids import public_id
from zhub.models import ExpertVersion
from zhub.registry import metadata, needs, versions
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

MAX_REASON_CHARACTERS = 500


class StateRequest(Schema):
    """The state that a version shall have; ``ready`` takes back what was said before."""

    model_config = ConfigDict(extra="forbid")
    state: Literal["ready", "deprecated", "yanked"]
    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON_CHARACTERS)] | None = None
    """Why, in a sentence that everybody is told who asks the version. A yanked version needs one."""
    successor: str | None = None
    """The version to use in its place. A deprecated version needs one."""
    detach: bool = False
    """Of a version to yank: detach what needs it. Without, it is refused while something does."""


def change(session: Session, caller: Caller, record: VersionRecord, request: StateRequest) -> None:
    """Give a version another state, and note who did.

    Raises:
        InvalidRequestError: a reason or a successor is missing, or cannot be.
        NotFoundError: there is no such successor, or it was yanked.
        ConflictError: something needs the version that is to be yanked, and ``detach`` was not asked for.
    """
    _check(request)
    successor = _successor(session, caller, record, request)
    before = _told(session, record.version)
    if request.state == "yanked":
        _release(session, caller, record, request)
    columns = {
        "deprecated_at": func.coalesce(ExpertVersion.deprecated_at, func.now()),
        "yanked_at": func.coalesce(ExpertVersion.yanked_at, func.now()),
    }
    kept = {"ready": (), "deprecated": ("deprecated_at",), "yanked": ("yanked_at",)}[request.state]
    values = {name: column if name in kept else None for name, column in columns.items()}
    reason = _sentence(request.reason) if request.reason else None
    said = {"state_reason": reason, "successor_id": successor.version.id if successor else None}
    session.execute(update(ExpertVersion).where(ExpertVersion.id == record.version.id).values(**values, **said))
    session.refresh(record.version)
    after = _told(session, record.version)
    changes = {name: {"from": before[name], "to": after[name]} for name in before if before[name] != after[name]}
    if changes:
        metadata.record(session, caller, record.expert, record.version, changes)


def warning(session: Session, record: VersionRecord) -> str | None:
    """What whoever uses a version is told: that it is deprecated, since when, why, and what to use; or None."""
    version = record.version
    if version.state != "deprecated" or version.successor_id is None:
        return None
    why = f": {version.state_reason}" if version.state_reason else "."
    # Of another organisation's version the successor may not be shared.
    successor = versions.by_id(session, [version.successor_id]).get(version.successor_id)
    return f"{record.name} is deprecated{why}" + ("" if successor is None else f" Use {successor.name}.")


def successors(session: Session, records: Sequence[VersionRecord]) -> dict[str, str]:
    """By the name of a version, the name of its successor, for those that have one."""
    ids = [record.version.successor_id for record in records if record.version.successor_id is not None]
    named = versions.by_id(session, ids) if ids else {}
    return {
        record.name: named[record.version.successor_id].name
        for record in records
        if record.version.successor_id is not None
    }


def _check(request: StateRequest) -> None:
    if request.state == "yanked" and request.reason is None:
        raise InvalidRequestError(
            "reason: say why the version is yanked; whoever asks it is told that.", param="reason"
        )
    if request.state == "deprecated" and request.successor is None:
        raise InvalidRequestError(
            "successor: name the version to use in place of the deprecated one; its answers name it too. A version "
            "without a successor is yanked.",
            param="successor",
        )
    if request.state == "ready" and (request.successor or request.reason):
        param = "successor" if request.successor else "reason"
        raise InvalidRequestError(f"{param}: a version that is ready has none. Leave it out.", param=param)
    if request.detach and request.state != "yanked":
        raise InvalidRequestError("detach: only what needs a yanked version is detached.", param="detach")


def _successor(session: Session, caller: Caller, record: VersionRecord, request: StateRequest) -> VersionRecord | None:
    if request.successor is None:
        return None
    successor = versions.get_usable(session, caller.project_id, request.successor)
    # A chain is followed by people and by programs: it must end.
    seen: VersionRecord | None = successor
    passed = set()
    while seen is not None and seen.version.id not in passed:
        passed.add(seen.version.id)
        if seen.version.id == record.version.id:
            raise InvalidRequestError(
                f"successor: {record.name} cannot be its own successor"
                + (f", and {successor.name} names it as its own." if seen is not successor else "."),
                param="successor",
            )
        following = seen.version.successor_id
        seen = versions.by_id(session, [following])[following] if following is not None else None
    return successor


def _release(session: Session, caller: Caller, record: VersionRecord, request: StateRequest) -> None:
    """Lock the version that is to be yanked, once nothing needs it."""
    which = (ExpertVersion.id == record.version.id,)
    by = public_id("API key", caller.key_id)
    if request.detach:
        needing = needs.of_versions(session, record.expert, which, "yank", by=by)
        needs.detach(session, needing, f"{record.name} was yanked.")
    needs.lock(session, *which)
    needs.refuse(needs.of_versions(session, record.expert, which, "yank", by=by))


def _told(session: Session, version: ExpertVersion) -> dict[str, str | None]:
    """What is said of the state, for the history."""
    successor = (
        versions.by_id(session, [version.successor_id])[version.successor_id].name if version.successor_id else None
    )
    return {"state": version.state, "state_reason": version.state_reason, "successor": successor}


def _sentence(text: str) -> str:
    """As a sentence, so that other sentences may follow."""
    plain = " ".join(text.split())
    return plain if plain.endswith((".", "!", "?")) else f"{plain}."
