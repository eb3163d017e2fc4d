"""The object store: immutable bytes under keys, in a directory or in S3.

Correctness never rests on the store: what matters is written under a content-addressed or otherwise unique
key, so a double write is harmless, and every read that matters is checked against a SHA-256 from the database.
"""

import base64
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from zhub.errors import DigestMismatchError, InvalidRequestError, ObjectMissingError, StoreAwayError, StoreError
from zhub.manifest import CHUNK_BYTES
from zhub.process import tracing

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MARK = ".zhub-store"  # in the directory of a store that was written to
PART_BYTES = 16 << 20  # S3 wants 5 MiB or more for all parts but the last, and at most 10,000 parts


class ObjectStore(Protocol):
    """Five verbs. Every failure is a StoreError that names the key."""

    def put(self, key: str, file: BinaryIO) -> None:
        """Store the rest of ``file`` under ``key``, whole or not at all, replacing what was there."""

    def open(self, key: str) -> Iterator[bytes]:
        """Yield the object's bytes in pieces. Raises ObjectMissingError before the first piece."""

    def size(self, key: str) -> int:
        """Size in bytes. Raises ObjectMissingError."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that start with ``prefix``, in any order."""

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


def fetch(store: ObjectStore, key: str, path: Path, *, sha256: str) -> Path:
    """Bring an object to ``path`` and check its bytes; a file already there with those bytes is kept.

    Raises:
        DigestMismatchError: the bytes are not those that the digest names; nothing is left at ``path``.
    """
    if path.exists() and _sha256(path) == sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tracing.span("download", key=key), _replacing(path) as file:
        for chunk in store.open(key):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != sha256:
            raise DigestMismatchError(key, expected=sha256, actual=digest.hexdigest())
    return path


class DirectoryStore:
    """Objects as files below one directory of this machine, written to the side and renamed.

    The first put makes the directory, though none above it, and marks it. Where the mark was seen and is gone, or where
    there is nothing above, the disk is away: a StoreAwayError, and neither a store without objects nor a place to
    write to. A process that begins while it is away can only tell by what is above.
    """

    _marked: ClassVar[set[Path]] = set()
    """Roots whose mark this process has seen: whoever opens the store again knows of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Not Path.exists, which raises where a disk fails: who uses the store is told of it, not who opens it.
        if os.path.exists(root / MARK):  # noqa: PTH110
            self._marked.add(root)

    def put(self, key: str, file: BinaryIO) -> None:
        path = self._path(key)
        with self._translated(key):
            if self.root not in self._marked:
                self.root.mkdir(exist_ok=True)
                (self.root / MARK).touch()
                self._marked.add(self.root)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(path) as target:
                shutil.copyfileobj(file, target, CHUNK_BYTES)

    def open(self, key: str) -> Iterator[bytes]:
        with self._translated(key):
            file = self._path(key).open("rb")
        return self._pieces(key, file)

    def _pieces(self, key: str, file: BinaryIO) -> Iterator[bytes]:
        with file, self._translated(key):
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def size(self, key: str) -> int:
        with self._translated(key):
            return self._path(key).stat().st_size

    def keys(self, prefix: str) -> Iterator[str]:
        top = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self.root
        with self._translated(prefix):
            for path in top.rglob("*"):
                key = path.relative_to(self.root).as_posix()
                if path.is_file() and key.startswith(prefix) and key != MARK and not path.name.startswith(".writing-"):
                    yield key
            # What goes away meanwhile ends a listing early, and without an error of its own.
            self._check_there(prefix)

    def delete(self, key: str) -> None:
        with self._translated(key):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise StoreError(f"'{key}' is not a key", key=key)
        return self.root / key

    def _check_there(self, key: str) -> None:
        seen = self.root in self._marked  # before the look at the disk: another thread may be making the mark
        marked = (self.root / MARK).exists()
        if seen and not marked or not self.root.parent.is_dir():
            raise StoreAwayError(str(self.root), key=key)
        if marked:
            self._marked.add(self.root)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            self._check_there(key)
            try:
                yield
            except FileNotFoundError as exc:
                self._check_there(key)  # it may have gone away meanwhile
                raise ObjectMissingError(key) from exc
        except OSError as exc:
            raise StoreError(f"{self.root / key}: {exc.strerror or exc}", key=key) from exc


class S3Store:
    """Objects in a bucket of S3 or of a server that speaks its protocol.

    Each request carries Content-MD5: that is the one checksum that every server tried refuses to accept
    when wrong, while a wrong ``x-amz-checksum-*`` header passes Ceph's radosgw unnoticed.
    """

    def __init__(self, bucket: str, prefix: str, *, endpoint_url: str | None, region: str | None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region or "us-east-1",
            config=Config(
                # The presigner's default would still be SigV2 (boto3#4367).
                signature_version="s3v4",
                s3={"addressing_style": "path" if endpoint_url else "auto"},
                # Other servers than AWS fail on the aws-chunked trailer that "when_supported" sends over https.
                request_checksum_calculation="when_required" if endpoint_url else "when_supported",
                response_checksum_validation="when_required" if endpoint_url else "when_supported",
                retries={"mode": "standard", "max_attempts": 5},
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=32,
            ),
        )

    def put(self, key: str, file: BinaryIO) -> None:
        with self._translated(key):
            first = _read_part(file)
            if len(first) < PART_BYTES:
                self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=first, ContentMD5=_md5(first))
            else:
                self._put_parts(key, first, file)

    def _put_parts(self, key: str, first: bytes, file: BinaryIO) -> None:
        name = self._key(key)
        upload = self._client.create_multipart_upload(Bucket=self.bucket, Key=name)["UploadId"]
        try:
            parts: list[CompletedPartTypeDef] = []
            part = first
            while part:
                number = len(parts) + 1
                answer = self._client.upload_part(
                    Bucket=self.bucket, Key=name, UploadId=upload, PartNumber=number, Body=part, ContentMD5=_md5(part)
                )
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                part = _read_part(file)
            self._client.complete_multipart_upload(
                Bucket=self.bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=upload)
            raise

    def open(self, key: str) -> Iterator[bytes]:
        with self._translated(key):
            body = self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"]
        return self._pieces(key, body.iter_chunks(CHUNK_BYTES))

    def _pieces(self, key: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        with self._translated(key):
            yield from chunks

    def size(self, key: str) -> int:
        with self._translated(key):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]

    def keys(self, prefix: str) -> Iterator[str]:
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(self.prefix)

    def delete(self, key: str) -> None:
        # One object a call: delete_objects sends CRC32 and no Content-MD5, which other servers refuse.
        with self._translated(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def _key(self, key: str) -> str:
        return self.prefix + key

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as exc:
            code = exc.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                raise ObjectMissingError(key) from exc
            raise StoreError(f"s3://{self.bucket}/{self._key(key)}: {exc}", key=key) from exc
        except BotoCoreError as exc:
            raise StoreError(f"s3://{self.bucket}/{self._key(key)}: {exc}", key=key) from exc


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` that takes its name once it is whole and on disk, or vanishes."""
    temporary = path.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        # The new name is on disk only once the directory is: the row that comes after must not outlive it.
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        temporary.unlink(missing_ok=True)


def _read_part(file: BinaryIO) -> bytes:
    pieces = []
    missing = PART_BYTES
    while missing and (piece := file.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _md5(part: bytes) -> str:
    return base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
