"""The engine, and sessions bound to one tenant or to the system.

Row-level security is the second fence: the setting ``zhub.org_id`` is local to the transaction, so a pooled
connection never carries one tenant into the next. Without it every tenant-owned table looks empty.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, SessionTransaction

from zhub.errors import UnavailableError

# Statements that an engine keeps compiled, at 100 KB each; at half as many more the least used are dropped. With 500,
# SQLAlchemy's own number, an API process grows for days as rare combinations of filters come by.
COMPILED_STATEMENTS = 150
# A frozen process must not hold a row lock for long: a leader's would keep the next one out, an agent's the versions
# of an expert. No longer than a leader's lease, so that being frozen within a transaction costs no more than outside.
SERVER_SETTINGS = "-c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=10s"


def make_engine(url: str, *, pool_size: int = 10, pre_ping: bool = True) -> Engine:
    """An engine for a ``postgresql://`` URL (psycopg 3), whose waits all have an end.

    ``pre_ping`` asks each connection whether it still is one before it is used: a round trip, for who cannot try again.
    """
    return create_engine(
        url,
        pool_pre_ping=pre_ping,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=10,
        query_cache_size=COMPILED_STATEMENTS,
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "options": SERVER_SETTINGS,
            "application_name": "zhub",
        },
    )


@contextmanager
def tenant_session(engine: Engine, org_id: uuid.UUID) -> Iterator[Session]:
    """One transaction that sees one organisation's rows; commits at the end, rolls back on any error."""
    with _transaction(engine, {"zhub.org_id": str(org_id)}) as session:
        yield session


@contextmanager
def key_session(engine: Engine, prefix: str) -> Iterator[Session]:
    """One transaction that sees the single API key with this prefix, and nothing else that a tenant owns."""
    with _transaction(engine, {"zhub.key_prefix": prefix}) as session:
        yield session


@contextmanager
def invitation_session(engine: Engine, token_hash: str) -> Iterator[Session]:
    """One transaction that sees the single invitation with this hash, and nothing else that a tenant owns."""
    with _transaction(engine, {"zhub.invitation": token_hash}) as session:
        yield session


@contextmanager
def identity_session(engine: Engine, issuer: str, subject: str, email: str | None) -> Iterator[Session]:
    """One transaction that sees, in every organisation, the users with this identity and the invitations of ``email``.

    Only for an identity that its issuer has proved, and an address that it has verified.
    """
    with _transaction(engine, {"zhub.issuer": issuer, "zhub.subject": subject, "zhub.email": email or ""}) as session:
        yield session


@contextmanager
def operator_session(engine: Engine, org_id: uuid.UUID | None = None) -> Iterator[Session]:
    """One transaction of an operator: sees every organisation's row, and of one of them what it owns.

    It alone makes and suspends organisations.
    """
    with _transaction(engine, {"zhub.operator": "on", "zhub.org_id": "" if org_id is None else str(org_id)}) as session:
        yield session


@contextmanager
def system_session(engine: Engine) -> Iterator[Session]:
    """One transaction of the scheduler or the agent; sees every tenant only if the login is in ``zhub_system``."""
    with _transaction(engine, {}) as session:
        yield session


@contextmanager
def statement_session(engine: Engine) -> Iterator[Session]:
    """One statement of the scheduler or the agent, committed by itself: a third of a transaction's round trips."""
    with _transaction(engine.execution_options(isolation_level="AUTOCOMMIT"), {}) as session:
        yield session


@contextmanager
def as_guest(session: Session, project_id: uuid.UUID) -> Iterator[None]:
    """Within it, the transaction has a guest's rights in place of its tenant's: it reads what other organisations share
    with the tenant, or with this project of it, and nothing of its own; and writes nothing.

    The role is taken for the transaction only, so a pooled connection never carries it on.
    """
    session.flush()
    session.execute(text("SELECT set_config('zhub.project_id', :project, true)"), {"project": str(project_id)})
    with _role(session, "zhub_guest"):
        yield


@contextmanager
def as_search(session: Session) -> Iterator[None]:
    """Within it, the transaction reads what the catalogue is searched by, of every tenant, and nothing else.

    For ``zhub.registry.search`` alone, whose statements say whose rows they are about: row-level security does not.
    """
    with _role(session, "zhub_search"):
        yield


@contextmanager
def _role(session: Session, role: str) -> Iterator[None]:
    session.execute(text("SELECT set_config('role', :role, true)"), {"role": role})
    try:
        yield
    except DBAPIError:
        raise  # the transaction has failed, and its role ends with it
    except BaseException:
        session.execute(text(_NO_ROLE))
        raise
    session.execute(text(_NO_ROLE))


_NO_ROLE = "SELECT set_config('role', 'none', true)"


def now(session: Session) -> datetime:
    """When the session's transaction began, by the database's clock, which is everybody's."""
    began: datetime = session.scalars(select(func.now())).one()
    return began


@contextmanager
def _transaction(engine: Engine, settings: dict[str, str]) -> Iterator[Session]:
    try:
        with Session(engine, expire_on_commit=False, info=settings) as session, session.begin():
            yield session
    except OperationalError as exc:
        raise UnavailableError(f"the database does not answer: {exc.orig}") from exc
    except DBAPIError as exc:
        if exc.connection_invalidated:
            raise UnavailableError(f"the connection to the database broke: {exc.orig}") from exc
        raise


@event.listens_for(Session, "after_begin")
def _bind_tenant(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    # On the connection, not the session: Session.execute would first flush what is pending.
    for name, value in session.info.items():
        connection.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})
