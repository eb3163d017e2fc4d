"""The members of an organisation and of its projects, and the roles that they are given and lose.

Nobody gives or takes a role above their own, and an organisation that has an owner keeps one.
"""

import uuid
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.database.pages import Page, read_page
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, RoleTooLowError
from zhub.ids import new_id, public_id
from zhub.models import Project, ProjectMember, User
from zhub.states import PROJECT_ROLES, ROLES
from zhub.suggestions import did_you_mean
from zhub.tenancy import audit
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import Role

# As the dialect's clients call them.
ROLE_SYNONYMS = {"reader": "member"}
PROJECT_ROLE_SYNONYMS = {"owner": "admin", "member": "developer"}


def read_role(word: str) -> Role:
    """A role in an organisation. Raises InvalidRequestError."""
    return _read(word, ROLES, ROLE_SYNONYMS)


def read_project_role(word: str) -> Role:
    """A role in a project. Raises InvalidRequestError."""
    return _read(word, PROJECT_ROLES, PROJECT_ROLE_SYNONYMS)


def check_rank(caller: Caller, *roles: Role) -> None:
    """Raise RoleTooLowError if one of the roles is above the caller's own."""
    own = caller.rank or Role.MEMBER
    for role in roles:
        if role > own:
            raise RoleTooLowError(own.word, role.word)


def list_users(session: Session, page: Page, *, emails: Sequence[str] = ()) -> tuple[list[User], bool]:
    """The people of the organisation."""
    rows = select(User).where(User.kind == "person", User.removed_at.is_(None))
    if emails:
        rows = rows.where(User.email.in_([email.lower() for email in emails]))
    return read_page(session, rows, User.id, page)


def get_user(session: Session, user_id: uuid.UUID) -> User:
    """Raises NotFoundError: no person of the organisation has this id, or they have left."""
    user = session.get(User, user_id)
    if user is None or user.kind != "person" or user.removed_at is not None:
        raise NotFoundError("user", public_id("user", user_id))
    return user


def set_role(session: Session, caller: Caller, user: User, role: Role) -> None:
    """Give a person another role in the organisation.

    Raises:
        RoleTooLowError: the role before or the new one is above the caller's.
        ConflictError: the organisation would have no owner.
    """
    before = Role.of(user.role)
    check_rank(caller, before, role)
    if before == Role.OWNER and role != Role.OWNER:
        _keep_an_owner(session, user)
    user.role = role.word
    changes = {"before": {"role": before.word}, "after": {"role": role.word}}
    audit.record(session, caller, "user.updated", public_id("user", user.id), **changes)


def remove_user(session: Session, caller: Caller, user: User) -> None:
    """Let a person leave the organisation: from now on their keys are refused.

    Raises:
        RoleTooLowError: their role is above the caller's.
        ConflictError: the organisation would have no owner.
    """
    check_rank(caller, Role.of(user.role))
    if user.role == Role.OWNER.word:
        _keep_an_owner(session, user)
    user.removed_at = func.now()
    before = {"email": user.email, "role": user.role}
    audit.record(session, caller, "user.deleted", public_id("user", user.id), before=before)


def list_members(session: Session, project_id: uuid.UUID, page: Page) -> tuple[list[tuple[User, ProjectMember]], bool]:
    """The people who were given a role in the project."""
    rows = (
        select(User)
        .join(ProjectMember, ProjectMember.user_id == User.id)
        .where(ProjectMember.project_id == project_id, ProjectMember.removed_at.is_(None))
        .where(User.kind == "person", User.removed_at.is_(None))
    )
    users, has_more = read_page(session, rows, User.id, page)
    return [(user, get_member(session, project_id, user)) for user in users], has_more


def get_member(session: Session, project_id: uuid.UUID, user: User) -> ProjectMember:
    """Raises NotFoundError: they were given no role in the project."""
    member = session.scalar(
        select(ProjectMember).where(
            ProjectMember.project_id == project_id,
            ProjectMember.user_id == user.id,
            ProjectMember.removed_at.is_(None),
        )
    )
    if member is None:
        raise NotFoundError("user", public_id("user", user.id), "They were given no role in this project.")
    return member


def find_person(session: Session, *, user_id: uuid.UUID | None, email: str | None) -> User:
    """A person of the organisation, by id or address.

    Raises:
        InvalidRequestError: neither was given.
        NotFoundError: nobody in the organisation is that.
    """
    if user_id is not None:
        return get_user(session, user_id)
    if email is None:
        raise InvalidRequestError("Say who it is: 'user_id' or 'email'.", param="user_id")
    user = session.scalar(select(User).where(User.email == email.lower(), User.removed_at.is_(None)))
    if user is None:
        raise NotFoundError("user", email, "Invite them first: POST /v1/organization/invites.")
    return user


def give_project_role(session: Session, caller: Caller, project: Project, user: User, role: Role) -> ProjectMember:
    """Give somebody of the organisation a role in a project, in place of what they had there."""
    before = session.scalar(
        select(ProjectMember.role).where(
            ProjectMember.project_id == project.id,
            ProjectMember.user_id == user.id,
            ProjectMember.removed_at.is_(None),
        )
    )
    values = {"org_id": project.org_id, "project_id": project.id, "user_id": user.id, "role": role.word}
    statement = insert(ProjectMember).values(id=new_id(), **values)
    member = session.scalars(
        statement.on_conflict_do_update(
            index_elements=["org_id", "project_id", "user_id"], set_={"role": role.word, "removed_at": None}
        ).returning(ProjectMember),
        execution_options={"populate_existing": True},
    ).one()
    _record(session, caller, project, user, before, role.word)
    return member


def take_project_role(session: Session, caller: Caller, project: Project, user: User) -> None:
    """Take back what somebody was given in a project. Raises NotFoundError."""
    member = get_member(session, project.id, user)
    member.removed_at = func.now()
    _record(session, caller, project, user, member.role, None)


def _keep_an_owner(session: Session, leaving: User) -> None:
    # Locked in one order, so that of two owners who take each other's role at once the second sees what the first did.
    owners = session.scalars(
        select(User.id)
        .where(User.role == Role.OWNER.word, User.removed_at.is_(None))
        .order_by(User.id)
        .with_for_update()
    ).all()
    if set(owners) <= {leaving.id}:
        raise ConflictError(
            f"{leaving.email} is the last owner of the organisation, which must keep one. Make somebody else "
            "owner first."
        )


def _record(
    session: Session, caller: Caller, project: Project, user: User, before: str | None, after: str | None
) -> None:
    action = "role.assignment.deleted" if after is None else "role.assignment.created"
    audit.add(
        session,
        project.org_id,
        audit.actor_of(caller),
        action,
        public_id("user" if user.kind == "person" else "service account", user.id),
        project_id=project.id,
        before=None if before is None else {"role": before},
        after=None if after is None else {"role": after},
    )


def _read(word: str, known: Sequence[str], synonyms: dict[str, str]) -> Role:
    role = synonyms.get(word, word)
    if role not in known:
        raise InvalidRequestError(
            f"There is no role '{word}' here.{did_you_mean(word, known)} Known: {', '.join(known)}.", param="role"
        )
    return Role.of(role)
