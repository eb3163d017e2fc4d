"""``/v1/organization/usage/workers``: the time of workers that the organisation has used. Not in the dialect."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Query

from zhub.database.sessions import tenant_session
from zhub.ids import public_id
from zhub.tenancy import worker_usage
from zhub.tenancy.worker_usage import Filter, Group, Worked
from zhub_api.bucket_pages import IDS, Moment, Names, Span, in_brackets, moment_of, parse_ids, span_of
from zhub_api.context import CallerDep, ContextDep
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/organization")

DAY_S = 86_400
Days = Annotated[int, Query(ge=1, le=180, description="How many days a page has.")]


@router.get("/usage/workers", dependencies=[needs("files:read")])
def retrieve_worker_usage(
    caller: CallerDep,
    context: ContextDep,
    start_time: Moment,
    end_time: Moment | None = None,
    limit: Days = 7,
    page: str | None = None,
    group_by: Annotated[list[Group], Query()] = [],  # noqa: B006  # FastAPI copies it
    group_by_in_brackets: Annotated[list[Group], in_brackets("group_by")] = [],  # noqa: B006
    project_ids: Names = [],  # noqa: B006
    project_ids_in_brackets: Annotated[list[str], in_brackets("project_ids")] = [],  # noqa: B006
    api_key_ids: Names = [],  # noqa: B006
    api_key_ids_in_brackets: Annotated[list[str], in_brackets("api_key_ids")] = [],  # noqa: B006
) -> dict[str, Any]:
    """The time of workers that the organisation's jobs took, by day (UTC), also of jobs that still run.

    ``group_by`` divides each day by project, key, cluster, kind of job, expert or base.
    """
    span = days(start_time, end_time, page, limit)
    groups = list(dict.fromkeys([*group_by, *group_by_in_brackets]))
    only = Filter(
        parse_ids("project", [*project_ids, *project_ids_in_brackets]),
        parse_ids("API key", [*api_key_ids, *api_key_ids_in_brackets]),
    )
    with tenant_session(context.engine, caller.org_id) as session:
        rows = worker_usage.report(session, caller.org_id, *days_of(span), groups, only)
    by_day = groupby(rows, lambda row: start_of(row.day))
    return span.answer({start: [_result(row) for row in worked] for start, worked in by_day})


def days(start_time: int, end_time: int | None, page: str | None, limit: int) -> Span:
    """A page of whole days."""
    return span_of(start_time - start_time % DAY_S, end_time, page, width_s=DAY_S, buckets=limit)


def days_of(span: Span) -> tuple[date, date]:
    """The days of a page: the first, and the one after the last."""
    return moment_of(span.began).date(), moment_of(span.until + DAY_S - 1).date()


def start_of(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())


def shown_group(group: Mapping[Any, Any]) -> dict[str, Any]:
    """What a result is grouped by, with the ids as clients know them; an empty name is null."""
    return {
        name: (public_id(IDS[name], value) if name in IDS and value is not None else value) or None
        for name, value in group.items()
    }


def _result(row: Worked) -> dict[str, Any]:
    return {
        "object": "organization.usage.workers.result",
        "worker_seconds": row.worker_seconds,
        "trained_tokens": row.trained_tokens,
        **dict.fromkeys(worker_usage.COLUMNS),
        **shown_group(row.group),
    }
