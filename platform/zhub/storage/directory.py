"""An object store in a directory."""

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, ClassVar

from zhub.errors import ObjectMissingError, StoreAwayError, StoreError
from zhub.manifest import CHUNK_BYTES
from zhub.storage.listed import StoredObject

MARK = ".zhub-store"  # in the directory of a store that was written to


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
            self._prepare(path)
            with replacing(path) as target:
                shutil.copyfileobj(file, target, CHUNK_BYTES)

    def put_absent(self, key: str, file: BinaryIO) -> bool:
        path = self._path(key)
        with self._translated(key):
            self._prepare(path)
            if path.exists():
                return False
            with _beside(path) as temporary:
                with temporary.open("wb") as target:
                    shutil.copyfileobj(file, target, CHUNK_BYTES)
                    _to_disk(target)
                try:
                    os.link(temporary, path)  # noqa: PTH200  (as atomic as a rename, and fails where there is a file)
                except FileExistsError:
                    return False
                except OSError:  # a disk without hard links
                    temporary.replace(path)
                _names_to_disk(path.parent)
        return True

    def _prepare(self, path: Path) -> None:
        if self.root not in self._marked:
            self.root.mkdir(exist_ok=True)
            (self.root / MARK).touch()
            self._marked.add(self.root)
        path.parent.mkdir(parents=True, exist_ok=True)

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
        return (listed.key for listed in self.listing(prefix))

    def listing(self, prefix: str) -> Iterator[StoredObject]:
        top = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self.root
        with self._translated(prefix):
            for path in top.rglob("*"):
                key = path.relative_to(self.root).as_posix()
                if not key.startswith(prefix) or key == MARK or path.name.startswith(".writing-"):
                    continue
                # A file that goes away within the listing is no object of it.
                with suppress(FileNotFoundError):
                    about = path.stat()
                    if stat.S_ISREG(about.st_mode):
                        yield StoredObject(key, about.st_size, datetime.fromtimestamp(about.st_mtime, UTC))
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


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` that takes its name once it is whole and on disk, or vanishes."""
    with _beside(path) as temporary:
        with temporary.open("wb") as file:
            yield file
            _to_disk(file)
        temporary.replace(path)
        _names_to_disk(path.parent)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """The name of a file beside ``path``, which is gone at the end."""
    temporary = path.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _names_to_disk(directory: Path) -> None:
    """A new name is on disk only once its directory is: the row that comes after must not outlive it."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
