"""What a route needs of its caller, declared at the route: ``@router.get(…, dependencies=[needs("files:read")])``.

A route says what it always needs; what depends on the body it asks of the caller itself. The declarations are what the
table of roles and actions, and the tests of it, are made of.
"""

from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request

from zhub.database.sessions import tenant_session
from zhub.errors import NotFoundError, PermissionDeniedError
from zhub.ids import parse_id
from zhub.models import Project
from zhub.tenancy.keys import scopes_in
from zhub_api.context import CallerDep, ContextDep


@dataclass(frozen=True)
class Needs:
    """Scopes that the caller must have: in its own project or, those of an organisation, in all of it."""

    scopes: tuple[str, ...]

    # A coroutine, because a thread for it would cost more than it does.
    async def __call__(self, caller: CallerDep) -> None:
        for scope in self.scopes:
            caller.require(scope)


@dataclass(frozen=True)
class NeedsInProject:
    """Scopes that the caller must have in the project that the path names by ``project_id``."""

    scopes: tuple[str, ...]

    def __call__(self, request: Request, caller: CallerDep, context: ContextDep) -> None:
        """Raises PermissionDeniedError, or NotFoundError where the caller has no role in the project."""
        for scope in self.scopes:
            if scope not in caller.granted and "organization:write" not in caller.granted:
                raise PermissionDeniedError(scope)
        name = request.path_params["project_id"]
        project_id = parse_id("project", name)
        with tenant_session(context.engine, caller.org_id) as session:
            rights = scopes_in(session, caller, project_id)
            if session.get(Project, project_id) is None or not rights:
                raise NotFoundError("project", name)
        for scope in self.scopes:
            if scope not in rights:
                message = f"Your role in this project does not have the right '{scope}'. Ask an admin for another role."
                raise PermissionDeniedError(scope, message=message)


def needs(*scopes: str) -> Any:
    """A route that needs these scopes; none: any key will do."""
    return Depends(Needs(scopes))


def needs_in_project(*scopes: str) -> Any:
    """A route about a project, which ``project_id`` in its path names, that needs these scopes there."""
    return Depends(NeedsInProject(scopes))
