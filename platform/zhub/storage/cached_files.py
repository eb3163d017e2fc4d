"""What a machine keeps of fetched files, so that they need not be fetched again: at most half of its disk.

Many processes of a machine share the directory, and none of them owns it: whoever is about to fetch looks whether
something has to go first.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("zhub.storage")

# Folders of files and directories that are fetched and dropped whole. What the Hub's own library keeps is its own.
FOLDERS = ("experts", "datasets", "base_models", "bases")
DISK_SHARE = 0.5
# What was fetched or found later than this stays: a job may open it again. Longer ones have read their files by then.
USED_WITHIN_S = 86400.0


@dataclass(frozen=True)
class _Entry:
    path: Path
    size_bytes: int
    used_at: float


def drop_unused(cache_dir: Path, *, most_bytes: int | None = None) -> int:
    """Delete what was used longest ago until no more than ``most_bytes`` are left; return how many bytes went.

    ``most_bytes`` is by default half of the disk. What was used within a day stays in any case. A file that another
    process deletes meanwhile, or that cannot be deleted, is passed over.
    """
    try:
        limit = int(DISK_SHARE * shutil.disk_usage(cache_dir).total) if most_bytes is None else most_bytes
    except FileNotFoundError:
        return 0
    entries = sorted(_entries(cache_dir), key=lambda entry: entry.used_at)
    held = sum(entry.size_bytes for entry in entries)
    before, unused = held, time.time() - USED_WITHIN_S
    for entry in entries:
        if held <= limit or entry.used_at > unused:
            break
        _delete(entry.path)
        held -= entry.size_bytes
    if held < before:
        log.info(
            "%d MB of fetched files were deleted from %s, because they fill more than %d MB of its disk",
            (before - held) >> 20,
            cache_dir,
            limit >> 20,
            extra={"action": "cache_swept"},
        )
    return before - held


def _entries(cache_dir: Path) -> Iterator[_Entry]:
    for folder in FOLDERS:
        try:
            found = list(os.scandir(cache_dir / folder))
        except FileNotFoundError:
            continue
        for entry in found:
            files = list(_files(entry))
            used_at = max((stat.st_mtime for stat in files), default=time.time())
            yield _Entry(Path(entry.path), sum(stat.st_size for stat in files), used_at)


def _files(entry: os.DirEntry[str]) -> Iterator[os.stat_result]:
    try:
        if entry.is_dir(follow_symlinks=False):
            for below in os.scandir(entry.path):
                yield from _files(below)
        else:
            yield entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return


def _delete(path: Path) -> None:
    """At once or not at all, for whoever looks for it: a directory is given another name first."""
    doomed = path.with_name(f".{path.name}.deleted")
    try:
        path.replace(doomed)
    except OSError:
        return
    if doomed.is_dir():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink(missing_ok=True)
