"""Tenancy: what one organisation owns, no other can see, change or point at."""

import uuid
from collections.abc import Callable, Iterator

import pytest
from frozen import unfreeze
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from tenant_rows import FilledDatabase, count_rows, fill_tables, first_row, insert_row, make_tenant, tenant_column

from zhub.database.sessions import key_session, make_engine, system_session, tenant_session
from zhub.embedded.postgres import Urls
from zhub.errors import InvalidRequestError
from zhub.models import TENANT_OWNED, ApiKey, Base, Job
from zhub.tenancy.names import check_name

FENCED = (*TENANT_OWNED, "organizations")
# What the API sees before it knows a tenant, by a secret or a proof; and what an operator may do.
OTHERS = {
    "api_keys": ("presented_key",),
    "invitations": ("presented_token", "proved_email"),
    "users": ("proved_identity",),
    "organizations": ("operator_sees", "operator_makes", "operator_changes"),
}
SHOWN_TO_GUESTS = (
    "aliases", "card_revisions", "catalogue_entries", "expert_grants", "expert_versions", "experts", "organizations",
    "projects", "version_metrics",
)  # fmt: skip
REFERENCES = sorted(
    (table.name, constraint.column_keys[1], constraint.referred_table.name)
    for table in Base.metadata.sorted_tables
    for constraint in table.foreign_key_constraints
    if constraint.column_keys[0] == "org_id" and len(constraint.column_keys) == 2
)


@pytest.fixture(scope="module")
def fill(make_database: Callable[..., Urls]) -> Iterator[Callable[[], FilledDatabase]]:
    opened: list[Engine] = []

    def make() -> FilledDatabase:
        urls = make_database()
        owner, api, system = (make_engine(url, pool_size=2) for url in (urls.owner, urls.api, urls.system))
        opened.extend((owner, api, system))
        with system_session(system) as session:
            ours, theirs = make_tenant(session, "acme"), make_tenant(session, "globex")
            spare = fill_tables(session, ours) | fill_tables(session, theirs)
        return FilledDatabase(urls, owner, api, system, ours, theirs, spare)

    yield make
    for engine in opened:
        engine.dispose()


@pytest.fixture(scope="module")
def filled(fill: Callable[[], FilledDatabase]) -> FilledDatabase:
    return fill()


@pytest.fixture(scope="module")
def all_granted(fill: Callable[[], FilledDatabase]) -> FilledDatabase:
    """The same, where the API's role may do everything: only row-level security is left between the tenants."""
    made = fill()
    with made.owner.begin() as connection:
        connection.execute(text("GRANT ALL ON ALL TABLES IN SCHEMA public TO zhub_app"))
    unfreeze(made.urls.owner)
    return made


def test_every_table_with_a_tenant_is_known_as_tenant_owned(filled: FilledDatabase) -> None:
    with filled.owner.connect() as connection:
        found = connection.scalars(
            text(
                "SELECT attrelid::regclass::text FROM pg_attribute JOIN pg_class c ON c.oid = attrelid "
                "WHERE attname = 'org_id' AND relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
        )
        assert sorted(found) == sorted(TENANT_OWNED)


@pytest.mark.parametrize("table", FENCED)
def test_row_level_security_holds_for_the_owner_too(filled: FilledDatabase, table: str) -> None:
    with filled.owner.connect() as connection:
        enabled_and_forced = connection.execute(
            text("SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = cast(:table AS regclass)"),
            {"table": table},
        ).one()
    assert tuple(enabled_and_forced) == (True, True)


@pytest.mark.parametrize("table", FENCED)
def test_only_the_group_roles_have_policies_and_the_apis_names_the_tenant(filled: FilledDatabase, table: str) -> None:
    with filled.owner.connect() as connection:
        policies = connection.execute(
            text("SELECT policyname, roles::text, cmd, qual, with_check FROM pg_policies WHERE tablename = :table"),
            {"table": table},
        ).all()
    by_name = {policy.policyname: policy for policy in policies}
    expected = {"tenant": "{zhub_app}", "system": "{zhub_system}"} | dict.fromkeys(OTHERS.get(table, ()), "{zhub_app}")
    if table in SHOWN_TO_GUESTS:
        expected["guest"] = "{zhub_guest}"
    if table in ("catalogue_entries", "version_metrics"):
        expected["search"] = "{zhub_search}"
    if table == "expert_grants":  # of a row that is another's, who has a grant sees it, asks for it and gives it up
        expected |= dict.fromkeys(("received", "ask", "give_up"), "{zhub_app}")
    assert {name: policy.roles for name, policy in by_name.items()} == expected
    tenant = by_name["tenant"]
    assert tenant.cmd == "ALL" and tenant.qual == tenant.with_check and "zhub.org_id" in tenant.qual


@pytest.mark.parametrize("table", FENCED)
def test_without_a_tenant_nothing_is_there(filled: FilledDatabase, table: str) -> None:
    with system_session(filled.api) as session:
        assert count_rows(session, table) == 0


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_sees_its_own_rows_and_no_others(filled: FilledDatabase, table: str) -> None:
    with tenant_session(filled.api, filled.ours.org_id) as session:
        owners = set(session.scalars(text(f"SELECT {tenant_column(table)} FROM {table}")))
    assert owners == {filled.ours.org_id}


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_cannot_insert_for_another(all_granted: FilledDatabase, table: str) -> None:
    row = first_row(all_granted.system, table, all_granted.theirs.org_id) | {"id": str(uuid.uuid4())}
    with (
        pytest.raises(ProgrammingError, match="violates row-level security policy"),
        tenant_session(all_granted.api, all_granted.ours.org_id) as session,
    ):
        insert_row(session, table, row)


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_cannot_hand_its_rows_to_another(all_granted: FilledDatabase, table: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="violates row-level security policy"),
        tenant_session(all_granted.api, all_granted.ours.org_id) as session,
    ):
        session.execute(text(f"UPDATE {table} SET {tenant_column(table)} = :them"), {"them": all_granted.theirs.org_id})


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_cannot_change_anothers_rows(all_granted: FilledDatabase, table: str) -> None:
    statement = text(f"UPDATE {table} SET created_at = now() WHERE {tenant_column(table)} = :them RETURNING id")
    with tenant_session(all_granted.api, all_granted.ours.org_id) as session:
        assert session.execute(statement, {"them": all_granted.theirs.org_id}).all() == []


@pytest.mark.parametrize("table", FENCED)
def test_a_tenant_cannot_delete_anothers_rows(all_granted: FilledDatabase, table: str) -> None:
    statement = text(f"DELETE FROM {table} WHERE {tenant_column(table)} = :them RETURNING id")
    with tenant_session(all_granted.api, all_granted.ours.org_id) as session:
        assert session.execute(statement, {"them": all_granted.theirs.org_id}).all() == []


@pytest.mark.parametrize("table", FENCED)
def test_an_unknown_setting_of_the_tenant_shows_nothing(filled: FilledDatabase, table: str) -> None:
    with tenant_session(filled.api, uuid.uuid4()) as session:
        assert count_rows(session, table) == 0


def test_the_system_sees_every_tenant(filled: FilledDatabase) -> None:
    with system_session(filled.system) as session:
        assert set(session.scalars(select(Job.org_id))) == {filled.ours.org_id, filled.theirs.org_id}


@pytest.mark.parametrize("login", ["api", "system"])
def test_no_login_is_exempt_from_row_level_security(
    filled: FilledDatabase, open_engine: Callable[[str], Engine], login: str
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


def test_the_api_is_no_member_of_the_system_role(filled: FilledDatabase) -> None:
    with filled.api.connect() as connection:
        assert connection.scalar(text("SELECT pg_has_role('zhub_system', 'MEMBER')")) is False


@pytest.mark.parametrize("column", ["state", "fence", "lease_until", "spec", "org_id", "finished_at"])
def test_the_api_cannot_write_what_the_lease_holder_writes(filled: FilledDatabase, column: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        tenant_session(filled.api, filled.ours.org_id) as session,
    ):
        session.execute(text(f"UPDATE jobs SET {column} = {column}"))


@pytest.mark.parametrize("table", sorted(Base.metadata.tables))
def test_the_api_deletes_no_row_of_any_table(filled: FilledDatabase, table: str) -> None:
    with filled.api.connect() as connection:
        assert connection.scalar(text("SELECT has_table_privilege(:table, 'DELETE')"), {"table": table}) is False


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_the_tenant_does_not_leak_to_the_next_borrower_of_the_connection(
    filled: FilledDatabase, open_engine: Callable[..., Engine], how: str
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
        seen = count_rows(session, "projects")
    assert (second, seen) == (first, 0)


def test_a_tenants_session_stays_bound_after_a_savepoint_is_rolled_back(filled: FilledDatabase) -> None:
    with tenant_session(filled.api, filled.ours.org_id) as session:
        with pytest.raises(ProgrammingError), session.begin_nested():
            session.execute(text("SELECT * FROM no_such_table"))
        assert count_rows(session, "projects") == 1


def test_every_reference_between_tenants_tables_carries_the_tenant(filled: FilledDatabase) -> None:
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
def test_a_row_cannot_point_at_another_tenants_row(
    filled: FilledDatabase, table: str, column: str, target: str
) -> None:
    ours = filled.ours.org_id
    # Nothing but the reference may be at fault: what is unique is new, and our own spare row is accepted.
    fresh = {"id": str(uuid.uuid4()), "prefix": uuid.uuid4().hex, "name": "new", "version": 99, "position": 99}
    fresh |= {"job_id": str(filled.spare[ours, "jobs"]), "suite_digest": "new", "key": "new", "experts": "new"}
    fresh |= {"day": "2030-01-01", "token_hash": "new", "user_id": str(filled.spare[ours, "users"])}
    fresh |= {"event_id": str(uuid.uuid4()), "dataset_version_id": str(filled.spare[ours, "dataset_versions"])}
    row = first_row(filled.system, table, ours)
    row |= {name: value for name, value in fresh.items() if name in row}
    if table == "aliases" and target.startswith("release"):
        row |= {"expert_id": None, "version_id": None, "canary_share": 0.5}
        row |= {"release_id": str(filled.spare[ours, "releases"])}
        row |= dict.fromkeys(("release_version_id", "canary_version_id"), str(filled.spare[ours, "release_versions"]))
    if table == "alias_requests":
        of_release = column in ("release_id", "release_version_id", "expected_release_version_id")
        versions = ("version_id", "release_version_id", "expected_version_id", "expected_release_version_id")
        row |= dict.fromkeys(("expert_id", "release_id", *versions))
        owner, version = ("release_id", "release_version_id") if of_release else ("expert_id", "version_id")
        tables = ("releases", "release_versions") if of_release else ("experts", "expert_versions")
        row |= {owner: str(filled.spare[ours, tables[0]]), version: str(filled.spare[ours, tables[1]])}
    if table == "attestations":
        row |= {"version_id": str(filled.spare[ours, "expert_versions"])}
    if table == "signing_keys":
        row |= {"rotation": 99}
    if table == "evaluations" and column == "release_version_id":
        row |= {"version_id": None}
    if table == "shadow_trials":
        row |= {"ended_at": row["created_at"]}
    # A project, and a version, has one row each, and the spare one is that.
    alone = [
        text(f"DELETE FROM {of_one}")
        for of_one in ("completion_settings", "catalogue_entries", "version_metrics", "expert_grants")
    ]
    with system_session(filled.system) as session:
        for deletion in alone:
            session.execute(deletion)
        insert_row(session, table, row | {column: str(filled.spare[ours, target])})
        session.rollback()
    with (
        pytest.raises(IntegrityError, match="violates foreign key constraint"),
        system_session(filled.system) as session,
    ):
        for deletion in alone:
            session.execute(deletion)
        insert_row(session, table, row | {column: str(filled.spare[filled.theirs.org_id, target])})


def test_a_presented_key_shows_its_own_row_and_nothing_else(filled: FilledDatabase) -> None:
    with tenant_session(filled.api, filled.ours.org_id) as session:
        prefix = session.scalars(select(ApiKey.prefix).where(ApiKey.id == filled.ours.key_id)).one()
    with key_session(filled.api, prefix) as session:
        seen = {table: count_rows(session, table) for table in FENCED}
    assert seen == dict.fromkeys(FENCED, 0) | {"api_keys": 1}


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "a.b", "a@b", "é", "a" * 65, "a\n", "_a"])
def test_a_name_that_would_break_model_ids_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_name(name, "project")


@pytest.mark.parametrize("name", ["a", "0", "a-b_c", "a" * 64])
def test_a_good_name_is_returned(name: str) -> None:
    assert check_name(name, "project") == name
