"""``/v1/organization``: what the caller's organisation may use, and the tokens of models that it has used."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from zhub.admission import budgets
from zhub.database.sessions import tenant_session
from zhub.ids import public_id
from zhub.tenancy import quotas, token_usage
from zhub.tenancy.token_usage import SECONDS, Filter, Used, Width
from zhub_api.bucket_pages import IDS, Moment, Names, in_brackets, moment_of, parse_ids, span_of
from zhub_api.context import CallerDep, ContextDep
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/organization")

Group = Literal["project_id", "api_key_id", "model"]
MAX_BUCKETS: dict[Width, int] = {"1h": 168, "1d": 31}
DEFAULT_BUCKETS: dict[Width, int] = {"1h": 24, "1d": 7}


@router.get("/limits", dependencies=[needs("files:read")])
def retrieve_limits(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """The limits of the organisation, the bytes that it has stored, and this month's budgets with what is used."""
    with tenant_session(context.engine, caller.org_id) as session:
        limits = quotas.limits_of(session, caller.org_id)
        stored_bytes = quotas.stored_bytes(session, caller.org_id)
        uses = budgets.of_organization(session, caller.org_id)
    return {
        "object": "organization.limits",
        **asdict(limits),
        "stored_bytes": stored_bytes,
        "budgets": list(map(asdict, uses)),
    }


@router.get("/usage/completions", dependencies=[needs("files:read")])
def retrieve_usage(
    caller: CallerDep,
    context: ContextDep,
    start_time: Moment,
    end_time: Moment | None = None,
    bucket_width: Width = "1d",
    limit: Annotated[int | None, Query(ge=1)] = None,
    page: str | None = None,
    group_by: Annotated[list[Group], Query()] = [],  # noqa: B006  # FastAPI copies it
    group_by_in_brackets: Annotated[list[Group], in_brackets("group_by")] = [],  # noqa: B006
    project_ids: Names = [],  # noqa: B006
    project_ids_in_brackets: Annotated[list[str], in_brackets("project_ids")] = [],  # noqa: B006
    api_key_ids: Names = [],  # noqa: B006
    api_key_ids_in_brackets: Annotated[list[str], in_brackets("api_key_ids")] = [],  # noqa: B006
    models: Names = [],  # noqa: B006
    models_in_brackets: Annotated[list[str], in_brackets("models")] = [],  # noqa: B006
) -> dict[str, Any]:
    """The tokens that the organisation's requests of models came to, by hour or day, also those of embeddings.

    ``group_by`` divides each bucket by project, key or model: a base, the version of an expert, or several of them, and
    then says the base as well. What was used within the last seconds may be missing.
    """
    span = span_of(
        start_time - start_time % 3600,
        end_time,
        page,
        width_s=SECONDS[bucket_width],
        buckets=min(limit or DEFAULT_BUCKETS[bucket_width], MAX_BUCKETS[bucket_width]),
    )
    groups: list[Group] = [*group_by, *group_by_in_brackets]
    only = Filter(
        parse_ids("project", [*project_ids, *project_ids_in_brackets]),
        parse_ids("API key", [*api_key_ids, *api_key_ids_in_brackets]),
        [*models, *models_in_brackets],
    )
    with tenant_session(context.engine, caller.org_id) as session:
        used = token_usage.report(
            session, moment_of(span.began), moment_of(span.until), bucket_width, _columns(groups), only
        )
    by_bucket = groupby(used, lambda row: int(row.began.timestamp()))
    return span.answer({start: [_result(row) for row in rows] for start, rows in by_bucket})


def _columns(groups: Sequence[Group]) -> list[str]:
    columns: dict[str, None] = {}
    for group in groups:
        columns |= dict.fromkeys(("base_model", "experts") if group == "model" else (group,))
    return list(columns)


def _result(row: Used) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: public_id(kind, row.group[name]) if name in row.group else None for name, kind in IDS.items()
    }
    base, experts = row.group.get("base_model"), row.group.get("experts")
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": row.tokens.prompt,
        "input_cached_tokens": row.tokens.cached,
        "output_tokens": row.tokens.completion,
        "num_model_requests": row.tokens.requests,
        **told,
        "model": experts or base,
        "base_model": base,
    }
