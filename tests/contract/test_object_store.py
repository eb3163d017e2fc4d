"""What every object store promises: a directory, a real S3 server, and the simulated one that unit tests may use."""

import hashlib
import io
import random
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from zhub.embedded.moving import move_objects
from zhub.errors import DigestMismatchError, ObjectMissingError, StoreAwayError, StoreError
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import ObjectStore, fetch, open_store, put_content, put_path

KIB, MIB = 1 << 10, 1 << 20
SEVERAL_PARTS = 36 * MIB  # two whole parts and a rest
UNREACHABLE_S = 90.0


class InterruptedReadError(Exception):
    """Raised by a file in the middle of its being read."""


class BreakingFile(io.BytesIO):
    """A file whose end cannot be read."""

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        if not piece:
            raise InterruptedReadError
        return piece


@pytest.fixture(params=["directory", "moto", pytest.param("radosgw", marks=pytest.mark.s3)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store with nothing in it."""
    if request.param == "directory":
        return (tmp_path / "store").as_uri()
    return s3_url(request.getfixturevalue(request.param))


@pytest.fixture
def store(store_url: str) -> ObjectStore:
    return open_store(store_url)


def s3_url(endpoint: str) -> str:
    return f"s3://contract/{uuid.uuid4().hex}?endpoint_url={endpoint}"


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def content(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.open(key))


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 16 * MIB, SEVERAL_PARTS])
def test_what_was_put_comes_back(store: ObjectStore, size: int) -> None:
    expected = random_bytes(size)
    store.put("a/key", io.BytesIO(expected))
    assert store.size("a/key") == size
    assert content(store, "a/key") == expected


def test_put_stores_the_rest_of_a_file_that_was_read_from(store: ObjectStore) -> None:
    file = io.BytesIO(b"header and body")
    file.seek(len(b"header "))
    store.put("key", file)
    assert content(store, "key") == b"and body"


@pytest.mark.parametrize("before,after", [(64, 1), (1, SEVERAL_PARTS), (SEVERAL_PARTS, 1), (64, 0)])
def test_a_second_put_replaces_the_first(store: ObjectStore, before: int, after: int) -> None:
    store.put("key", io.BytesIO(random_bytes(before)))
    store.put("key", io.BytesIO(random_bytes(after)))
    assert store.size("key") == after
    assert content(store, "key") == random_bytes(after)


@pytest.mark.parametrize("size", [64, SEVERAL_PARTS])
def test_put_absent_stores_once_and_never_replaces(store: ObjectStore, size: int) -> None:
    assert store.put_absent("key", io.BytesIO(random_bytes(size)))
    assert not store.put_absent("key", io.BytesIO(b"another"))
    assert content(store, "key") == random_bytes(size)
    store.delete("key")
    assert store.put_absent("key", io.BytesIO(b"another"))


def test_of_concurrent_puts_of_what_is_absent_the_object_is_one_of_them_whole(store: ObjectStore) -> None:
    def put(writer: int) -> bool:
        return store.put_absent("key", io.BytesIO(bytes([writer]) * MIB))

    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(put, range(8)))
    found = content(store, "key")
    assert len(found) == MIB and len(set(found)) == 1
    assert stored[found[0]] and any(stored)
    if isinstance(store, DirectoryStore):
        assert sum(stored) == 1


@pytest.mark.parametrize("size", [64 * KIB, SEVERAL_PARTS])
def test_an_interrupted_put_absent_leaves_no_object(store: ObjectStore, size: int) -> None:
    with pytest.raises(InterruptedReadError):
        store.put_absent("key", BreakingFile(random_bytes(size)))
    assert list(store.keys("")) == []


def test_content_is_stored_once_and_mended_where_it_was_cut_short(store: ObjectStore) -> None:
    whole = random_bytes(MIB)
    for before in (None, whole, whole[:-1]):
        if before is not None:
            store.put("key", io.BytesIO(before))
        put_content(store, "key", io.BytesIO(whole), size_bytes=MIB)
        assert content(store, "key") == whole


def test_content_of_another_size_than_it_should_have_is_refused(store: ObjectStore) -> None:
    with pytest.raises(StoreError, match="key: 9 bytes were stored, and the store has 5"):
        put_content(store, "key", io.BytesIO(b"short"), size_bytes=9)


def test_what_moves_to_another_store_is_there_whole_and_is_not_sent_again(store: ObjectStore, tmp_path: Path) -> None:
    source = DirectoryStore(tmp_path / "source")
    sizes = {"a/empty": 0, "a/small": 5, "large": SEVERAL_PARTS}
    for key, size in sizes.items():
        source.put(key, io.BytesIO(random_bytes(size)))
    store.put("a/small", io.BytesIO(b"cut"))  # of an earlier try
    sent: list[bool] = []
    for expected in ([True] * 3, [False] * 3):
        sent.clear()
        moved = move_objects(source, store, lambda _count, _bytes, is_sent: sent.append(is_sent))
        assert (moved, sent) == ((3, sum(sizes.values())), expected)
        assert all(content(store, key) == random_bytes(size) for key, size in sizes.items())


def test_a_listing_has_sizes_and_times(store: ObjectStore) -> None:
    before = datetime.now(UTC) - timedelta(minutes=5)
    store.put("a/key", io.BytesIO(b"four"))
    (listed,) = store.listing("a/")
    assert (listed.key, listed.size_bytes) == ("a/key", 4)
    assert before < listed.modified_at < before + timedelta(minutes=10)


def test_a_missing_object_is_missing_before_the_first_piece(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissingError) as opened:
        store.open("no/such/key")
    with pytest.raises(ObjectMissingError) as asked:
        store.size("no/such/key")
    assert opened.value.key == asked.value.key == "no/such/key"


def test_deleting_twice_is_no_error(store: ObjectStore) -> None:
    store.put("a/key", io.BytesIO(b"x"))
    store.delete("a/key")
    store.delete("a/key")
    with pytest.raises(ObjectMissingError):
        store.size("a/key")
    assert list(store.keys("")) == []


def test_keys_are_found_by_any_prefix(store: ObjectStore) -> None:
    keys = {"a/b1", "a/b2/c", "a/c", "ab", "z"}
    for key in keys:
        store.put(key, io.BytesIO(key.encode()))
    for prefix in ("", "a", "a/", "a/b", "a/b2/c", "a/b2/c/", "zz", "none/", "none/at/all"):
        assert sorted(store.keys(prefix)) == sorted(key for key in keys if key.startswith(prefix)), prefix


@pytest.mark.parametrize("key", ["with space/ü+=&%25.txt", "#?:;@,~'()[]!$", "t/-_.0"])
def test_a_key_may_hold_any_printable_character(store: ObjectStore, key: str) -> None:
    store.put(key, io.BytesIO(b"x"))
    assert content(store, key) == b"x"
    assert list(store.keys("")) == [key]


@pytest.mark.parametrize("size", [64 * KIB, SEVERAL_PARTS])
def test_an_interrupted_put_leaves_no_object(store: ObjectStore, size: int) -> None:
    with pytest.raises(InterruptedReadError):
        store.put("key", BreakingFile(random_bytes(size)))
    with pytest.raises(ObjectMissingError):
        store.size("key")
    assert list(store.keys("")) == []


@pytest.mark.parametrize("size", [64 * KIB, SEVERAL_PARTS])
def test_an_interrupted_put_leaves_what_was_there(store: ObjectStore, size: int) -> None:
    store.put("key", io.BytesIO(b"before"))
    with pytest.raises(InterruptedReadError):
        store.put("key", BreakingFile(random_bytes(size)))
    assert content(store, "key") == b"before"


@pytest.mark.parametrize("size", [MIB, 17 * MIB])
def test_of_concurrent_puts_one_stays_whole(store: ObjectStore, size: int) -> None:
    def put(writer: int) -> None:
        store.put("key", io.BytesIO(bytes([writer]) * size))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(8)))
    found = content(store, "key")
    assert len(found) == size
    assert len(set(found)) == 1
    assert list(store.keys("")) == ["key"]


def test_a_file_goes_in_by_its_path_and_comes_out_by_its_digest(store: ObjectStore, tmp_path: Path) -> None:
    expected = random_bytes(3 * MIB)
    (tmp_path / "file").write_bytes(expected)
    put_path(store, "key", tmp_path / "file")
    fetched = fetch(store, "key", tmp_path / "new" / "file", sha256=hashlib.sha256(expected).hexdigest())
    assert fetched.read_bytes() == expected


def test_fetching_refuses_other_bytes_and_leaves_nothing_behind(store: ObjectStore, tmp_path: Path) -> None:
    store.put("key", io.BytesIO(b"tampered with"))
    digest = hashlib.sha256(b"as it was").hexdigest()
    with pytest.raises(DigestMismatchError) as refused:
        fetch(store, "key", tmp_path / "new" / "file", sha256=digest)
    assert refused.value.expected == digest
    assert refused.value.actual == hashlib.sha256(b"tampered with").hexdigest()
    assert list((tmp_path / "new").iterdir()) == []


def test_fetching_replaces_a_file_that_was_damaged_and_keeps_one_that_was_not(
    store: ObjectStore, tmp_path: Path
) -> None:
    store.put("key", io.BytesIO(b"as it was"))
    digest = hashlib.sha256(b"as it was").hexdigest()
    (tmp_path / "file").write_bytes(b"damaged")
    assert fetch(store, "key", tmp_path / "file", sha256=digest).read_bytes() == b"as it was"
    store.delete("key")
    assert fetch(store, "key", tmp_path / "file", sha256=digest).read_bytes() == b"as it was"


def test_two_stores_in_one_bucket_do_not_see_each_other(store: ObjectStore, store_url: str) -> None:
    place, _, options = store_url.partition("?")
    other = open_store(f"{place}-other?{options}" if options else f"{place}-other")
    store.put("key", io.BytesIO(b"x"))
    assert list(other.keys("")) == []
    with pytest.raises(ObjectMissingError):
        other.size("key")


@pytest.mark.s3
def test_a_listing_longer_than_a_page_is_whole(radosgw: str) -> None:
    store = open_store(s3_url(radosgw))
    keys = [f"t/{number:04}" for number in range(1001)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, io.BytesIO(b"")), keys))
    assert sorted(store.keys("t/")) == keys


VERBS: dict[str, Callable[[ObjectStore, str], object]] = {
    "put": lambda store, key: store.put(key, io.BytesIO(b"x")),
    "put in parts": lambda store, key: store.put(key, io.BytesIO(bytes(17 * MIB))),
    "open": lambda store, key: store.open(key),
    "size": lambda store, key: store.size(key),
    "keys": lambda store, key: list(store.keys(key)),
    "delete": lambda store, key: store.delete(key),
}


def failure_of(verb: str, store: ObjectStore, key: str) -> StoreError:
    with pytest.raises(StoreError) as failed:
        VERBS[verb](store, key)
    return failed.value


@pytest.mark.parametrize("verb", ["put", "open", "size", "delete"])
@pytest.mark.parametrize(
    "key", ["", "/", "/etc/passwd", "..", "../outside", "a/../../outside", "a/..", "a//b", "a/./b", "a/", "nul\0"]
)
def test_a_directory_refuses_what_is_no_path_below_it(tmp_path: Path, verb: str, key: str) -> None:
    store = DirectoryStore(tmp_path / "store")
    assert failure_of(verb, store, key).key == key
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("prefix", ["/etc/", "../", "a/../../"])
def test_a_directory_lists_nothing_outside_of_it(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    failure_of("keys", DirectoryStore(tmp_path / "store"), prefix)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("left", ["nothing", "an empty mount point"])
def test_a_directory_that_is_away_is_an_error_and_not_an_empty_store(tmp_path: Path, verb: str, left: str) -> None:
    disk = tmp_path / "disk"
    store = DirectoryStore(disk)
    store.put("a/key", io.BytesIO(b"x"))
    disk.rename(tmp_path / "unmounted")
    if left != "nothing":
        disk.mkdir()
    failure = failure_of(verb, store, "a/key")
    assert isinstance(failure, StoreAwayError) and (failure.key, failure.directory) == ("a/key", str(disk))
    if left != "nothing":
        assert list(disk.iterdir()) == []
        disk.rmdir()
    (tmp_path / "unmounted").rename(disk)
    assert content(store, "a/key") == b"x"
    assert list(store.keys("")) == ["a/key"]


@pytest.mark.parametrize("seen", ["when it was opened", "later"])
def test_who_has_seen_a_directory_notices_that_it_goes_away(tmp_path: Path, seen: str) -> None:
    early, writer = DirectoryStore(tmp_path / "disk"), DirectoryStore(tmp_path / "disk")
    writer.put("key", io.BytesIO(b"x"))
    reader = DirectoryStore(tmp_path / "disk") if seen == "when it was opened" else early
    if seen == "later":
        assert reader.size("key") == 1
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    for verb in VERBS:
        assert isinstance(failure_of(verb, reader, "key"), StoreAwayError)
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_directory_with_nothing_above_it_is_away_also_for_who_looks_first(tmp_path: Path, verb: str) -> None:
    store = DirectoryStore(tmp_path / "mount point" / "zhub" / "store")
    (tmp_path / "mount point").mkdir()
    assert isinstance(failure_of(verb, store, "key"), StoreAwayError)
    assert list((tmp_path / "mount point").iterdir()) == []


def test_a_listing_that_loses_its_directory_is_no_short_listing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "disk")
    for name in ("a", "b"):
        store.put(name, io.BytesIO(b"x"))
    listing = store.keys("")
    next(listing)
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with pytest.raises(StoreAwayError):
        list(listing)


@pytest.mark.parametrize("made", [False, True])
def test_a_directory_that_nobody_has_written_to_is_an_empty_store(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "new").mkdir()
    store = DirectoryStore(tmp_path / "new")
    assert list(store.keys("")) == []
    store.delete("key")
    for verb in ("open", "size"):
        assert isinstance(failure_of(verb, store, "key"), ObjectMissingError)
    store.put("key", io.BytesIO(b"x"))
    assert content(DirectoryStore(tmp_path / "new"), "key") == b"x"


def test_an_unreachable_server_is_an_error_that_names_the_key_and_comes_in_time(unused_port: int) -> None:
    store = open_store(f"s3://bucket/prefix?endpoint_url=http://127.0.0.1:{unused_port}")
    started = time.monotonic()
    with ThreadPoolExecutor(len(VERBS)) as pool:
        failures = list(pool.map(lambda verb: failure_of(verb, store, f"key of {verb}"), VERBS))
    assert time.monotonic() - started < UNREACHABLE_S
    for verb, failure in zip(VERBS, failures, strict=True):
        assert failure.key == f"key of {verb}"
        assert f"key of {verb}" in str(failure)
        assert not isinstance(failure, ObjectMissingError)


@pytest.mark.s3
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_an_error_and_not_a_missing_object(
    radosgw: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3_url(radosgw)
    open_store(url).put("key", io.BytesIO(b"x"))
    monkeypatch.setenv(name, "WRONG")
    store = open_store(url)
    for verb in VERBS:
        failure = failure_of(verb, store, "key")
        assert failure.key == "key"
        assert not isinstance(failure, ObjectMissingError), verb


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_an_error_that_names_it(radosgw: str) -> None:
    store = open_store(f"s3://no-such-bucket?endpoint_url={radosgw}")
    assert "no-such-bucket" in str(failure_of("put", store, "key"))
