"""The card of an expert: facts that zhub knows of a version, and a text with links that people write, with its history.

The text is kept as it was written and shown as text: nothing here makes HTML of it. Functions take a Session and never
commit.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, field_validator
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from zhub.errors import ConflictError
from zhub.ids import public_id
from zhub.manifest import Manifest
from zhub.models import CardRevision, Expert
from zhub.registry import metadata
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

MAX_CARD_CHARACTERS = 64_000
MAX_LINKS = 32
LINK = re.compile(r"https?://[^\s<>\"'`\\^{|}]{1,2000}")
MARKED = re.compile(r"([\\`*_{}\[\]<>|#])")


class Link(Schema):
    """Where more is to be read: a repository, a paper, a ticket."""

    model_config = ConfigDict(extra="forbid")
    title: Annotated[str, Field(min_length=1, max_length=200)]
    url: str
    """With http or https: nothing else, so that none runs a script when it is followed."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if not LINK.fullmatch(url):
            raise ValueError("expected an address that begins with http:// or https://, without blanks and quotes")
        return url


class CardRequest(Schema):
    """What people say of an expert; a field that is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")
    text: Annotated[str, Field(max_length=MAX_CARD_CHARACTERS)] | None = None
    """Markdown."""
    links: Annotated[list[Link], Field(max_length=MAX_LINKS)] | None = None
    expected: Annotated[int, Field(ge=0)] | None = None
    """The revision that was read before: where somebody wrote another since, nothing is written. 0: there is none."""


def current(session: Session, expert: Expert) -> CardRevision | None:
    """The newest revision of the expert's card, if anybody wrote one."""
    of_expert = select(CardRevision).where(CardRevision.expert_id == expert.id)
    return session.scalar(of_expert.order_by(CardRevision.revision.desc()).limit(1))


def write(session: Session, caller: Caller, expert: Expert, request: CardRequest) -> CardRevision | None:
    """Write a revision of the card; what changes nothing writes none.

    Raises:
        ConflictError: the card is not at the revision that was expected: says who wrote it, and when.
    """
    session.refresh(expert, with_for_update=True)
    before = current(session, expert)
    revision = 0 if before is None else before.revision
    if request.expected not in (None, revision):
        by = "" if before is None else f", written by {before.by} on {before.created_at:%Y-%m-%d at %H:%M %Z}"
        raise ConflictError(
            f"The card is at revision {revision}{by}, not at {request.expected}. Read it, and write yours again."
        )
    text = request.text if request.text is not None else before.text if before else ""
    links = (
        [link.model_dump() for link in request.links] if request.links is not None else before.links if before else []
    )
    if (text, links) == ((before.text, before.links) if before else ("", [])):
        return before
    written = CardRevision(
        org_id=expert.org_id,
        expert_id=expert.id,
        revision=revision + 1,
        text=text,
        links=links,
        by=public_id("API key", caller.key_id),
    )
    session.add(written)
    session.flush()
    session.refresh(written)
    metadata.record(session, caller, expert, None, {"card": {"from": revision, "to": revision + 1}})
    return written


def revisions(session: Session, expert: Expert, *, before: int | None, limit: int) -> tuple[list[CardRevision], bool]:
    """The revisions of a card, newest first, from the one below ``before``; and whether more follow."""
    of_expert = select(CardRevision).where(CardRevision.expert_id == expert.id)
    if before is not None:
        of_expert = of_expert.where(CardRevision.revision < before)
    newest = list(session.scalars(of_expert.order_by(CardRevision.revision.desc()).limit(limit + 1)))
    return newest[:limit], len(newest) > limit


def clear(session: Session, expert_id: uuid.UUID, org_id: uuid.UUID) -> None:
    """Let a card begin again: of an expert that was deleted and is trained again under its name."""
    newest = select(func.max(CardRevision.revision)).where(CardRevision.expert_id == expert_id)
    if (revision := session.scalar(newest)) is not None:
        row = CardRevision(org_id=org_id, expert_id=expert_id, revision=revision + 1, text="", links=[], by="zhub")
        session.add(row)
        session.flush()


def facts(record: VersionRecord, parent: str | None) -> dict[str, Any]:
    """What zhub knows of a version: what it was made of, and how good it is."""
    manifest = Manifest.model_validate(record.version.manifest)
    return {
        "version": record.name,
        "digest": record.version.digest,
        "created_at": int(record.version.created_at.timestamp()),
        "base_model": record.base.name,
        "base_source": manifest.base_source,
        "basis_fingerprint": manifest.basis_fingerprint,
        "adapter": record.adapter,
        "parameters": manifest.parameters,
        "dataset_digest": manifest.dataset_digest,
        "validation_digest": manifest.validation_digest,
        "recipe": manifest.recipe,
        "steps": manifest.steps,
        "seed": manifest.seed,
        "code_version": manifest.code_version,
        "parent": parent,
        "parent_digest": manifest.parent_digest,
        "mixture": [part.name for part in manifest.mixture.experts] if manifest.mixture else [],
        "evaluations": [evaluation.model_dump(mode="json") for evaluation in manifest.evaluations],
    }


def markdown(
    expert: str,
    version_facts: Mapping[str, Any] | None,
    measured: Sequence[Mapping[str, Any]],
    card: CardRevision | None,
) -> str:
    """The whole card as one Markdown text: facts first, then what people wrote, unchanged."""
    lines = [f"# {_plain(expert)}", ""]
    if version_facts is not None:
        lines += [*_facts_as_markdown(version_facts), ""]
    if measured:
        lines += ["| suite | metric | value | 95 % | rows |", "|---|---|---|---|---|"]
        for metric in measured:
            interval = "" if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
            cells = (metric["suite"], metric["metric"], f"{metric['value']:.3f}", interval, metric["n"] or "")
            lines.append("| " + " | ".join(_plain(str(cell)) for cell in cells) + " |")
        lines.append("")
    if card is not None and card.text:
        lines += [card.text, ""]
    if card is not None:
        lines += [f"- [{_plain(link['title'])}](<{link['url']}>)" for link in card.links]
    return "\n".join(lines).rstrip() + "\n"


def _facts_as_markdown(known: Mapping[str, Any]) -> list[str]:
    dataset = f"sha256:{known['dataset_digest']}" if known["dataset_digest"] else "not known"
    rows = {
        "version": f"{known['version']} (sha256:{known['digest']})",
        "base": f"{known['base_model']}, {known['base_source']}",
        "kind": f"{known['adapter']}, {known['parameters']:,} numbers",
        "data": dataset,
        "recipe": f"{known['recipe']}, {known['steps']} steps, seed {known['seed']}",
        "parent": known["parent"] or known["parent_digest"] or ", ".join(known["mixture"]) or "the base",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {_plain(str(value))} |" for name, value in rows.items())]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return MARKED.sub(r"\\\1", " ".join(text.split()))
