"""What may be done, by scopes, and the least role that has each: the one table of rights.

A key has scopes; a person or a service account has a role. What a key may do is what both allow. A new right is a new
line here, and ``needs("…")`` at its routes.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Role(IntEnum):
    """What somebody is in an organisation. Each has the rights of those below it.

    In a project ADMIN, DEVELOPER and VIEWER are given. A role in the organisation holds in all its projects, OWNER as
    ADMIN; a MEMBER has in each project what was given there, and nothing else.
    """

    MEMBER = 1
    VIEWER = 2
    DEVELOPER = 3
    ADMIN = 4
    OWNER = 5

    @property
    def word(self) -> str:
        return self.name.lower()

    @classmethod
    def of(cls, word: str) -> "Role":
        return cls[word.upper()]


class Area(StrEnum):
    """Where a scope holds."""

    PROJECT = "project"
    ORGANIZATION = "organization"
    PLATFORM = "platform"
    """Above all organisations. No role has it: it takes an operator's key."""


@dataclass(frozen=True)
class Scope:
    """A right: ``least`` is the lowest role that has it."""

    name: str
    area: Area
    least: Role | None
    meaning: str


TABLE = (
    Scope("files:read", Area.PROJECT, Role.VIEWER, "read files, feedback, stored completions and usage"),
    Scope("files:write", Area.PROJECT, Role.DEVELOPER, "upload and delete files, feedback and stored completions"),
    Scope("jobs:read", Area.PROJECT, Role.VIEWER, "read jobs, evaluations, promotions and schedules"),
    Scope("jobs:write", Area.PROJECT, Role.DEVELOPER, "train, evaluate and schedule"),
    Scope("models:read", Area.PROJECT, Role.VIEWER, "read experts, releases and base models"),
    Scope("models:write", Area.PROJECT, Role.DEVELOPER, "promote, release, describe and delete experts"),
    Scope("chat", Area.PROJECT, Role.DEVELOPER, "ask models, and rate answers"),
    Scope("base_models:write", Area.PROJECT, Role.DEVELOPER, "add base models of one's own organisation"),
    Scope("webhooks:read", Area.PROJECT, Role.VIEWER, "read webhook endpoints and deliveries"),
    Scope("webhooks:write", Area.PROJECT, Role.DEVELOPER, "change webhook endpoints"),
    Scope("project:write", Area.PROJECT, Role.ADMIN, "say what the project keeps of its users' requests"),
    Scope("grants:write", Area.PROJECT, Role.ADMIN, "share the project's experts with others, and ask for theirs"),
    Scope("members:read", Area.PROJECT, Role.VIEWER, "read who is in the project"),
    Scope("members:write", Area.PROJECT, Role.ADMIN, "give and take roles in the project"),
    Scope("keys:own", Area.PROJECT, Role.VIEWER, "make, rotate and revoke keys of one's own"),
    Scope("keys:read", Area.PROJECT, Role.DEVELOPER, "read the project's keys and service accounts, without secrets"),
    Scope("keys:write", Area.PROJECT, Role.ADMIN, "change everybody's keys and the project's service accounts"),
    Scope("organization:read", Area.ORGANIZATION, Role.VIEWER, "read the projects, members and invitations"),
    Scope("organization:write", Area.ORGANIZATION, Role.ADMIN, "change projects, members, invitations, admin keys"),
    Scope("audit:read", Area.ORGANIZATION, Role.ADMIN, "read and export the audit log"),
    Scope("platform_base_models:write", Area.PLATFORM, None, "add base models for every organisation"),
    Scope("platform_organizations:write", Area.PLATFORM, None, "make and suspend organisations"),
)
BY_NAME = {scope.name: scope for scope in TABLE}
SCOPES = tuple(BY_NAME)


def _of(*areas: Area) -> tuple[str, ...]:
    return tuple(scope.name for scope in TABLE if scope.area in areas)


PROJECT_SCOPES = _of(Area.PROJECT)
ORGANIZATION_SCOPES = _of(Area.ORGANIZATION)
TENANT_SCOPES = (*PROJECT_SCOPES, *ORGANIZATION_SCOPES)
"""What a tenant's key may do at most."""
OPERATOR_SCOPE = "platform_base_models:write"
MANAGING = frozenset({"project:write", "members:read", "members:write", "keys:own", "keys:read", "keys:write"})
"""What an organisation's key with ``organization:write`` may do in every project of it."""


def scopes_of(role: Role | None, project_role: Role | None) -> frozenset[str]:
    """What a role in an organisation and one in a project of it come to there; None: no role."""
    in_project = max(role or 0, project_role or 0)
    least = {Area.PROJECT: in_project, Area.ORGANIZATION: role or 0, Area.PLATFORM: 0}
    return frozenset(scope.name for scope in TABLE if scope.least is not None and scope.least <= least[scope.area])
