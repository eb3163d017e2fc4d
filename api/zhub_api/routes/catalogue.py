"""``/v1/catalogue``: experts' versions searched, and the cards of experts."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.models import CardRevision, Expert, VersionMetric
from zhub.registry import cards, catalogue, sharing, versions
from zhub.registry.cards import CardRequest
from zhub.registry.catalogue import Listed
from zhub.registry.search import FACETS, MAX_FACET_VALUES, Counts, Sort
from zhub.registry.search_query import MAX_CHARACTERS
from zhub.registry.versions import VersionRecord
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import PageLimit, page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1")

MAX_CURSOR_CHARACTERS = 200


@router.get("/catalogue", dependencies=[needs("models:read")])
def search_catalogue(
    caller: CallerDep,
    context: ContextDep,
    q: Annotated[str, Query(max_length=MAX_CHARACTERS)] = "",
    sort: Sort | None = None,
    after: Annotated[str | None, Query(max_length=MAX_CURSOR_CHARACTERS)] = None,
    limit: PageLimit = 20,
    facets: bool = False,
) -> dict[str, Any]:
    """Search the expert versions that the key may see, its own and those that others share with it, by a query such as
    `sorting base:tiny -tag:stage=trial suite:gsm8k accuracy>=0.7`.

    ``sort``: the ``best`` first, by the first metric that the search bounds, which is the default where it bounds one;
    the ``newest``; by the ``tokens`` that they have read and written; by the mean ``feedback``. ``after`` is ``next``
    of the page before. With ``facets``, how many of the first 1,000 matches have each base, adapter, alias, suite, tag
    and visibility. Where nothing is found, ``nothing`` says which terms find nothing even alone.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        found = catalogue.search_catalogue(session, caller, q, sort=sort, after=after, limit=limit, counted=facets)
        answer = page([_entry(listed) for listed in found.listed], has_more=found.next is not None)
    return answer | {
        "next": found.next,
        "facets": None if found.counts is None else _facets(found.counts),
        "nothing": found.nothing,
    }


@router.get("/experts/{name}/card", dependencies=[needs("models:read")])
def retrieve_card(caller: CallerDep, context: ContextDep, name: str) -> dict[str, Any]:
    """The card of an expert, or of one version of it: facts, figures, and what people wrote, which is Markdown text.

    The facts are those of the version, of an expert those of what ``@prod`` points to, or else of its newest version.
    ``markdown`` is all of it as one text. Nothing in it is HTML that may be shown unescaped.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        found = sharing.find(session, caller, name)
        with sharing.reading(session, caller, found.organization):
            record = found.record or versions.representative(session, found.expert)
            if record is not None and found.organization is not None:
                record = replace(record, organization=found.organization)
            return _card(session, found.expert, name.partition("@")[0], record) | {"permission": found.permission}


@router.put("/experts/{name}/card", dependencies=[needs("models:write")])
def write_card(caller: CallerDep, context: ContextDep, name: str, request: CardRequest) -> dict[str, Any]:
    """Write the text and the links of an expert's card: a new revision, the old ones stay. With ``expected``, only if
    that is the revision now."""
    with tenant_session(context.engine, caller.org_id) as session:
        expert = versions.get_expert(session, caller, name.partition("@")[0])
        cards.write(session, caller, expert, request)
        full_name = f"{caller.project}.{expert.name}"
        return _card(session, expert, full_name, versions.representative(session, expert)) | {"permission": "manage"}


@router.get("/experts/{name}/card/revisions", dependencies=[needs("models:read")])
def list_card_revisions(
    caller: CallerDep,
    context: ContextDep,
    name: str,
    after: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
    limit: PageLimit = 20,
) -> dict[str, Any]:
    """What was written on an expert's card, by whom and when, newest first."""
    with tenant_session(context.engine, caller.org_id) as session:
        expert = versions.get_expert(session, caller, name.partition("@")[0])
        newest, has_more = cards.revisions(session, expert, before=after, limit=limit)
    return page([_revision(card) for card in newest], has_more=has_more)


def _entry(listed: Listed) -> dict[str, Any]:
    record, entry = listed.record, listed.entry
    version, expert = record.version, record.expert
    return {
        "id": record.name,
        "object": "catalogue.entry",
        "owner": listed.owner,
        "created_at": int(version.created_at.timestamp()),
        "updated_at": int(entry.updated_at.timestamp()),
        "project": record.project.name,
        "expert": expert.name,
        "version": version.version,
        "base_model": record.base.name,
        "adapter": record.adapter,
        "digest": version.digest,
        "description": version.description or expert.description,
        "tags": expert.tags | version.tags,
        "aliases": sorted(term.removeprefix("alias:") for term in entry.terms if term.startswith("alias:")),
        "visibility": expert.visibility,
        "archived": entry.archived,
        "metrics": [_metric(metric) for metric in listed.metrics],
        "used_tokens": entry.used_tokens,
        "feedback": {
            "count": entry.feedback_count,
            "mean_score": entry.feedback_mean if entry.feedback_count else None,
        },
    }


def _metric(metric: VersionMetric) -> dict[str, Any]:
    return {name: getattr(metric, name) for name in ("suite", "metric", "value", "low", "high", "n")}


def _facets(counts: Counts) -> dict[str, Any]:
    return {
        "object": "catalogue.facets",
        "matches": counts.matches,
        "is_whole": counts.is_whole,
        "values_at_most": MAX_FACET_VALUES,
        **{name: [{"value": value, "count": count} for value, count in counts.facets[name]] for name in FACETS},
    }


def _card(session: Session, expert: Expert, name: str, record: VersionRecord | None) -> dict[str, Any]:
    card = cards.current(session, expert)
    known, measured = None, []
    if record is not None:
        # What another organisation's version was made from is told by its digest alone.
        parents = {} if record.organization is not None else versions.parents(session, [record])
        known = cards.facts(record, parents.get(record.version.manifest["parent_digest"]))
        of_version = select(VersionMetric).where(VersionMetric.version_id == record.version.id)
        ordered = of_version.order_by(VersionMetric.suite, VersionMetric.metric)
        measured = [_metric(metric) for metric in session.scalars(ordered)]
    return {
        "id": name if record is None else record.name,
        "object": "expert.card",
        "expert": name,
        "facts": known,
        "metrics": measured,
        "revision": card.revision if card else 0,
        "text": card.text if card else "",
        "links": card.links if card else [],
        "by": card.by if card and (record is None or record.organization is None) else None,
        "written_at": int(card.created_at.timestamp()) if card else None,
        "markdown": cards.markdown(name, known, measured, card),
    }


def _revision(card: CardRevision) -> dict[str, Any]:
    return {
        "id": str(card.revision),
        "object": "expert.card.revision",
        "revision": card.revision,
        "created_at": int(card.created_at.timestamp()),
        "by": card.by,
        "text": card.text,
        "links": card.links,
    }
