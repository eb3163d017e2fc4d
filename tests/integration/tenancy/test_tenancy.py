"""Tenancy: what one organisation owns, no other can see, change or point at; and API keys prove who is asking."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from zhub.database.sessions import key_session, make_engine, system_session, tenant_session
from zhub.embedded.postgres import Urls
from zhub.errors import AuthenticationError, InvalidRequestError, PermissionDeniedError
from zhub.models import (
    TENANT_OWNED,
    Alias,
    AliasMove,
    ApiKey,
    Attempt,
    Base,
    BaseModel,
    Checkpoint,
    Dataset,
    DatasetVersion,
    Evaluation,
    Expert,
    ExpertVersion,
    Feedback,
    Job,
    JobDependency,
    JobEvent,
    MonthUsage,
    Promotion,
    QueuePlace,
    Quota,
    Schedule,
    ScheduleTick,
    Usage,
    WebhookDelivery,
    WebhookEndpoint,
)
from zhub.tenancy import keys
from zhub.tenancy.bootstrap import ensure_project
from zhub.tenancy.keys import SCOPES, Caller
from zhub.tenancy.names import check_name

FENCED = (*TENANT_OWNED, "organizations")
REFERENCES = sorted(
    (table.name, constraint.column_keys[1], constraint.referred_table.name)
    for table in Base.metadata.sorted_tables
    for constraint in table.foreign_key_constraints
    if constraint.column_keys[0] == "org_id" and len(constraint.column_keys) == 2
)


@dataclass(frozen=True)
class Filled:
    """A database with the rows of two tenants, which no test changes: what a test writes is refused or rolled back."""

    urls: Urls
    owner: Engine
    api: Engine
    system: Engine
    ours: Caller
    theirs: Caller
    spare: dict[tuple[uuid.UUID, str], uuid.UUID]
    """By organisation and table: one more row that nothing points at yet."""


@pytest.fixture(scope="module")
def fill(make_database: Callable[..., Urls]) -> Iterator[Callable[[], Filled]]:
    opened: list[Engine] = []

    def make() -> Filled:
        urls = make_database()
        owner, api, system = (make_engine(url, pool_size=2) for url in (urls.owner, urls.api, urls.system))
        opened.extend((owner, api, system))
        with system_session(system) as session:
            ours, theirs = _caller(session, "acme"), _caller(session, "globex")
            spare = _fill(session, ours) | _fill(session, theirs)
        return Filled(urls, owner, api, system, ours, theirs, spare)

    yield make
    for engine in opened:
        engine.dispose()


@pytest.fixture(scope="module")
def filled(fill: Callable[[], Filled]) -> Filled:
    return fill()


@pytest.fixture(scope="module")
def all_granted(fill: Callable[[], Filled]) -> Filled:
    """The same, where the API's role may do everything: only row-level security is left between the tenants."""
    made = fill()
    with made.owner.begin() as connection:
        connection.execute(text("GRANT ALL ON ALL TABLES IN SCHEMA public TO zhub_app"))
    return made


def test_every_table_with_a_tenant_is_known_as_tenant_owned(filled: Filled) -> None:
    with filled.owner.connect() as connection:
        found = connection.scalars(
            text(
                "SELECT attrelid::regclass::text FROM pg_attribute JOIN pg_class c ON c.oid = attrelid "
                "WHERE attname = 'org_id' AND relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
        )
        assert sorted(found) == sorted(TENANT_OWNED)


@pytest.mark.parametrize("table", FENCED)
def test_row_level_security_holds_for_the_owner_too(filled: Filled, table: str) -> None:
    with filled.owner.connect() as connection:
        enabled_and_forced = connection.execute(
            text("SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = cast(:table AS regclass)"),
            {"table": table},
        ).one()
    assert tuple(enabled_and_forced) == (True, True)


@pytest.mark.parametrize("table", FENCED)
def test_only_the_two_group_roles_have_policies_and_the_apis_names_the_tenant(filled: Filled, table: str) -> None:
    with filled.owner.connect() as connection:
        policies = connection.execute(
            text("SELECT policyname, roles::text, cmd, qual, with_check FROM pg_policies WHERE tablename = :table"),
            {"table": table},
        ).all()
    found = {policy.policyname: policy for policy in policies}
    expected = {"tenant": "{zhub_app}", "system": "{zhub_system}"}
    if table == "api_keys":
        expected["presented_key"] = "{zhub_app}"
    assert {name: policy.roles for name, policy in found.items()} == expected
    tenant = found["tenant"]
    assert tenant.cmd == "ALL" and tenant.qual == tenant.with_check and "zhub.org_id" in tenant.qual


@pytest.mark.parametrize("table", FENCED)
def test_without_a_tenant_nothing_is_there(filled: Filled, table: str) -> None:
    with system_session(filled.api) as session:
        assert _count(session, table) == 0


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_sees_its_own_rows_and_no_others(filled: Filled, table: str) -> None:
    with tenant_session(filled.api, filled.ours.org_id) as session:
        owners = set(session.scalars(text(f"SELECT {_owner(table)} FROM {table}")))
    assert owners == {filled.ours.org_id}


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_cannot_insert_for_another(all_granted: Filled, table: str) -> None:
    row = _row(all_granted.system, table, all_granted.theirs.org_id) | {"id": str(uuid.uuid4())}
    with (
        pytest.raises(ProgrammingError, match="violates row-level security policy"),
        tenant_session(all_granted.api, all_granted.ours.org_id) as session,
    ):
        _insert(session, table, row)


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_cannot_hand_its_rows_to_another(all_granted: Filled, table: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="violates row-level security policy"),
        tenant_session(all_granted.api, all_granted.ours.org_id) as session,
    ):
        session.execute(text(f"UPDATE {table} SET {_owner(table)} = :them"), {"them": all_granted.theirs.org_id})


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_cannot_change_anothers_rows(all_granted: Filled, table: str) -> None:
    statement = text(f"UPDATE {table} SET created_at = now() WHERE {_owner(table)} = :them RETURNING id")
    with tenant_session(all_granted.api, all_granted.ours.org_id) as session:
        assert session.execute(statement, {"them": all_granted.theirs.org_id}).all() == []


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_cannot_delete_anothers_rows(all_granted: Filled, table: str) -> None:
    statement = text(f"DELETE FROM {table} WHERE {_owner(table)} = :them RETURNING id")
    with tenant_session(all_granted.api, all_granted.ours.org_id) as session:
        assert session.execute(statement, {"them": all_granted.theirs.org_id}).all() == []


@pytest.mark.parametrize("table", FENCED)
def test_an_unknown_setting_of_the_tenant_shows_nothing(filled: Filled, table: str) -> None:
    with tenant_session(filled.api, uuid.uuid4()) as session:
        assert _count(session, table) == 0


def test_the_system_sees_every_tenant(filled: Filled) -> None:
    with system_session(filled.system) as session:
        assert set(session.scalars(select(Job.org_id))) == {filled.ours.org_id, filled.theirs.org_id}


@pytest.mark.parametrize("login", ["api", "system"])
def test_no_login_is_exempt_from_row_level_security(
    filled: Filled, open_engine: Callable[[str], Engine], login: str
) -> None:
    with open_engine(getattr(filled.urls, login)).connect() as connection:
        role = connection.execute(
            text("SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = current_user")
        ).one()
        owned = connection.scalar(
            text(
                "SELECT count(*) FROM pg_class "
                "WHERE pg_has_role(relowner, 'USAGE') AND relnamespace = 'public'::regnamespace"
            )
        )
    assert (*role, owned) == (False, False, False, 0)


def test_the_api_is_no_member_of_the_system_role(filled: Filled) -> None:
    with filled.api.connect() as connection:
        assert connection.scalar(text("SELECT pg_has_role('zhub_system', 'MEMBER')")) is False


@pytest.mark.parametrize("column", ["state", "fence", "lease_until", "spec", "org_id", "finished_at"])
def test_the_api_cannot_write_what_the_lease_holder_writes(filled: Filled, column: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        tenant_session(filled.api, filled.ours.org_id) as session,
    ):
        session.execute(text(f"UPDATE jobs SET {column} = {column}"))


@pytest.mark.parametrize("table", sorted(Base.metadata.tables))
def test_the_api_deletes_no_row_of_any_table(filled: Filled, table: str) -> None:
    with filled.api.connect() as connection:
        assert connection.scalar(text("SELECT has_table_privilege(:table, 'DELETE')"), {"table": table}) is False


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_the_tenant_does_not_leak_to_the_next_borrower_of_the_connection(
    filled: Filled, open_engine: Callable[..., Engine], how: str
) -> None:
    engine = open_engine(filled.urls.api, pool_size=1)
    first = second = None
    try:
        with tenant_session(engine, filled.ours.org_id) as session:
            first = session.scalar(text("SELECT pg_backend_pid()"))
            if how == "rollback":
                raise RuntimeError
    except RuntimeError:
        pass
    with system_session(engine) as session:
        second = session.scalar(text("SELECT pg_backend_pid()"))
        seen = _count(session, "projects")
    assert (second, seen) == (first, 0)


def test_a_tenants_session_stays_bound_after_a_savepoint_is_rolled_back(filled: Filled) -> None:
    with tenant_session(filled.api, filled.ours.org_id) as session:
        with pytest.raises(ProgrammingError), session.begin_nested():
            session.execute(text("SELECT * FROM no_such_table"))
        assert _count(session, "projects") == 1


def test_every_reference_between_tenants_tables_carries_the_tenant(filled: Filled) -> None:
    with filled.owner.connect() as connection:
        bare = connection.execute(
            text(
                """
                SELECT conrelid::regclass::text, conname FROM pg_constraint c
                 WHERE contype = 'f' AND confrelid::regclass::text = ANY(:tenant_owned)
                   AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY(conkey)
                                      AND attname = 'org_id')
                """
            ),
            {"tenant_owned": list(TENANT_OWNED)},
        ).all()
    assert bare == []


@pytest.mark.parametrize(("table", "column", "target"), REFERENCES)
def test_a_row_cannot_point_at_another_tenants_row(filled: Filled, table: str, column: str, target: str) -> None:
    ours = filled.ours.org_id
    # Nothing but the reference may be at fault: what is unique is new, and our own spare row is accepted.
    fresh = {"id": str(uuid.uuid4()), "prefix": uuid.uuid4().hex, "name": "new", "version": 99, "position": 99}
    fresh |= {"job_id": str(filled.spare[ours, "jobs"]), "suite_digest": "new", "key": "new"}
    fresh |= {"event_id": str(uuid.uuid4())}
    row = _row(filled.system, table, ours)
    row |= {name: value for name, value in fresh.items() if name in row}
    with system_session(filled.system) as session:
        _insert(session, table, row | {column: str(filled.spare[ours, target])})
        session.rollback()
    with (
        pytest.raises(IntegrityError, match="violates foreign key constraint"),
        system_session(filled.system) as session,
    ):
        _insert(session, table, row | {column: str(filled.spare[filled.theirs.org_id, target])})


def test_a_key_proves_who_is_asking(api_engine: Engine, make_key: Callable[..., str], secret_key: str) -> None:
    caller = keys.authenticate(api_engine, make_key("acme", "maths", scopes=("chat",)), secret_key=secret_key)
    assert (caller.project, caller.scopes) == ("maths", frozenset({"chat"}))


def test_a_key_is_stored_nowhere(make_key: Callable[..., str], system_engine: Engine) -> None:
    secret = make_key().split("_", 2)[2]  # it may have a _ of its own
    with system_engine.connect() as connection:
        rows = connection.scalars(text("SELECT to_jsonb(api_keys)::text FROM api_keys")).all()
    assert len(rows) == 1 and secret not in rows[0]


def test_the_stored_hash_is_keyed_with_the_secret(
    make_key: Callable[..., str], system_engine: Engine, secret_key: str
) -> None:
    key = make_key()
    with system_session(system_engine) as session:
        stored = session.scalars(select(ApiKey.hash)).one()
    # HMAC as RFC 2104 defines it: H((K ^ opad) || H((K ^ ipad) || text)), with K padded to a block of 64 bytes.
    block = secret_key.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + key.encode()).digest()
    assert stored == hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()


def test_a_key_is_worth_nothing_under_another_secret(api_engine: Engine, make_key: Callable[..., str]) -> None:
    with pytest.raises(AuthenticationError):
        keys.authenticate(api_engine, make_key(), secret_key="f" * 64)


def test_one_wrong_character_is_a_wrong_key(api_engine: Engine, make_key: Callable[..., str], secret_key: str) -> None:
    key = make_key()
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    with pytest.raises(AuthenticationError, match="is not known"):
        keys.authenticate(api_engine, wrong, secret_key=secret_key)


def test_a_revoked_key_is_refused_in_the_words_for_an_unknown_one(
    api_engine: Engine, make_key: Callable[..., str], secret_key: str
) -> None:
    key = make_key(revoked_at=datetime.now(UTC))
    unknown = f"zhub_{'0' * 12}_{'a' * 43}"
    messages = []
    for tried in (key, unknown):
        with pytest.raises(AuthenticationError) as refused:
            keys.authenticate(api_engine, tried, secret_key=secret_key)
        messages.append(str(refused.value).replace(tried[:17], "zhub_…"))
    assert messages[0] == messages[1]


def test_an_expired_key_is_refused_with_its_date(
    api_engine: Engine, make_key: Callable[..., str], secret_key: str
) -> None:
    key = make_key(expires_at=datetime(2024, 2, 29, 12, tzinfo=UTC))
    with pytest.raises(AuthenticationError, match="expired on 2024-02-29"):
        keys.authenticate(api_engine, key, secret_key=secret_key)


def test_a_key_that_expires_later_is_good(api_engine: Engine, make_key: Callable[..., str], secret_key: str) -> None:
    key = make_key(expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert keys.authenticate(api_engine, key, secret_key=secret_key).project == "main"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "zhub_",
        "sk-" + "a" * 48,
        f"zhub_{'0' * 11}_{'a' * 43}",
        f"zhub_{'0' * 12}_{'a' * 42}",
        f"zhub_{'0' * 12}_{'a' * 44}",
        f"zhub_{'A' * 12}_{'a' * 43}",
        f"zhub_{'0' * 12}_{'a' * 43}\n",
        f"zhub_{'0' * 12}_{'é' * 43}",
        f"zhub_{'0' * 12}_{'a' * 42}\0",
        f"zhub_{'٣' * 12}_{'a' * 43}",
    ],
)
def test_what_cannot_be_a_key_is_refused_by_its_looks(api_engine: Engine, key: str, secret_key: str) -> None:
    with pytest.raises(AuthenticationError, match="should look like"):
        keys.authenticate(api_engine, key, secret_key=secret_key)


def test_two_keys_are_never_alike(make_key: Callable[..., str]) -> None:
    assert len({make_key() for _ in range(20)}) == 20


def test_a_presented_key_shows_its_own_row_and_nothing_else(filled: Filled) -> None:
    with tenant_session(filled.api, filled.ours.org_id) as session:
        prefix = session.scalars(select(ApiKey.prefix).where(ApiKey.id == filled.ours.key_id)).one()
    with key_session(filled.api, prefix) as session:
        seen = {table: _count(session, table) for table in FENCED}
    assert seen == dict.fromkeys(FENCED, 0) | {"api_keys": 1}


def test_a_key_cannot_be_made_with_a_scope_that_does_not_exist(make_key: Callable[..., str]) -> None:
    with pytest.raises(InvalidRequestError, match="jobs:delete"):
        make_key(scopes=("chat", "jobs:delete"))


@pytest.mark.parametrize("scope", SCOPES)
def test_a_caller_may_do_what_its_scopes_say(make_caller: Callable[..., Caller], scope: str) -> None:
    caller = make_caller(scopes=(scope,))
    caller.require(scope)
    for other in set(SCOPES) - {scope}:
        with pytest.raises(PermissionDeniedError, match=other):
            caller.require(other)


def test_the_last_use_of_a_key_is_noted_at_most_once_a_minute(
    api_engine: Engine, system_engine: Engine, make_key: Callable[..., str], secret_key: str
) -> None:
    key = make_key()
    noted = []
    for _ in range(2):
        keys.authenticate(api_engine, key, secret_key=secret_key)
        with system_session(system_engine) as session:
            noted.append(session.scalars(select(ApiKey.last_used_at)).one())
    assert noted[0] is not None and noted[0] == noted[1]


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "a.b", "a@b", "é", "a" * 65, "a\n", "_a"])
def test_a_name_that_would_break_model_ids_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_name(name, "project")


@pytest.mark.parametrize("name", ["a", "0", "a-b_c", "a" * 64])
def test_a_good_name_is_returned(name: str) -> None:
    assert check_name(name, "project") == name


def _owner(table: str) -> str:
    return "id" if table == "organizations" else "org_id"


def _count(session: Session, table: str) -> int:
    return session.scalar(text(f"SELECT count(*) FROM {table}")) or 0


def _row(engine: Engine, table: str, org_id: uuid.UUID) -> dict[str, Any]:
    """The first row of a tenant in a table, as JSON has it."""
    with system_session(engine) as session:
        statement = text(f"SELECT to_jsonb(t) FROM {table} t WHERE {_owner(table)} = :org ORDER BY id LIMIT 1")
        row: dict[str, Any] = session.scalars(statement, {"org": org_id}).one()
        return row


def _insert(session: Session, table: str, row: dict[str, Any]) -> None:
    statement = text(f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, cast(:row AS jsonb))")
    session.execute(statement, {"row": json.dumps(row)})


def _caller(session: Session, organization: str) -> Caller:
    project = ensure_project(session, organization, "main")
    key, _secret = keys.create_api_key(session, project, "test", scopes=SCOPES, secret_key="0" * 64)
    return Caller(key.id, project.org_id, project.id, project.name, frozenset(SCOPES))


def _fill(session: Session, caller: Caller) -> dict[tuple[uuid.UUID, str], uuid.UUID]:
    """Make a row of the tenant in every table, and return the spare ones."""
    base = session.scalar(select(BaseModel).where(BaseModel.name == "tiny"))
    if base is None:
        base = BaseModel(name="tiny", source={})
        session.add(base)
    own: dict[str, Any] = {"org_id": caller.org_id}
    within = own | {"project_id": caller.project_id}
    datasets, experts = ([kind(name=name, **within) for name in ("summer", "spare")] for kind in (Dataset, Expert))
    jobs = [Job(kind="validate", spec={}, **within) for _ in range(2)]
    session.add_all([*datasets, *experts, *jobs])
    session.flush()
    described = {"filename": "f", "purpose": "fine-tune", "size_bytes": 1, "sha256": "0", "key": "k"}
    files = [DatasetVersion(dataset_id=dataset.id, version=1, **within, **described) for dataset in datasets]
    version = ExpertVersion(
        expert_id=experts[0].id,
        base_model_id=base.id,
        job_id=jobs[0].id,
        **{"version": 1, "fence": 1, "digest": "d", "manifest": {}, "key_prefix": "k", "size_bytes": 1},
        **own,
    )
    attempt = Attempt(job_id=jobs[0].id, fence=1, agent_id=uuid.uuid4(), **own)
    session.add_all([*files, version, attempt, JobEvent(job_id=jobs[0].id, message="m", **own)])
    another = Job(kind="train", spec={}, **within)
    session.add(another)
    session.flush()
    spare_version = ExpertVersion(
        expert_id=experts[1].id,
        base_model_id=base.id,
        job_id=another.id,
        **{"version": 1, "fence": 1, "digest": "d", "manifest": {}, "key_prefix": "k", "size_bytes": 1},
        **own,
    )
    checkpoint = Checkpoint(
        job_id=jobs[0].id,
        **{"fence": 1, "step": 1, "key_prefix": "k", "digest": "d", "size_bytes": 1, "z": {}, "metrics": {}},
        **own,
    )
    session.add_all([spare_version, checkpoint])
    session.flush()
    measured = {"base_model_id": base.id, "version_id": version.id, "suite_digest": "d", "suite": {}}
    session.add(Evaluation(job_id=jobs[0].id, **measured, **within))
    session.add(Feedback(version_id=version.id, messages=[], completion="c", score=1.0, **within))
    session.add(MonthUsage(month=date(2026, 1, 1), worker_seconds=1.0, **own))
    session.add_all([Quota(**own), Usage(cluster="default", worker_seconds=1.0, **own)])
    session.add(QueuePlace(job_id=jobs[0].id, reason="r", **own))
    session.add(JobDependency(job_id=jobs[0].id, needs_job_id=another.id, **own))
    alias, next_one = (Alias(expert_id=experts[0].id, name=n, version_id=version.id, **own) for n in ("prod", "next"))
    timed = {"timezone": "UTC", "on_new_data": True, "misfire": "skip", "overlap": "skip", "catch_up_s": 0}
    timed |= {
        "on_feedback": 1,
        "feedback_expert_id": experts[0].id,
        "max_backfill": 1,
        "jitter_s": 0,
        "max_failures": 1,
        "request": {},
    }
    weekly, daily = (Schedule(name=n, dataset_id=datasets[0].id, **timed, **within) for n in ("weekly", "daily"))
    session.add_all([alias, next_one, weekly, daily, Promotion(job_id=jobs[0].id, alias="prod", gate={}, **within)])
    session.flush()
    session.add(AliasMove(alias_id=alias.id, to_version_id=version.id, by="key", **own))
    session.add(ScheduleTick(schedule_id=weekly.id, key="k", outcome="fired", **own))
    endpoints = [WebhookEndpoint(name="n", url="https://example.com", event_types=[], **within) for _ in range(2)]
    session.add_all(endpoints)
    session.flush()
    about = {"event_id": uuid.uuid4(), "type": "t", "data": {}, "tries_left": 1}
    session.add(WebhookDelivery(endpoint_id=endpoints[0].id, **about, **own))
    session.flush()
    spare = {
        "datasets": datasets[1],
        "experts": experts[1],
        "jobs": jobs[1],
        "dataset_versions": files[1],
        "expert_versions": spare_version,
        "aliases": next_one,
        "schedules": daily,
        "webhook_endpoints": endpoints[1],
    }
    found = {table: row.id for table, row in spare.items()} | {"projects": caller.project_id}
    return {(caller.org_id, table): row_id for table, row_id in found.items()}
