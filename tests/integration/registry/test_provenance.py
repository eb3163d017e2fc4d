"""Signatures of versions: made once for whatever was published, verified before anything is loaded, offline too."""

import base64
import hashlib
import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from api_requests import refused_with
from claims import admit_queued, claim_one
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Engine, text
from suites import manifest_of

from zhub import attestation
from zhub.answering import Attested, SigningKey
from zhub.attestation import ATTESTATION_FILE
from zhub.client import Client, offline
from zhub.database.sessions import system_session, tenant_session
from zhub.errors import ArtifactError
from zhub.manifest import MANIFEST_FILE, ROUTING_FILE, Z_FILE, FileEntry
from zhub.registry import deletion, signing, versions
from zhub.registry.publish import publish
from zhub.registry.references import answering
from zhub.registry.resolve import resolve
from zhub.storage.attested import fetch_attested
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
CONTENT = {Z_FILE: b"multipliers", ROUTING_FILE: b"prompts"}


@pytest.fixture
def published(system_engine: Engine, store: DirectoryStore, make_job: Callable[..., Any], caller: Caller) -> str:
    """A version whose files lie in the store as its manifest says."""
    job_id = make_job(caller, expert="summer")
    with system_session(system_engine) as session:
        admit_queued(session)
        claim = claim_one(session, "train")
    assert claim is not None
    files = [
        FileEntry(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in CONTENT.items()
    ]
    manifest = manifest_of(job_id, fence=claim.fence, files=files)
    prefix = f"t/{claim.org_id.hex}/jobs/{claim.job_id.hex}/attempts/{claim.fence}"
    for name, content in (CONTENT | {MANIFEST_FILE: manifest.canonical()}).items():
        store.put(f"{prefix}/{name}", io.BytesIO(content))
    with system_session(system_engine) as session:
        publish(session, job_id, claim.fence, manifest, prefix, 7)
    return "main.summer@v1"


@pytest.fixture
def signed(published: str, system_engine: Engine, store: DirectoryStore, secret_key: str) -> str:
    assert signing.sign_next(system_engine, store, secret_key) == 1
    return published


@pytest.fixture
def zhub(api_url: str, make_key: Callable[..., str]) -> Any:
    with Client(api_url.removesuffix("/v1"), make_key()) as client:
        yield client


def attested_of(engine: Engine, caller: Caller, name: str) -> tuple[versions.VersionRecord, Attested]:
    with tenant_session(engine, caller.org_id) as session:
        record = versions.get_version(session, caller.project_id, name)
        return record, signing.attested(session, [record.version.id])[record.version.id]


def test_whatever_is_published_is_signed_once(
    signed: str, ask: Ask, system_engine: Engine, store: DirectoryStore, secret_key: str
) -> None:
    assert signing.sign_next(system_engine, store, secret_key) == 0
    (key,) = ask("get", "/signing_keys")["data"]
    envelope = attestation.Envelope.model_validate(ask("get", f"/experts/{signed}/attestation"))
    statement = attestation.verify(envelope, [SigningKey.model_validate(key)], signed)
    version = ask("get", f"/experts/{signed}")
    subject = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    assert subject[MANIFEST_FILE] == version["digest"] and subject.keys() == {MANIFEST_FILE, *CONTENT}
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {"name": "dataset", "digest": {"sha256": "d"}} in dependencies


def test_a_version_is_told_to_be_unsigned_until_a_scheduler_has_signed_it(published: str, ask: Ask) -> None:
    refused_with(409, "is not signed yet", ask, "get", f"/experts/{published}/attestation")


def test_the_signature_is_that_of_the_pre_authentication_encoding(signed: str, ask: Ask) -> None:
    envelope = ask("get", f"/experts/{signed}/attestation")
    payload = base64.b64decode(envelope["payload"])
    encoded = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(payload)).encode() + b" " + payload
    public_key = base64.b64decode(ask("get", "/signing_keys")["data"][0]["public_key"])
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, encoded)


def test_serving_gets_what_it_verifies_a_version_by(
    signed: str, api_engine: Engine, caller: Caller, store: DirectoryStore, tmp_path: Path
) -> None:
    with tenant_session(api_engine, caller.org_id) as session:
        (reference,) = answering(resolve(session, caller, signed, [])).experts
    assert reference.attested is not None
    path = fetch_attested(
        store, reference.z_key, tmp_path / "z", sha256=reference.z_sha256, attested=reference.attested
    )
    assert path.read_bytes() == CONTENT[Z_FILE]


@pytest.mark.parametrize("harm", ["another file", "another key", "envelope", "statement"])
def test_nothing_is_loaded_that_was_not_signed(
    signed: str, api_engine: Engine, caller: Caller, store: DirectoryStore, tmp_path: Path, harm: str
) -> None:
    record, attested = attested_of(api_engine, caller, signed)
    sha256, key = hashlib.sha256(CONTENT[Z_FILE]).hexdigest(), f"{record.version.key_prefix}/{Z_FILE}"
    message = ""
    if harm == "another file":
        store.put(key, io.BytesIO(b"other"))
        sha256, message = hashlib.sha256(b"other").hexdigest(), f"{Z_FILE}: it was changed"
    elif harm == "another key":
        other = attestation.private_key(caller.org_id, 9, "x" * 32).public_key()
        public_key = base64.b64encode(other.public_bytes_raw()).decode()
        strange = SigningKey(key_id=attestation.key_id_of(other), public_key=public_key)
        attested, message = attested.model_copy(update={"signing_key": strange}), "none of the organisation's"
    else:
        envelope = json.loads(b"".join(store.open(attested.key)))
        if harm == "statement":
            payload = json.loads(base64.b64decode(envelope["payload"]))
            payload["subject"][0]["digest"]["sha256"] = "0" * 64
            envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
        content = json.dumps(envelope | {"x": 1}).encode()
        store.put(attested.key, io.BytesIO(content))
        if harm == "statement":
            attested = attested.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
        message = "the signature is not that of the key" if harm == "statement" else "expected sha256"
    with pytest.raises(Exception, match=message):
        fetch_attested(store, key, tmp_path / "z", sha256=sha256, attested=attested)
    assert not (tmp_path / "z").exists()


def test_a_retired_key_verifies_what_was_published_before_and_nothing_later(
    signed: str, ask: Ask, publish_version: Callable[..., str], system_engine: Engine, store: DirectoryStore,
    secret_key: str, caller: Caller, api_engine: Engine,
) -> None:  # fmt: skip
    old = ask("get", "/signing_keys")["data"][0]
    new = ask("post", "/signing_keys/rotate", {})
    keys = ask("get", "/signing_keys")["data"]
    assert [key["key_id"] for key in keys] == [new["key_id"], old["key_id"]] and keys[1]["retired_at"]
    with tenant_session(api_engine, caller.org_id) as session:
        record = versions.get_version(session, caller.project_id, signed)
        signing.check(session, record, secret_key)
    later = publish_version()
    signing.sign_next(system_engine, store, secret_key)
    with tenant_session(api_engine, caller.org_id) as session:
        later_record = versions.get_version(session, caller.project_id, later)
        envelope = signing.envelope_of(session, later_record)
        public_keys = [signing.public_key_of(key) for key in signing.keys_of(session, caller.org_id)]
        assert envelope.signatures[0].keyid == new["key_id"]
        manifest = manifest_of(later_record.version.job_id)
        published_at = later_record.version.created_at
    # Somebody who still has the retired key signs something new with it.
    statement = attestation.statement(manifest, digest=later_record.version.digest, published_at=published_at)
    forged = attestation.sign(attestation.private_key(caller.org_id, 1, secret_key), statement)
    with pytest.raises(ArtifactError, match="which was retired at"):
        attestation.verify(forged, public_keys, later)


TAMPERED = {
    "manifest": ("UPDATE expert_versions SET manifest = jsonb_set(manifest, '{seed}', '2')", "other inputs"),
    "file": (
        "UPDATE expert_versions SET manifest = jsonb_set(manifest, '{files,0,sha256}', '\"00\"')",
        f"{Z_FILE}: it was changed",
    ),
    "digest": ("UPDATE expert_versions SET digest = 'x'", f"{MANIFEST_FILE}: it was changed"),
    "signature": (
        "UPDATE attestations SET envelope = jsonb_set(envelope, '{signatures,0,sig}', '\"AAAA\"')",
        "the signature is not that of the key",
    ),
    "key": ("UPDATE signing_keys SET public_key = 'AAAA'", "is not the one that belongs to the platform's secret"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_in_the_database_is_named_and_marked(
    unfrozen: None, signed: str, ask: Ask, system_engine: Engine, what: str
) -> None:
    statement, message = TAMPERED[what]
    with system_session(system_engine) as session:
        session.execute(text(statement))
    verified = ask("post", f"/experts/{signed}/verify", {})
    assert verified["verified"] is False and message in verified["problems"][0]
    assert message in ask("get", f"/experts/{signed}")["damage"]


def test_a_file_that_the_store_has_lost_is_named_and_the_version_marked_until_it_is_back(
    signed: str, ask: Ask, api_engine: Engine, caller: Caller, store: DirectoryStore
) -> None:
    assert ask("post", f"/experts/{signed}/verify", {})["verified"] is True
    record, _ = attested_of(api_engine, caller, signed)
    key = f"{record.version.key_prefix}/{Z_FILE}"
    store.delete(key)
    refused_with(500, Z_FILE, ask, "get", f"/experts/{signed}/files/{Z_FILE}")
    assert ask("get", f"/experts/{signed}")["damage"] == f"{Z_FILE} is missing in the store."
    verified = ask("post", f"/experts/{signed}/verify", {})
    assert verified["problems"] == [f"{signed}/{Z_FILE} is missing in the store."] and verified["signed"] is True
    store.put(key, io.BytesIO(b"multiplierz"))
    assert "changed in the store" in ask("post", f"/experts/{signed}/verify", {})["problems"][0]
    store.put(key, io.BytesIO(CONTENT[Z_FILE]))
    ask("post", f"/experts/{signed}/verify", {})
    assert ask("get", f"/experts/{signed}")["damage"] is None


@pytest.mark.parametrize("harm", ["nothing", "file", "missing", "envelope", "keys"])
def test_a_pulled_version_is_verified_without_a_server(signed: str, zhub: Client, tmp_path: Path, harm: str) -> None:
    directory = tmp_path / "pulled"
    zhub.experts.pull(signed, directory)
    keys = zhub.experts.signing_keys()
    message = ""
    if harm == "file":
        (directory / Z_FILE).write_bytes(b"other")
        message = f"{Z_FILE}: it was changed"
    elif harm == "missing":
        (directory / ROUTING_FILE).unlink()
        message = f"{ROUTING_FILE}: it is missing"
    elif harm == "envelope":
        (directory / ATTESTATION_FILE).write_text("{}")
        message = "is no DSSE envelope"
    elif harm == "keys":
        keys, message = [], "it has none"
    if not message:
        assert offline.verify(directory, keys)["_type"] == "https://in-toto.io/Statement/v1"
        return
    with pytest.raises(ArtifactError, match=message):
        offline.verify(directory, keys)


def test_a_purged_version_leaves_its_statement_in_the_database_and_nothing_in_the_store(
    signed: str, ask: Ask, system_engine: Engine, store: DirectoryStore
) -> None:
    ask("delete", f"/experts/{signed}")
    assert deletion.sweep(system_engine, store, after=timedelta(0)) == 1
    assert [key for key in store.keys("t/") if "/attempts/" in key] == []
    with system_session(system_engine) as session:
        assert session.scalar(text("SELECT count(*) FROM attestations")) == 1
    states = {node["id"]: node["state"] for node in ask("get", f"/lineage/{signed}")["nodes"]}
    assert states[signed] == "purged"


def test_another_secret_of_the_platform_begins_with_another_key(
    signed: str, system_engine: Engine, caller: Caller, secret_key: str
) -> None:
    with system_session(system_engine) as session:
        first = signing.current_key(session, caller.org_id, secret_key)
        second = signing.current_key(session, caller.org_id, "another secret of the platform, of any length")
        session.refresh(first)
        assert first.retired_at is not None and second.rotation == 2
        record = versions.get_version(session, caller.project_id, signed)
        keys = [signing.public_key_of(key) for key in signing.keys_of(session, caller.org_id)]
        attestation.verify(signing.envelope_of(session, record), keys, signed)
