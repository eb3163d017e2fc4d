"""Service accounts: members of a project that are programs. Each has a role in it, and keys."""

import uuid

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from zhub.database.pages import Page, read_page
from zhub.errors import NotFoundError
from zhub.ids import public_id
from zhub.models import Project, User
from zhub.tenancy import audit, members
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import Role


def create(session: Session, caller: Caller, project: Project, name: str, role: Role) -> User:
    account = User(
        org_id=project.org_id, project_id=project.id, kind="service_account", name=name, role=Role.MEMBER.word
    )
    session.add(account)
    session.flush()
    _record(session, caller, account, "service_account.created", after={"name": name})
    members.give_project_role(session, caller, project, account, role)
    session.refresh(account)
    return account


def list_accounts(session: Session, project_id: uuid.UUID, page: Page) -> tuple[list[User], bool]:
    rows = select(User).where(User.project_id == project_id, User.removed_at.is_(None))
    return read_page(session, rows, User.id, page)


def get_account(session: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> User:
    """Raises NotFoundError: the project has no such account, or it was deleted."""
    account = session.get(User, account_id)
    if account is None or account.project_id != project_id or account.removed_at is not None:
        raise NotFoundError("service account", public_id("service account", account_id))
    return account


def rename(session: Session, caller: Caller, account: User, name: str) -> None:
    before, account.name = account.name, name
    _record(session, caller, account, "service_account.updated", before={"name": before}, after={"name": name})


def delete(session: Session, caller: Caller, account: User) -> None:
    """From now on its keys are refused."""
    account.removed_at = func.now()
    _record(session, caller, account, "service_account.deleted", before={"name": account.name})


def _record(
    session: Session,
    caller: Caller,
    account: User,
    action: str,
    *,
    before: dict[str, str] | None = None,
    after: dict[str, str] | None = None,
) -> None:
    target = public_id("service account", account.id)
    actor = audit.actor_of(caller)
    audit.add(session, account.org_id, actor, action, target, project_id=account.project_id, before=before, after=after)
