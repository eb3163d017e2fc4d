"""Files of expert versions: fetched only once the version's signature has been verified."""

import hashlib
from pathlib import Path

from zhub import attestation
from zhub.answering import Attested
from zhub.attestation import MAX_ENVELOPE_BYTES
from zhub.errors import DigestMismatchError
from zhub.storage.object_store import ObjectStore, fetch


def fetch_attested(store: ObjectStore, key: str, path: Path, *, sha256: str, attested: Attested | None) -> Path:
    """As ``fetch``, for a file of a version: its SHA-256 must be one that was signed. None: it is not signed yet.

    Raises:
        ArtifactError: the signature is not the organisation's, or another file was signed.
        DigestMismatchError: the bytes are not those that the digest names; nothing is left at ``path``.
    """
    if attested is not None:
        envelope = attestation.read_envelope(_read(store, attested), key)
        signed = attestation.verify(envelope, [attested.signing_key], key)
        attestation.check_subject(signed, {key.rpartition("/")[2]: sha256}, key.rpartition("/")[0], whole=False)
    return fetch(store, key, path, sha256=sha256)


def _read(store: ObjectStore, attested: Attested) -> bytes:
    content = b""
    for piece in store.open(attested.key):
        content += piece
        if len(content) > MAX_ENVELOPE_BYTES:
            break
    if (actual := hashlib.sha256(content).hexdigest()) != attested.sha256:
        raise DigestMismatchError(attested.key, expected=attested.sha256, actual=actual)
    return content
