"""``/v1/organization/costs``: what the caller's organisation has used, by the price list, in the OpenAI dialect."""

from itertools import groupby
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from zhub.database.sessions import tenant_session
from zhub.tenancy import costs, prices
from zhub.tenancy.costs import Cost, Filter
from zhub_api.bucket_pages import Moment, Names, in_brackets, parse_ids
from zhub_api.context import CallerDep, ContextDep
from zhub_api.money import shown_money
from zhub_api.rights import needs
from zhub_api.routes.organization_usage import Days, days, days_of, shown_group, start_of

router = APIRouter(prefix="/v1/organization")

Group = Literal["project_id", "line_item", "api_key_id", "expert", "base_model"]


@router.get("/costs", dependencies=[needs("files:read")])
def retrieve_costs(
    caller: CallerDep,
    context: ContextDep,
    start_time: Moment,
    end_time: Moment | None = None,
    bucket_width: Literal["1d"] = "1d",
    limit: Days = 7,
    page: str | None = None,
    group_by: Annotated[list[Group], Query()] = [],  # noqa: B006  # FastAPI copies it
    group_by_in_brackets: Annotated[list[Group], in_brackets("group_by")] = [],  # noqa: B006
    project_ids: Names = [],  # noqa: B006
    project_ids_in_brackets: Annotated[list[str], in_brackets("project_ids")] = [],  # noqa: B006
    api_key_ids: Names = [],  # noqa: B006
    api_key_ids_in_brackets: Annotated[list[str], in_brackets("api_key_ids")] = [],  # noqa: B006
    line_items: Names = [],  # noqa: B006
    line_items_in_brackets: Annotated[list[str], in_brackets("line_items")] = [],  # noqa: B006
) -> dict[str, Any]:
    """What the organisation has used on each day (UTC), by the prices of that day, also by jobs that still run.

    ``group_by`` divides each day by project, line item, key, expert or base. ``amount`` is null where nothing has a
    price, and ``unpriced`` names the line items that have none and are not in it. What was used within the last seconds
    may be missing.
    """
    span = days(start_time, end_time, page, limit)
    groups: list[Group] = list(dict.fromkeys([*group_by, *group_by_in_brackets]))
    only = Filter(
        parse_ids("project", [*project_ids, *project_ids_in_brackets]),
        parse_ids("API key", [*api_key_ids, *api_key_ids_in_brackets]),
        [*line_items, *line_items_in_brackets],
    )
    named: list[costs.Group] = [group for group in groups if group != "line_item"]
    with tenant_session(context.engine, caller.org_id) as session:
        rows = costs.report(session, caller.org_id, *days_of(span), named, only)
        currency = prices.currency(session)
    by_day = groupby(rows, lambda cost: start_of(cost.day))
    by_line = "line_item" in groups
    return span.answer({start: _results(list(of_day), by_line, currency) for start, of_day in by_day})


def _results(of_day: list[Cost], by_line: bool, currency: str | None) -> list[dict[str, Any]]:
    """The costs of a day, which come in the order of their groups."""
    divided = groupby(of_day, lambda cost: (cost.group, cost.line if by_line else None))
    return [_result(list(part), by_line, currency) for _, part in divided]


def _result(part: list[Cost], by_line: bool, currency: str | None) -> dict[str, Any]:
    summed = costs.total(part)
    first = part[0]
    return {
        "object": "organization.costs.result",
        "amount": shown_money(summed.amount, currency),
        "unpriced": summed.unpriced,
        "line_item": first.line.name if by_line else None,
        "quantity": float(sum(cost.quantity for cost in part)) if by_line else None,
        "quantity_unit": costs.UNITS[first.line.item] if by_line else None,
        **dict.fromkeys(costs.COLUMNS),
        **shown_group(first.group),
    }
