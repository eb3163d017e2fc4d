"""What people say of experts and versions: name, description, tags, archive. Each change has a row.

What training made of a version never changes. Functions take a Session and never commit.
"""

import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, StrictBool
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from zhub.database import sessions
from zhub.errors import ConflictError, InvalidRequestError
from zhub.ids import public_id
from zhub.models import Dataset, Expert, ExpertChange, ExpertVersion, Schedule
from zhub.registry import namespace
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import check_name, name_of_suffix

MAX_DESCRIPTION_CHARACTERS = 4000
MAX_TAGS = 32
MAX_TAG_VALUE_CHARACTERS = 256
MAX_FORMER_NAMES = 20
TAG_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,62}[A-Za-z0-9])?")


class Change(Schema):
    """What to change of an expert or of a version; a field that is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = None
    """Of an expert: its new name. The old one still leads to it, and no other gets it."""
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARACTERS)] | None = None
    """Null removes it."""
    tags: dict[str, Annotated[str, Field(max_length=MAX_TAG_VALUE_CHARACTERS)] | None] | None = None
    """Tags to set; a tag whose value is null is removed, and one that is left out stays."""
    archived: StrictBool | None = None
    """Archived: hidden in lists, never chosen by `auto` or for a warm start, and no training goes into an archived
    expert. It still answers by its name."""


def change(session: Session, caller: Caller, expert: Expert, version: ExpertVersion | None, request: Change) -> None:
    """Change what is said of a version, or of the expert where ``version`` is None, and note who did.

    Raises:
        InvalidRequestError: a name or tags that cannot be.
        ConflictError: the new name is taken.
    """
    if version is not None and request.name is not None:
        raise InvalidRequestError("name: a version has that of its expert; rename the expert.", param="name")
    is_renamed = request.name not in (None, expert.name)
    if is_renamed:
        # Before the expert, as whoever fires or changes a schedule does: otherwise they lock each other out.
        of_project = select(Schedule.id).where(Schedule.project_id == expert.project_id)
        session.execute(of_project.order_by(Schedule.id).with_for_update())
    session.refresh(version or expert, with_for_update=True)
    changes = _say(session, version or expert, request)
    if is_renamed:
        changes["name"] = {"from": expert.name, "to": request.name}
        _rename(session, expert, check_name(str(request.name), "expert", param="name"))
    if changes:
        record(session, caller, expert, version, changes)


def record(
    session: Session, caller: Caller, expert: Expert, version: ExpertVersion | None, changes: Mapping[str, Any]
) -> None:
    """Note who changed what."""
    version_id = version.id if version is not None else None
    by = public_id("API key", caller.key_id)
    row = ExpertChange(org_id=expert.org_id, expert_id=expert.id, version_id=version_id, by=by, changes=dict(changes))
    session.add(row)
    session.flush()


def list_changes(
    session: Session, expert: Expert, version: ExpertVersion | None, *, after: uuid.UUID | None, limit: int
) -> tuple[list[ExpertChange], bool]:
    """The changes of an expert and its versions, or of one version, newest first, and whether more follow."""
    statement = select(ExpertChange).where(ExpertChange.expert_id == expert.id)
    if version is not None:
        statement = statement.where(ExpertChange.version_id == version.id)
    if after is not None:
        statement = statement.where(ExpertChange.id < after)
    newest = list(session.scalars(statement.order_by(ExpertChange.id.desc()).limit(limit + 1)))
    return newest[:limit], len(newest) > limit


def trained_by(session: Session, expert: Expert) -> list[Schedule]:
    """The schedules whose runs train the expert: by their suffix, or else by the name of their dataset."""
    rows = session.execute(
        select(Schedule, Dataset.name)
        .join(Dataset, Dataset.id == Schedule.dataset_id)
        .where(Schedule.project_id == expert.project_id, Schedule.deleted_at.is_(None))
        .order_by(Schedule.name)
    )
    return [schedule for schedule, dataset in rows if _trained(schedule, dataset) == expert.name]


def _trained(schedule: Schedule, dataset: str) -> str:
    suffix = schedule.request.get("suffix")
    if suffix is None:
        return dataset
    try:
        return name_of_suffix(suffix, "expert", param="suffix")
    except InvalidRequestError:
        return ""  # an earlier release took it; its runs are refused


def _say(session: Session, subject: Expert | ExpertVersion, request: Change) -> dict[str, Any]:
    """Write description, tags and archive; return what changed of them."""
    wanted: dict[str, Any] = {}
    if "description" in request.model_fields_set:
        wanted["description"] = request.description or None
    if request.tags is not None:
        wanted["tags"] = _merged(subject.tags, request.tags)
    if request.archived is not None and request.archived != (subject.archived_at is not None):
        wanted["archived_at"] = sessions.now(session) if request.archived else None
    changes = {}
    for column, value in wanted.items():
        if (before := getattr(subject, column)) != value:
            changes[column] = {"from": _plain(before), "to": _plain(value)}
            setattr(subject, column, value)
    return changes


def _rename(session: Session, expert: Expert, name: str) -> None:
    """Give an expert another name, under which its schedules train it from now on."""
    taken = ConflictError(
        f"The project has or had another expert '{name}', and its name stays its own. Choose another."
    )
    former = [*(known for known in expert.former_names if known != name), expert.name]
    if len(former) > MAX_FORMER_NAMES:
        raise ConflictError(
            f"The expert has had {len(former)} names, which all still lead to it, and more are not kept. Go back to "
            f"one of them: {', '.join(former)}."
        )
    namespace.claim_for_expert(session, expert.project_id, name)
    schedules = trained_by(session, expert)
    expert.name, expert.former_names = name, former
    try:
        session.flush()
    except IntegrityError as exc:
        raise taken from exc
    # After the flush, which waits for whoever renames another expert away from this name.
    of_others = select(Expert.id).where(Expert.project_id == expert.project_id, Expert.id != expert.id)
    if session.scalar(of_others.where(Expert.former_names.contains([name]))) is not None:
        raise taken
    for schedule in schedules:
        schedule.request = schedule.request | {"suffix": name}
    session.flush()


def _merged(tags: Mapping[str, str], asked: Mapping[str, str | None]) -> dict[str, str]:
    for key in asked:
        if not TAG_KEY.fullmatch(key):
            raise InvalidRequestError(
                f"tags: {key[:80]!r} cannot be the key of a tag: use 1 to 64 letters, digits, '.', '-', '_' or '/', "
                "beginning and ending with a letter or digit.",
                param="tags",
            )
    merged = {key: value for key, value in ({**tags, **asked}).items() if value is not None}
    if len(merged) > MAX_TAGS:
        raise InvalidRequestError(f"tags: {len(merged)} are too many, at most {MAX_TAGS} are kept.", param="tags")
    return merged


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
