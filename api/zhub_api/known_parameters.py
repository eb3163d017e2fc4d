"""Parameters of a request that its route does not have are refused by their names, never ignored."""

from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute

from zhub.errors import InvalidRequestError
from zhub.suggestions import did_you_mean
from zhub_api.context import CallerDep

# Parameters that are given key by key. Of others, `name[]` would be ignored: clients send lists in that form.
WITH_KEYS = ("metadata",)


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise InvalidRequestError for the first name that is not known; ``metadata[key]`` counts as ``metadata``."""
    known = sorted(known)
    for name in given:
        if name in known:
            continue
        plain, bracket, _ = name.partition("[")
        if plain not in known or (bracket and plain not in WITH_KEYS):
            has = f"It has: {', '.join(known)}." if known else "It has none."
            message = f"'{name}' is not a parameter of this request.{did_you_mean(name, known)} {has}"
            raise InvalidRequestError(message, param=name, code="unknown_parameter")


async def check_query(request: Request, _caller: CallerDep) -> None:
    """Refuse query parameters that the route does not declare, once the key is known."""
    check_keyless_query(request)


def check_keyless_query(request: Request) -> None:
    """Refuse query parameters that the route does not declare, of a request that needs no key."""
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    declared = [field for field in get_flat_params(route.dependant) if isinstance(field.field_info, params.Query)]
    refuse_unknown(request.query_params, [field.alias for field in declared])


async def check_form(request: Request, _caller: CallerDep) -> None:
    """Refuse fields of a form that the route does not declare. The form has been read: asking for it again is free."""
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    refuse_unknown(await request.form(), [field.alias for field in route.dependant.body_params])


KnownQuery = Depends(check_query)
KnownKeylessQuery = Depends(check_keyless_query)
KnownForm = Annotated[None, Depends(check_form)]
