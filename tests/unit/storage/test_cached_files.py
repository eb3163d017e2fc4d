"""What a machine keeps of fetched files, and what goes first."""

import hashlib
import io
import os
import time
from pathlib import Path

import pytest

from zhub.storage.cached_files import USED_WITHIN_S, drop_unused
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import fetch

OLD = USED_WITHIN_S + 60


def written(path: Path, *, size: int = 100, age_s: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    used_at = time.time() - age_s
    os.utime(path, (used_at, used_at))
    return path


def test_what_was_used_longest_ago_goes_until_the_rest_fits(tmp_path: Path) -> None:
    oldest = written(tmp_path / "experts" / "a.safetensors", age_s=OLD + 2)
    older = written(tmp_path / "datasets" / "b", age_s=OLD + 1)
    newer = written(tmp_path / "experts" / "c.safetensors", age_s=OLD)
    assert drop_unused(tmp_path, most_bytes=200) == 100
    assert [path.exists() for path in (oldest, older, newer)] == [False, True, True]


def test_a_directory_goes_whole_and_counts_as_used_when_its_newest_file_was(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        written(tmp_path / "base_models" / "old" / name)
    used = written(tmp_path / "bases" / "used" / "00000.safetensors")
    written(used.with_name("00001.safetensors"), age_s=60)
    assert drop_unused(tmp_path, most_bytes=0) == 200
    assert list((tmp_path / "base_models").iterdir()) == [] and used.exists()


def test_what_was_used_today_stays_however_full_it_is(tmp_path: Path) -> None:
    used = written(tmp_path / "experts" / "a.safetensors", age_s=60)
    assert drop_unused(tmp_path, most_bytes=0) == 0
    assert used.exists()


def test_nothing_goes_while_all_fits_on_half_of_the_disk(tmp_path: Path) -> None:
    old = written(tmp_path / "experts" / "a.safetensors")
    assert drop_unused(tmp_path) == 0 and old.exists()


def test_what_others_keep_beside_it_stays(tmp_path: Path) -> None:
    others = [written(tmp_path / "hub" / "models--x" / "blob"), written(tmp_path / "notes.txt")]
    assert drop_unused(tmp_path, most_bytes=0) == 0
    assert all(path.exists() for path in others)


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert drop_unused(tmp_path / "absent", most_bytes=0) == 0


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_found_again_counts_as_used(tmp_path: Path, times: int) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("z", io.BytesIO(b"z"))
    path = tmp_path / "cache" / "experts" / "z.safetensors"
    for _ in range(times):
        fetch(store, "z", path, sha256=hashlib.sha256(b"z").hexdigest())
        aged = time.time() - OLD
        os.utime(path, (aged, aged))
    fetch(store, "z", path, sha256=hashlib.sha256(b"z").hexdigest())
    assert drop_unused(tmp_path / "cache", most_bytes=0) == 0 and path.exists()
