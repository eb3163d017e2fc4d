"""What every route uses: settings, engine, store and wake-ups of this process, and the caller."""

import inspect
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from zhub.errors import AuthenticationError
from zhub.graders import processes
from zhub.process.config import Settings
from zhub.process.shares import Shares
from zhub.process.wakeup import Wakeup
from zhub.storage.object_store import ObjectStore
from zhub.tenancy.keys import NOWHERE, Caller, Origin, authenticate


@dataclass(frozen=True)
class Context:
    """The parts that this process was started with."""

    settings: Settings
    engine: Engine
    store: ObjectStore
    wakeup: Wakeup


# Dependencies that wait for nothing are coroutines: each other one takes a thread, and waits for its turn to run.
async def context_of(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


ContextDep = Annotated[Context, Depends(context_of)]


# How the interface's document tells of the key.
BEARER = HTTPBearer(description="An API key: `zhub_…`.", auto_error=False)


async def caller_of(
    request: Request,
    context: ContextDep,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)] = None,
) -> Caller:
    """The caller that the bearer token identifies; the database session for this ends before the route begins."""
    # Where the request has a body, it was asked for only once this was known.
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        caller = await run_in_threadpool(authenticated, context, authorization, request)
    request.state.org_id = caller.org_id
    return caller


def authenticated(context: Context, authorization: str | None, request: Request) -> Caller:
    """The caller that the header identifies. Raises AuthenticationError, AccessEndedError."""
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise AuthenticationError("No API key provided. Send it as 'Authorization: Bearer zhub_…'.")
    key, settings = key.strip(), context.settings
    if settings.is_operator_token(key):
        rights = frozenset({"platform_organizations:write"})
        return Caller(NOWHERE, NOWHERE, NOWHERE, "", rights, rights, origin=origin_of(request))
    former = [secret.get_secret_value() for secret in settings.former_secret_keys]
    caller = authenticate(
        context.engine, key, secret_key=settings.secret_key.get_secret_value(), former_secret_keys=former
    )
    return replace(caller, origin=origin_of(request))


def origin_of(request: Request) -> Origin:
    return Origin(request.client.host if request.client else None, request.headers.get("user-agent"))


async def caller_with_a_thread(
    request: Request, caller: Annotated[Caller, Depends(caller_of)]
) -> AsyncIterator[Caller]:
    """The caller, whose organisation leaves threads, and processes that grade, to the others.

    Raises:
        TooManyAtOnceError: it has as many of them as it may.
    """
    processes.owner.set(caller.org_id)
    if inspect.iscoroutinefunction(request.scope["endpoint"]):
        yield caller
        return
    threads: Shares = request.app.state.threads
    with threads.place(caller.org_id):
        yield caller


# The thread is given back before the answer is sent, however slowly a client reads it.
CallerDep = Annotated[Caller, Depends(caller_with_a_thread, scope="function")]
