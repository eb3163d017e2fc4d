"""Raw request bodies to disk: hashed on the way, never held in memory whole."""

import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from zhub.errors import InvalidRequestError

MAX_MODEL_FILE_BYTES = 64 << 30


@dataclass(frozen=True)
class Upload:
    """A body on disk, rewound."""

    file: BinaryIO
    sha256: str
    size_bytes: int


@asynccontextmanager
async def spool(request: Request, *, limit: int) -> AsyncIterator[Upload]:
    """The request's body in a temporary file (below ``TMPDIR``) that vanishes with the block.

    Raises:
        InvalidRequestError: more than ``limit`` bytes.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    with tempfile.TemporaryFile() as file:
        async for piece in request.stream():
            size_bytes += len(piece)
            if size_bytes > limit:
                raise InvalidRequestError(f"The file has more than {limit:,} bytes.", param="file")
            digest.update(piece)
            await run_in_threadpool(file.write, piece)
        file.seek(0)
        yield Upload(file, digest.hexdigest(), size_bytes)
