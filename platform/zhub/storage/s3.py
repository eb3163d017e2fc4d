"""An object store in S3 or what speaks its protocol."""

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from zhub.errors import ObjectMissingError, StoreError
from zhub.manifest import CHUNK_BYTES
from zhub.storage.listed import StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef


MISSING = ("NoSuchKey", "404", "NotFound")
# Of a conditional write: there is an object; or another such write is under way, which is then the one that stores.
TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
PART_BYTES = 16 << 20  # S3 wants 5 MiB or more for all parts but the last, and at most 10,000 parts


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
            self._put(key, file)

    def put_absent(self, key: str, file: BinaryIO) -> bool:
        with self._translated(key):
            # Not every server knows the condition, and none should be sent what it has.
            if self._has(key):
                return False
            try:
                self._put(key, file, IfNoneMatch="*")
            except ClientError as exc:
                if exc.response.get("Error", {}).get("Code", "") in TAKEN:
                    return False
                raise
        return True

    def _has(self, key: str) -> bool:
        try:
            self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        except ClientError as exc:
            if exc.response.get("Error", {}).get("Code", "") in MISSING:
                return False
            raise
        return True

    def _put(self, key: str, file: BinaryIO, **condition: Any) -> None:
        first = _read_part(file)
        if len(first) < PART_BYTES:
            name = self._key(key)
            self._client.put_object(Bucket=self.bucket, Key=name, Body=first, ContentMD5=_md5(first), **condition)
        else:
            self._put_parts(key, first, file, condition)

    def _put_parts(self, key: str, first: bytes, file: BinaryIO, condition: dict[str, Any]) -> None:
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
                Bucket=self.bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
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
        return (listed.key for listed in self.listing(prefix))

    def listing(self, prefix: str) -> Iterator[StoredObject]:
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    yield StoredObject(entry["Key"].removeprefix(self.prefix), entry["Size"], entry["LastModified"])

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
            if code in MISSING:
                raise ObjectMissingError(key) from exc
            raise StoreError(f"s3://{self.bucket}/{self._key(key)}: {exc}", key=key) from exc
        except BotoCoreError as exc:
            raise StoreError(f"s3://{self.bucket}/{self._key(key)}: {exc}", key=key) from exc


def _read_part(file: BinaryIO) -> bytes:
    pieces = []
    missing = PART_BYTES
    while missing and (piece := file.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _md5(part: bytes) -> str:
    return base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
