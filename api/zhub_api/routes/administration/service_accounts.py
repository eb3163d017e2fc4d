"""``/v1/organization/projects/{project_id}/service_accounts``: members of a project that are programs, with keys."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError
from zhub.ids import parse_id, public_id
from zhub.models import Project, User
from zhub.tenancy import managed_keys, members, organizations, service_accounts
from zhub.tenancy.keys import Caller
from zhub.tenancy.managed_keys import NewKey
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.pages import PageLimit, page, wanted_page
from zhub_api.rights import needs_in_project
from zhub_api.routes.administration.objects import KeyName, Lasts, account_object, seconds, span

router = APIRouter(prefix="/v1/organization/projects/{project_id}/service_accounts")


class AccountRequest(Schema):
    """A new service account, with a key unless it is declined."""

    model_config = ConfigDict(extra="forbid")
    name: KeyName
    role: str = "developer"
    create_service_account_only: bool | None = None
    expires_in_seconds: Lasts = None


class AccountChange(Schema):
    model_config = ConfigDict(extra="forbid")
    name: KeyName | None = None
    role: str | None = None


class AccountKeyRequest(Schema):
    """A new key of the account."""

    model_config = ConfigDict(extra="forbid")
    name: KeyName = "key"
    scopes: Annotated[list[str] | None, Field(max_length=100)] = None
    expires_in_seconds: Lasts = None


@router.get("", dependencies=[needs_in_project("keys:read")])
def list_accounts(
    caller: CallerDep, context: ContextDep, project_id: str, after: str | None = None, limit: PageLimit = 20
) -> dict[str, Any]:
    """The project's service accounts, newest first."""
    place = wanted_page("service account", after, limit)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = service_accounts.list_accounts(session, parse_id("project", project_id), place)
        return page([account_object(session, account) for account in listed], has_more=has_more)


@router.post("", dependencies=[needs_in_project("keys:write")])
def create_account(caller: CallerDep, context: ContextDep, project_id: str, request: AccountRequest) -> dict[str, Any]:
    """Make a service account. Only this response has the ``value`` of its key."""
    if request.create_service_account_only and request.expires_in_seconds is not None:
        message = "'expires_in_seconds' is of the key, which 'create_service_account_only' declines."
        raise InvalidRequestError(message, param="expires_in_seconds")
    role = members.read_project_role(request.role)
    with tenant_session(context.engine, caller.org_id) as session:
        project = organizations.get_project(session, parse_id("project", project_id))
        account = service_accounts.create(session, caller, project, request.name, role)
        wanted = NewKey(request.name, None, span(request.expires_in_seconds))
        key = None
        if not request.create_service_account_only:
            key = _new_key(session, caller, context, project, account, wanted)
        return account_object(session, account) | {"api_key": key}


@router.get("/{account_id}", dependencies=[needs_in_project("keys:read")])
def retrieve_account(caller: CallerDep, context: ContextDep, project_id: str, account_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return account_object(session, _account(session, project_id, account_id))


@router.post("/{account_id}", dependencies=[needs_in_project("keys:write")])
def update_account(
    caller: CallerDep, context: ContextDep, project_id: str, account_id: str, request: AccountChange
) -> dict[str, Any]:
    """Rename an account, or give it another role. That holds for all its keys at once."""
    role = None if request.role is None else members.read_project_role(request.role)
    with tenant_session(context.engine, caller.org_id) as session:
        account = _account(session, project_id, account_id)
        if request.name is not None:
            service_accounts.rename(session, caller, account, request.name)
        if role is not None:
            project = organizations.get_project(session, parse_id("project", project_id))
            members.give_project_role(session, caller, project, account, role)
        return account_object(session, account)


@router.delete("/{account_id}", dependencies=[needs_in_project("keys:write")])
def delete_account(caller: CallerDep, context: ContextDep, project_id: str, account_id: str) -> dict[str, Any]:
    """Delete a service account. All its keys are refused at once."""
    with tenant_session(context.engine, caller.org_id) as session:
        service_accounts.delete(session, caller, _account(session, project_id, account_id))
    return {"id": account_id, "object": "organization.project.service_account.deleted", "deleted": True}


@router.post("/{account_id}/api_keys", dependencies=[needs_in_project("keys:write")])
def create_account_key(
    caller: CallerDep, context: ContextDep, project_id: str, account_id: str, request: AccountKeyRequest
) -> dict[str, Any]:
    """Make a key of the account. Only this response has its ``value``."""
    wanted = NewKey(request.name, request.scopes, span(request.expires_in_seconds))
    with tenant_session(context.engine, caller.org_id) as session:
        project = organizations.get_project(session, parse_id("project", project_id))
        account = _account(session, project_id, account_id)
        return _new_key(session, caller, context, project, account, wanted)


def _account(session: Session, project_id: str, account_id: str) -> User:
    return service_accounts.get_account(
        session, parse_id("project", project_id), parse_id("service account", account_id)
    )


def _new_key(
    session: Session, caller: Caller, context: Context, project: Project, account: User, wanted: NewKey
) -> dict[str, Any]:
    secret_key = context.settings.secret_key.get_secret_value()
    row, value = managed_keys.make_key(session, caller, project, wanted, owner=account, secret_key=secret_key)
    return {
        "id": public_id("API key", row.id),
        "object": "organization.project.service_account.api_key",
        "name": row.name,
        "scopes": row.scopes,
        "created_at": seconds(row.created_at),
        "expires_at": seconds(row.expires_at),
        "value": value,
    }
