"""Signatures of versions: each organisation's keys, and the one place where what was published is signed.

A private key is derived from the platform's secret by HMAC-SHA-256, as the secrets of webhooks are, so that no database
holds one; its public key is stored. A thread of each scheduler signs what was published, whoever made it: a training, a
few-shot search, an import. The envelope goes to the store first, then its row into the database. Functions take a
Session and never commit; only ``sign_next`` opens sessions of its own.
"""

import base64
import hashlib
import io
import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub import attestation
from zhub.answering import Attested
from zhub.answering import SigningKey as PublicKey
from zhub.attestation import Envelope, key_id_of
from zhub.database.sessions import system_session
from zhub.errors import ArtifactError, ConflictError
from zhub.ids import new_id
from zhub.manifest import Manifest, canonical_json
from zhub.models import Attestation, ExpertVersion, SigningKey
from zhub.registry.versions import VersionRecord
from zhub.storage.object_store import ObjectStore

BATCH = 50  # versions that one call signs

log = logging.getLogger("zhub.registry")


def current_key(session: Session, org_id: uuid.UUID, secret_key: str) -> SigningKey:
    """The key that an organisation signs with now, made on its first use.

    Where the platform's secret has changed, the key of the old one is retired, and another one made.
    """
    newest = select(SigningKey).where(SigningKey.org_id == org_id).order_by(SigningKey.rotation.desc()).limit(1)
    key = session.scalar(newest)
    if key is None:
        return _make(session, org_id, 1, secret_key)
    derived = attestation.private_key(org_id, key.rotation, secret_key).public_key()
    if key.retired_at is None and key_id_of(derived) == key.key_id:
        return key
    return rotate(session, org_id, secret_key)


def rotate(session: Session, org_id: uuid.UUID, secret_key: str) -> SigningKey:
    """Retire an organisation's keys, and make another one. What was published before is still verified."""
    of_org = (SigningKey.org_id == org_id, SigningKey.retired_at.is_(None))
    session.execute(update(SigningKey).where(*of_org).values(retired_at=func.now()))
    last = session.scalar(select(func.max(SigningKey.rotation)).where(SigningKey.org_id == org_id)) or 0
    return _make(session, org_id, last + 1, secret_key)


def keys_of(session: Session, org_id: uuid.UUID) -> list[SigningKey]:
    """The organisation's keys, the one in use first."""
    of_org = select(SigningKey).where(SigningKey.org_id == org_id)
    return list(session.scalars(of_org.order_by(SigningKey.rotation.desc())))


def public_key_of(key: SigningKey) -> PublicKey:
    return PublicKey(key_id=key.key_id, public_key=key.public_key, retired_at=key.retired_at)


def attested(session: Session, version_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Attested]:
    """What verifies each of these versions before it is loaded, for those that are signed."""
    if not version_ids:  # a base was asked for: each request comes here
        return {}
    statement = (
        select(Attestation.version_id, Attestation.key, Attestation.sha256, SigningKey)
        .join(SigningKey, SigningKey.id == Attestation.signing_key_id)
        .where(Attestation.version_id.in_(version_ids))
    )
    return {
        version_id: Attested(key=key, sha256=sha256, signing_key=public_key_of(signing_key))
        for version_id, key, sha256, signing_key in session.execute(statement)
    }


def envelope_of(session: Session, record: VersionRecord) -> Envelope:
    """The signed statement of a version. Raises ConflictError where it is not signed yet."""
    row = session.scalar(select(Attestation).where(Attestation.version_id == record.version.id))
    if row is None:
        raise ConflictError(f"'{record.name}' is not signed yet. A scheduler signs it within seconds; try again.")
    return Envelope.model_validate(row.envelope)


def check(session: Session, record: VersionRecord, secret_key: str) -> None:
    """Verify a version's row against its signature, and the public key against the platform's secret.

    Raises:
        ArtifactError: the row, the statement, the signature or the key was changed: the message names which.
        ConflictError: it is not signed yet.
    """
    envelope = envelope_of(session, record)
    keys = keys_of(session, record.version.org_id)
    for key in keys:
        derived = attestation.private_key(record.version.org_id, key.rotation, secret_key).public_key()
        is_own = base64.b64encode(derived.public_bytes_raw()).decode() == key.public_key
        if not is_own and key.retired_at is None:
            raise ArtifactError(
                f"{record.name}: the public key {key.key_id[:16]}… is not the one that belongs to the platform's "
                "secret: it was changed in the database, or the secret was."
            )
    signed = attestation.verify(envelope, [public_key_of(key) for key in keys], record.name)
    rebuilt = _statement(record.version)
    subject = {entry["name"]: entry["digest"]["sha256"] for entry in rebuilt["subject"]}
    attestation.check_subject(signed, subject, record.name, whole=True)
    definition = "buildDefinition"
    if rebuilt["predicate"][definition] != signed["predicate"][definition]:
        raise ArtifactError(f"{record.name}/manifest.json: it was changed in the database: other inputs were signed.")


def sign_next(engine: Engine, store: ObjectStore, secret_key: str) -> int:
    """Sign versions that are not; return how many. Two schedulers at once make the same envelopes."""
    unsigned = (ExpertVersion.signed_at.is_(None), ExpertVersion.swept_at.is_(None), ExpertVersion.damage.is_(None))
    with system_session(engine) as session:
        versions = session.scalars(select(ExpertVersion).where(*unsigned).order_by(ExpertVersion.id).limit(BATCH)).all()
        keys = {org_id: current_key(session, org_id, secret_key) for org_id in {one.org_id for one in versions}}
    rows, unreadable = [], []
    for version in versions:
        key = keys[version.org_id]
        try:
            signed = _statement(version)
        except ValidationError:
            unreadable.append(version.id)
            continue
        envelope = attestation.sign(attestation.private_key(version.org_id, key.rotation, secret_key), signed)
        content = canonical_json(envelope.model_dump())
        sha256 = hashlib.sha256(content).hexdigest()
        # Beside the files, under its own digest: a key that was rotated meanwhile makes another object.
        at = f"{version.key_prefix}/attestation-{sha256[:16]}.json"
        store.put(at, io.BytesIO(content))
        row = {"id": new_id(), "org_id": version.org_id, "version_id": version.id, "signing_key_id": key.id}
        rows.append(row | {"envelope": envelope.model_dump(), "key": at, "sha256": sha256})
    if versions:
        with system_session(engine) as session:
            _record(session, rows, unreadable)
        log.info("signed %d versions", len(rows), extra={"action": "versions_signed", "versions": len(rows)})
    return len(rows)


def _statement(version: ExpertVersion) -> dict[str, Any]:
    manifest = Manifest.model_validate(version.manifest)
    return attestation.statement(manifest, digest=version.digest, published_at=version.created_at)


def _record(session: Session, rows: Sequence[Mapping[str, Any]], unreadable: Sequence[uuid.UUID]) -> None:
    if rows:
        session.execute(insert(Attestation).values(rows).on_conflict_do_nothing(index_elements=["version_id"]))
    signed = ExpertVersion.id.in_([row["version_id"] for row in rows])
    session.execute(update(ExpertVersion).where(signed).values(signed_at=func.now()))
    damage = "Its manifest cannot be read, so it is not signed."
    session.execute(update(ExpertVersion).where(ExpertVersion.id.in_(unreadable)).values(damage=damage))


def _make(session: Session, org_id: uuid.UUID, rotation: int, secret_key: str) -> SigningKey:
    public_key = attestation.private_key(org_id, rotation, secret_key).public_key()
    row = {"id": new_id(), "org_id": org_id, "rotation": rotation, "key_id": key_id_of(public_key)}
    row["public_key"] = base64.b64encode(public_key.public_bytes_raw()).decode()
    session.execute(insert(SigningKey).values(row).on_conflict_do_nothing())
    of_rotation = (SigningKey.org_id == org_id, SigningKey.rotation == rotation)
    return session.scalars(select(SigningKey).where(*of_rotation)).one()
