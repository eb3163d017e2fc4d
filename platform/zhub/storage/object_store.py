"""The object store: immutable bytes under keys, in a directory or in S3.

Correctness never rests on the store: what matters is written under a content-addressed or otherwise unique
key, so a double write is harmless, and every read that matters is checked against a SHA-256 from the database.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from zhub.errors import DigestMismatchError, DiskError, InvalidRequestError, StoreError
from zhub.process import tracing
from zhub.storage.directory import DirectoryStore, replacing
from zhub.storage.listed import StoredObject
from zhub.storage.s3 import S3Store


class ObjectStore(Protocol):
    """Seven verbs. Every failure is a StoreError that names the key."""

    def put(self, key: str, file: BinaryIO) -> None:
        """Store the rest of ``file`` under ``key``, whole or not at all, replacing what was there."""

    def put_absent(self, key: str, file: BinaryIO) -> bool:
        """Store the rest of ``file`` as ``put`` does, unless there is an object already; whether it was stored.

        Of several at a time one stores. Where an S3 server has no conditional writes, all of them may.
        """

    def open(self, key: str) -> Iterator[bytes]:
        """Yield the object's bytes in pieces. Raises ObjectMissingError before the first piece."""

    def size(self, key: str) -> int:
        """Size in bytes. Raises ObjectMissingError."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that start with ``prefix``, in any order."""

    def listing(self, prefix: str) -> Iterator[StoredObject]:
        """Yield what ``keys`` does, with sizes and times."""

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""


def open_store(url: str) -> ObjectStore:
    """The store behind ``file:///directory`` or ``s3://bucket/prefix?endpoint_url=…&region=…``.

    S3 credentials come from where boto3 looks for them (environment, profile, instance role).
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        unknown = set(options) - {"endpoint_url", "region"}
        if unknown:
            raise InvalidRequestError(f"ZHUB_STORE_URL: unknown options {sorted(unknown)}; known: endpoint_url, region")
        return S3Store(
            parts.netloc,
            parts.path.strip("/"),
            endpoint_url=options.get("endpoint_url"),
            region=options.get("region"),
        )
    raise InvalidRequestError(f"ZHUB_STORE_URL must be file:///directory or s3://bucket/prefix, got '{url}'")


def put_path(store: ObjectStore, key: str, path: Path) -> None:
    with tracing.span("upload", key=key), path.open("rb") as file:
        store.put(key, file)


def put_content(store: ObjectStore, key: str, file: BinaryIO, *, size_bytes: int) -> None:
    """Store a file under a key that names its content, unless it is there; and see that all of it is.

    Raises:
        StoreError: the store has it in another size, although it took it.
    """
    if store.put_absent(key, file):
        written = store.size(key)
    elif (written := store.size(key)) != size_bytes:
        file.seek(0)
        store.put(key, file)  # what was there cannot be the file that the key names
        written = store.size(key)
    if written != size_bytes:
        raise StoreError(f"{key}: {size_bytes:,} bytes were stored, and the store has {written:,}", key=key)


def fetch(store: ObjectStore, key: str, path: Path, *, sha256: str) -> Path:
    """Bring an object to ``path`` and check its bytes; a file already there with those bytes is kept.

    Raises:
        DigestMismatchError: the bytes are not those that the digest names; nothing is left at ``path``.
        DiskError: the file cannot be written.
    """
    try:
        if path.exists() and _sha256(path) == sha256:
            os.utime(path)  # by which ``cached_files`` sees that it is used
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tracing.span("download", key=key), replacing(path) as file:
            _copy(store, key, file, sha256=sha256)
    except OSError as exc:  # the store's own are StoreErrors
        raise DiskError(path, exc.strerror or str(exc)) from exc
    return path


def check_digest(store: ObjectStore, key: str, *, sha256: str) -> None:
    """Read an object and throw it away. Raises DigestMismatchError, ObjectMissingError."""
    digest = hashlib.sha256()
    for chunk in store.open(key):
        digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise DigestMismatchError(key, expected=sha256, actual=digest.hexdigest())


def _copy(store: ObjectStore, key: str, file: BinaryIO, *, sha256: str) -> None:
    digest = hashlib.sha256()
    for chunk in store.open(key):
        digest.update(chunk)
        file.write(chunk)
    if digest.hexdigest() != sha256:
        raise DigestMismatchError(key, expected=sha256, actual=digest.hexdigest())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
