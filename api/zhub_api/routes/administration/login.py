"""``/v1/login`` and ``/v1/logout``: people who prove by an OpenID provider who they are, and get a key for a while."""

import logging
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, StringConstraints

from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError, NotFoundError, ZhubError
from zhub.identity.provider import Provider
from zhub.ids import public_id
from zhub.models import ApiKey
from zhub.tenancy import audit, login, managed_keys
from zhub.tenancy.login import Place
from zhub_api.context import CallerDep, ContextDep, origin_of
from zhub_api.rights import needs
from zhub_api.routes.administration.objects import seconds, user_object

router = APIRouter(prefix="/v1")
keyless = APIRouter(prefix="/v1")

log = logging.getLogger("zhub.api")

MAX_TOKEN_CHARACTERS = 32 << 10


class LoginRequest(Schema):
    """An ID token of the provider's, and where to log in: needed where there are several."""

    model_config = ConfigDict(extra="forbid")
    id_token: Annotated[str, StringConstraints(max_length=MAX_TOKEN_CHARACTERS)]
    organization: str | None = None
    project: str | None = None


@keyless.get("/login")
def retrieve_provider(request: Request) -> dict[str, Any]:
    """By which OpenID provider people log in, and what zhub is called there. Asked without a key."""
    provider = _provider(request)
    return {"object": "login.provider", "issuer": provider.issuer, "client_id": provider.client_id}


@keyless.post("/login")
def log_in(context: ContextDep, http_request: Request, request: LoginRequest) -> dict[str, Any]:
    """Get a key for a while. Asked without one: the ID token shows who may. Only this response has its ``value``."""
    origin = origin_of(http_request)
    try:
        identity = _provider(http_request).verify(request.id_token)
        done = login.log_in(
            context.engine,
            identity,
            Place(request.organization, request.project),
            lasts=timedelta(hours=context.settings.login_lasts_h),
            secret_key=context.settings.secret_key.get_secret_value(),
            origin=origin,
        )
    except ZhubError as exc:
        # No organisation's audit log is told: whose it would be is not known.
        log.warning("a login from %s was refused: %s", origin.address, exc, extra={"action": "login_refused"})
        raise
    return {
        "object": "login",
        "organization": done.organization,
        "user": user_object(done.user),
        "api_key": {
            "id": public_id("API key", done.key.id),
            "object": "organization.project.api_key",
            "name": done.key.name,
            "project_id": None if done.key.project_id is None else public_id("project", done.key.project_id),
            "expires_at": seconds(done.key.expires_at),
            "value": done.value,
        },
    }


@router.post("/logout", dependencies=[needs()])
def log_out(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """Refuse the key of this request from now on. A key that is nobody's is not a login: it is revoked by its id."""
    if caller.user_id is None:
        raise InvalidRequestError("This key is nobody's: nobody logs out with it. Revoke it by its id instead.")
    with tenant_session(context.engine, caller.org_id) as session:
        managed_keys.revoke_key(session, caller, session.get_one(ApiKey, caller.key_id))
        audit.record(session, caller, "logout.succeeded", public_id("user", caller.user_id))
    return {"id": public_id("API key", caller.key_id), "object": "logout", "deleted": True}


def _provider(request: Request) -> Provider:
    provider = request.app.state.provider
    if provider is None:
        raise NotFoundError("OpenID provider", "ZHUB_OIDC_ISSUER", "The operator of this zhub has set none.")
    assert isinstance(provider, Provider)
    return provider
