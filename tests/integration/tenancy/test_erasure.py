"""Erasure of an organisation: nothing of it stays but a signed proof, and others keep what is theirs."""

import base64
import io
import json
import uuid

import pytest
from sqlalchemy import Engine, select, text
from tenant_rows import count_rows, fill_tables, make_tenant

from zhub import attestation
from zhub.answering import SigningKey
from zhub.database.sessions import system_session
from zhub.errors import NotFoundError, NotReadyError, StoreError
from zhub.models import TENANT_OWNED, BaseModel, Erasure, Job
from zhub.storage.directory import DirectoryStore
from zhub.tenancy import erasure
from zhub.tenancy.keys import Caller

SECRET = "0123456789abcdef" * 4


@pytest.fixture
def tenants(system_engine: Engine, store: DirectoryStore) -> tuple[Caller, Caller]:
    """Two organisations with a row in every table and objects in the store; the first has a private base."""
    with system_session(system_engine) as session:
        ours, theirs = make_tenant(session, "acme"), make_tenant(session, "globex")
        for caller in (ours, theirs):
            fill_tables(session, caller)
        files = [{"key": f"bases/files/sha256/{name}"} for name in ("own", "shared")]
        own = {"name": "secret", "private": True, "owner_org_id": ours.org_id, "basis_key_prefix": "bases/w-b"}
        session.add(BaseModel(source={"files": files}, **own))
        session.add(BaseModel(name="open", source={"files": files[1:]}, owner_org_id=ours.org_id))
    for key in ("bases/files/sha256/own", "bases/files/sha256/shared", "bases/w-b/index.json", "bases/w-b2/x"):
        store.put(key, io.BytesIO(b"x"))
    for caller in (ours, theirs):
        for number in range(7):
            store.put(f"t/{caller.org_id.hex}/datasets/sha256/{number}", io.BytesIO(b"x"))
    return ours, theirs


def erase(engine: Engine, store: DirectoryStore, name: str = "acme") -> Erasure:
    org_id = erasure.begin(engine, name, by="operator", reason="they asked")
    return erasure.erase(engine, store, org_id, SECRET)


def mentions(engine: Engine, org_id: uuid.UUID) -> list[str]:
    """The tables that have the organisation's id anywhere in a row, in any form."""
    with system_session(engine) as session:
        tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        search = "SELECT count(*) FROM {} t WHERE t::text LIKE :id OR t::text LIKE :hex"
        like = {"id": f"%{org_id}%", "hex": f"%{org_id.hex}%"}
        return [table for table in tables if session.scalar(text(search.format(table)), like)]


def test_nothing_of_an_organisation_stays_but_the_proof(
    system_engine: Engine, store: DirectoryStore, tenants: tuple[Caller, Caller]
) -> None:
    ours, theirs = tenants
    with system_session(system_engine) as session:
        before = {table: count_rows(session, table) for table in TENANT_OWNED}
    assert set(mentions(system_engine, ours.org_id)) > set(TENANT_OWNED)
    erased = erase(system_engine, store)
    assert mentions(system_engine, ours.org_id) == ["erasures"]
    assert [key for key in store.keys("") if ours.org_id.hex in key] == []
    kept = {key for key in store.keys("bases/")}
    assert kept == {"bases/files/sha256/shared", "bases/w-b2/x"}
    with system_session(system_engine) as session:
        # What the others have is half of what there was: both had the same.
        after = {table: count_rows(session, table) for table in TENANT_OWNED}
        assert {table: 2 * count for table, count in after.items()} == before
        assert set(session.scalars(select(BaseModel.name))) == {"tiny", "open"}
    assert len(list(store.keys(f"t/{theirs.org_id.hex}/"))) == 7
    assert erased.objects == 7 + 2
    assert {table: erased.counts[table] for table in TENANT_OWNED} == after


def test_the_proof_is_signed_by_the_platform_and_has_no_name(
    system_engine: Engine, store: DirectoryStore, tenants: tuple[Caller, Caller]
) -> None:
    erased = erase(system_engine, store)
    public_key = attestation.private_key(attestation.PLATFORM, 1, SECRET).public_key()
    key = SigningKey(
        key_id=attestation.key_id_of(public_key), public_key=base64.b64encode(public_key.public_bytes_raw()).decode()
    )
    envelope = attestation.Envelope.model_validate(erased.proof)
    statement = attestation.verify(envelope, [key], "the proof")
    assert statement["subject"] == [{"name": f"org-{tenants[0].org_id.hex}", "digest": {"sha256": erased.digest}}]
    predicate = statement["predicate"]
    assert (predicate["rows"]["organizations"], predicate["objects"], predicate["by"]) == (1, 9, "operator")
    assert "acme" not in json.dumps(statement)


class Breaking(DirectoryStore):
    """A store that goes away after some objects."""

    def __init__(self, store: DirectoryStore, lasts: int) -> None:
        super().__init__(store.root)
        self._lasts = lasts

    def delete(self, key: str) -> None:
        self._lasts -= 1
        if self._lasts < 0:
            raise StoreError("away", key=key)
        super().delete(key)


def test_an_erasure_that_breaks_is_gone_on_with(
    system_engine: Engine, store: DirectoryStore, tenants: tuple[Caller, Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "BATCH_OBJECTS", 2)
    monkeypatch.setattr(erasure, "BATCH_ROWS", 1)
    with pytest.raises(StoreError):
        erase(system_engine, Breaking(store, 4))
    with system_session(system_engine) as session:
        assert session.scalars(select(Erasure.objects)).one() == 4
    erased = erase(system_engine, store)
    assert erased.objects == 9 and mentions(system_engine, tenants[0].org_id) == ["erasures"]
    assert erasure.erase(system_engine, store, tenants[0].org_id, SECRET).proof == erased.proof
    with pytest.raises(NotFoundError):
        erase(system_engine, store)


def test_an_organisation_whose_jobs_run_is_erased_once_they_have_stopped(
    system_engine: Engine, store: DirectoryStore, tenants: tuple[Caller, Caller]
) -> None:
    ours = tenants[0].org_id
    with system_session(system_engine) as session:
        session.execute(text("UPDATE jobs SET state = 'admitted' WHERE state = 'queued'"))
        first = "(SELECT min(id::text)::uuid FROM jobs WHERE org_id = :org)"
        running = f"UPDATE jobs SET state = 'starting', lease_until = now() WHERE id = {first}"
        session.execute(text(running), {"org": ours})
    with pytest.raises(NotReadyError, match="1 jobs of 'acme' still run"):
        erase(system_engine, store)
    with system_session(system_engine) as session:
        assert set(session.scalars(select(Job.desired).where(Job.org_id == ours))) == {"cancel"}
        assert not session.scalar(
            text("SELECT count(*) FROM api_keys WHERE org_id = :o AND revoked_at IS NULL"), {"o": ours}
        )
