"""What is signed of an expert version: an in-toto statement in a DSSE envelope, by an Ed25519 key of its organisation.

The statement's subject is every file of the version and its manifest, by SHA-256; its predicate is SLSA provenance,
made of the manifest: what went in, how, and where it ran. Whoever has the files, the envelope and the public keys
can verify it without a server. Formats: in-toto Statement v1, SLSA provenance v1, DSSE 1.0.
"""

import base64
import binascii
import hashlib
import hmac
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError

from zhub.answering import SigningKey
from zhub.errors import ArtifactError
from zhub.manifest import MANIFEST_FILE, Manifest, canonical_json

ATTESTATION_FILE = "attestation.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:zhub:training:v1"
MAX_ENVELOPE_BYTES = 4 << 20
PLATFORM = uuid.UUID(int=0)


class Signature(BaseModel):
    model_config = ConfigDict(frozen=True)
    keyid: str
    sig: str


class Envelope(BaseModel):
    """DSSE: ``payload`` in base64, and its signatures."""

    model_config = ConfigDict(frozen=True)
    payloadType: str
    payload: str
    signatures: list[Signature]


def private_key(org_id: uuid.UUID, rotation: int, secret_key: str) -> Ed25519PrivateKey:
    """The key of an organisation after so many rotations, or of the platform, which is ``PLATFORM``.

    It is derived from the platform's secret by HMAC-SHA-256, so that no database holds it.
    """
    message = b"zhub signing key\0" + org_id.bytes + rotation.to_bytes(4, "big")
    return Ed25519PrivateKey.from_private_bytes(hmac.new(secret_key.encode(), message, hashlib.sha256).digest())


def key_id_of(public_key: Ed25519PublicKey) -> str:
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()


def statement(manifest: Manifest, *, digest: str, published_at: datetime) -> dict[str, Any]:
    """The statement of a version, whose manifest has this SHA-256.

    Equal versions that were published at one time have equal statements.
    """
    files = {file.name: file.sha256 for file in manifest.files} | {MANIFEST_FILE: digest}
    mixed = manifest.mixture.experts if manifest.mixture else []
    inputs: list[tuple[str, str, str | None]] = [
        ("base weights", "zhubWeights", manifest.weights_fingerprint),
        ("basis", "zhubBasis", manifest.basis_fingerprint),
        ("dataset", "sha256", manifest.dataset_digest),
        ("validation dataset", "sha256", manifest.validation_digest),
        ("parent version", "sha256", manifest.parent_digest),
        *(("mixed version", "sha256", expert.digest) for expert in mixed),
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "base_model": manifest.base_model,
                    "base_source": manifest.base_source,
                    "recipe": manifest.recipe,
                    "hyperparameters": manifest.hyperparameters,
                    "grader": manifest.grader,
                    "seed": manifest.seed,
                    "origin": manifest.origin.model_dump(mode="json") if manifest.origin else None,
                },
                "internalParameters": {"steps": manifest.steps, "best_step": manifest.best_step},
                "resolvedDependencies": [
                    {"name": name, "digest": {kind: digest}} for name, kind, digest in inputs if digest is not None
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:zhub", "version": {"zhub": manifest.code_version}},
                "metadata": {
                    "invocationId": f"{manifest.job_id}/{manifest.fence}",
                    "finishedOn": published_at.astimezone(UTC).isoformat(),
                },
                "byproducts": [{"name": "hardware", "annotations": {"hardware": manifest.hardware}}],
            },
        },
    }


def sign(private_key: Ed25519PrivateKey, signed: Mapping[str, Any]) -> Envelope:
    """Put a statement into an envelope. Ed25519 gives the same signature for the same bytes."""
    payload = canonical_json(signed)
    signature = private_key.sign(_pre_authentication(PAYLOAD_TYPE, payload))
    return Envelope(
        payloadType=PAYLOAD_TYPE,
        payload=base64.b64encode(payload).decode(),
        signatures=[Signature(keyid=key_id_of(private_key.public_key()), sig=base64.b64encode(signature).decode())],
    )


def read_envelope(content: bytes, name: str) -> Envelope:
    """Raises ArtifactError: it is none."""
    try:
        return Envelope.model_validate_json(content)
    except ValidationError as exc:
        raise ArtifactError(f"{name}: {ATTESTATION_FILE} is no DSSE envelope: {exc}") from exc


def verify(envelope: Envelope, keys: Sequence[SigningKey], name: str) -> dict[str, Any]:
    """The statement of an envelope, once one of its signatures is a key's.

    Raises:
        ArtifactError: no key is known, the signature is not the key's, or the version was published after the key was
            retired; the message names which.
    """
    if envelope.payloadType != PAYLOAD_TYPE or not envelope.signatures:
        raise ArtifactError(f"{name}: its envelope has no signature of an in-toto statement.")
    known = {key.key_id: key for key in keys}
    signature = next((one for one in envelope.signatures if one.keyid in known), None)
    if signature is None:
        raise ArtifactError(
            f"{name}: it is signed with the key {envelope.signatures[0].keyid[:16]}…, which is none of the "
            f"organisation's ({', '.join(f'{key[:16]}…' for key in known) or 'it has none'})."
        )
    key = known[signature.keyid]
    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        public_key = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.public_key, validate=True))
        if key_id_of(public_key) != key.key_id:
            raise ArtifactError(f"{name}: the public key {key.key_id[:16]}… is not the one that its id names.")
        public_key.verify(base64.b64decode(signature.sig, validate=True), _pre_authentication(PAYLOAD_TYPE, payload))
        signed: dict[str, Any] = json.loads(payload)
        published_at = datetime.fromisoformat(signed["predicate"]["runDetails"]["metadata"]["finishedOn"])
    except InvalidSignature as exc:
        raise ArtifactError(
            f"{name}: the signature is not that of the key {key.key_id[:16]}…: statement or signature was changed."
        ) from exc
    except (binascii.Error, ValueError, KeyError, TypeError) as exc:
        raise ArtifactError(f"{name}: its signed statement cannot be read: {exc}") from exc
    if key.retired_at is not None and published_at > key.retired_at:
        raise ArtifactError(
            f"{name}: it was published at {published_at:%Y-%m-%d %H:%M:%S %Z} and is signed with the key "
            f"{key.key_id[:16]}…, which was retired at {key.retired_at:%Y-%m-%d %H:%M:%S %Z}."
        )
    return signed


def check_subject(signed: Mapping[str, Any], found: Mapping[str, str], name: str, *, whole: bool) -> None:
    """Check SHA-256s of files against a verified statement; ``whole``: these are all files of the version.

    Raises:
        ArtifactError: names the file that was changed, that is missing, or that nobody signed.
    """
    subject = {entry["name"]: entry["digest"]["sha256"] for entry in signed["subject"]}
    for file, sha256 in found.items():
        if file not in subject:
            raise ArtifactError(f"{name}/{file}: it is no file of the version that was signed.")
        if subject[file] != sha256:
            raise ArtifactError(f"{name}/{file}: it was changed: signed is sha256 {subject[file]}, found {sha256}.")
    if whole and (missing := sorted(subject.keys() - found.keys())):
        raise ArtifactError(f"{name}/{missing[0]}: it is missing; signed are {len(subject)} files.")


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: what is signed, so that no payload can be taken for one of another type."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
