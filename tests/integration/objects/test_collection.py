"""Objects that no row names are removed, and none that a row names or comes to name at the same moment."""

import hashlib
import io
import os
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session, tenant_session
from zhub.datasets import files
from zhub.errors import UnavailableError
from zhub.manifest import MANIFEST_FILE
from zhub.objects import references, reservations
from zhub.objects.collection import Collected, collect
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import base_file_key, dataset_key
from zhub.storage.listed import StoredObject
from zhub.storage.object_store import put_content
from zhub.tenancy.keys import Caller

# What is published is made to fit files, which the database refuses.
pytestmark = pytest.mark.usefixtures("unfrozen")
DAY = timedelta(days=1)
END = (
    "UPDATE jobs SET finished_at = now() - make_interval(hours => :hours),"
    " state = CASE WHEN finished_at IS NULL THEN 'cancelled' ELSE state END"
)


@pytest.fixture
def put(store: DirectoryStore) -> Callable[..., str]:
    """Store an object that was there for so long already; return its key."""

    def make(key: str, *, days: float = 3) -> str:
        store.put(key, io.BytesIO(key.encode()))
        then = time.time() - days * 86_400
        os.utime(store.root / key, (then, then))
        return key

    return make


@pytest.fixture
def run(system_engine: Engine, store: DirectoryStore) -> Callable[..., tuple[Collected, set[str]]]:
    """Collect; return what was told, and which keys are left."""

    def make(*, dry_run: bool = False, grace: timedelta = DAY) -> tuple[Collected, set[str]]:
        found = collect(system_engine, store, grace=grace, dry_run=dry_run)
        return found, set(store.keys(""))

    return make


def end_job(engine: Engine, job_id: uuid.UUID, *, days: float = 3) -> None:
    with system_session(engine) as session:
        session.execute(
            text(f"{END} WHERE id = :id"),
            {"hours": int(days * 24), "id": job_id},
        )


def job_key(caller: Caller, job_id: uuid.UUID, name: str) -> str:
    return f"t/{caller.org_id.hex}/jobs/{job_id.hex}/{name}"


def test_what_nobody_names_goes_and_what_is_fresh_or_unknown_stays(
    put: Callable[..., str], run: Callable[..., Any], caller: Caller
) -> None:
    orphans = {
        put(dataset_key(caller.org_id, "a" * 64)),
        put(base_file_key("b" * 64)),
        put(job_key(caller, uuid.uuid4(), "import/z.safetensors")),
        put(job_key(caller, uuid.uuid4(), "attempts/1/logs/000000.jsonl")),
    }
    kept = {
        put(dataset_key(caller.org_id, "c" * 64), days=0.1),
        put("bases/0f-12/basis.json"),
        put("of-a-newer-release/x"),
    }
    told, left = run(dry_run=True)
    assert (told.unnamed, told.removed, left) == (4, 0, orphans | kept)
    told, left = run()
    assert (told.objects, told.unnamed, told.removed, told.unknown, left) == (7, 4, 4, 2, kept)
    assert told.removed_bytes == sum(map(len, orphans))
    assert run()[0].unnamed == 0


def test_a_datasets_file_stays_until_its_last_row_is_deleted(
    put: Callable[..., str], run: Callable[..., Any], caller: Caller, system_engine: Engine
) -> None:
    key = dataset_key(caller.org_id, "a" * 64)
    about: dict[str, Any] = {"purpose": "fine-tune", "size_bytes": 1, "sha256": "a" * 64}
    with system_session(system_engine) as session:
        names = ("summer.jsonl", "winter.jsonl")
        ids = [files.register(session, caller, filename=name, **about).id for name in names]
    with system_session(system_engine) as session:
        session.execute(text(END), {"hours": 72})
    put(key)
    for file_id in ids:
        assert run()[1] == {key}
        with system_session(system_engine) as session:
            session.execute(text("UPDATE dataset_versions SET deleted_at = now() WHERE id = :id"), {"id": file_id})
    assert run()[1] == set()


@pytest.mark.parametrize("named_by", ["running job", "job that makes rows"])
def test_a_deleted_file_stays_while_a_job_may_read_it(
    put: Callable[..., str], run: Callable[..., Any], make_job: Callable[..., uuid.UUID], caller: Caller,
    system_engine: Engine, named_by: str,
) -> None:  # fmt: skip
    key = put(dataset_key(caller.org_id, "a" * 64))
    is_running = named_by == "running job"
    spec = {"training_file": {"key": key}} if is_running else {}
    job_id = make_job(caller, kind="train" if is_running else references.ROWS_OF_WORKERS[0], spec=spec)
    assert run()[1] == {key}
    end_job(system_engine, job_id, days=0.5)
    assert run()[1] == {key}, "it may be redriven at once"
    end_job(system_engine, job_id)
    assert run()[1] == set()


def test_what_a_job_left_goes_once_it_has_ended_but_for_its_version_and_checkpoints(
    put: Callable[..., str], run: Callable[..., Any], publish_version: Callable[..., str], caller: Caller,
    system_engine: Engine, make_base_model: Callable[..., uuid.UUID],
) -> None:  # fmt: skip
    make_base_model()
    publish_version()
    with system_session(system_engine) as session:
        (job_id,) = session.scalars(text("SELECT job_id FROM expert_versions"))
    prefix = job_key(caller, job_id, "attempts/1")
    with system_session(system_engine) as session:
        session.execute(text("UPDATE expert_versions SET key_prefix = :p"), {"p": prefix})
        session.execute(
            text(
                "INSERT INTO checkpoints (id, org_id, job_id, fence, step, key_prefix, digest, size_bytes, z, metrics)"
                " VALUES (gen_random_uuid(), :org, :job, 1, 1, :prefix, 'd', 1, '{}', '{}')"
            ),
            {"org": caller.org_id, "job": job_id, "prefix": job_key(caller, job_id, "checkpoints/000001-f1")},
        )
    with system_session(system_engine) as session:
        (manifest,) = session.scalars(text("SELECT manifest FROM expert_versions"))
    kept = {put(f"{prefix}/{name}") for name in (MANIFEST_FILE, *(file["name"] for file in manifest["files"]))}
    kept |= {put(job_key(caller, job_id, "checkpoints/000001-f1/z.safetensors")), put(f"{prefix}/logs/000000.jsonl")}
    left_over = {put(job_key(caller, job_id, name)) for name in ("attempts/2/z.safetensors", "checkpoints/000002-f1/z")}
    end_job(system_engine, job_id, days=0.1)
    assert run()[1] == kept | left_over
    end_job(system_engine, job_id)
    assert run()[1] == kept


def test_a_key_that_is_reserved_is_not_removed_and_one_that_is_being_removed_is_not_reserved(
    put: Callable[..., str], run: Callable[..., Any], caller: Caller, api_engine: Engine, system_engine: Engine
) -> None:
    key = put(dataset_key(caller.org_id, "a" * 64))
    with tenant_session(api_engine, caller.org_id) as session:
        reservations.reserve(session, key)
    assert run()[1] == {key}
    with system_session(system_engine) as session:
        session.execute(text("UPDATE object_reservations SET kept_until = now() - interval '1 s'"))
        assert reservations.begin_removal(session, key)
        assert not reservations.begin_removal(session, key)
    again = pytest.raises(UnavailableError, match="Send the same file again")
    with again, tenant_session(api_engine, caller.org_id) as session:
        reservations.reserve(session, key)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE object_reservations SET removed_until = now() - interval '1 s'"))
    with tenant_session(api_engine, caller.org_id) as session:
        reservations.reserve(session, key)  # whoever removed it has died


def test_the_api_reserves_keys_of_its_tenant_alone(caller: Caller, api_engine: Engine) -> None:
    with pytest.raises(Exception, match="row-level security"), tenant_session(api_engine, caller.org_id) as session:
        reservations.reserve(session, dataset_key(uuid.uuid4(), "a" * 64))


def test_no_row_is_left_without_its_bytes_while_files_come_and_go_and_the_collection_runs(
    api_engine: Engine, system_engine: Engine, store: DirectoryStore, caller: Caller
) -> None:
    """Three uploaders each store a few files and delete them again, as the collection goes through, without grace."""
    ended, lost, rounds = threading.Event(), [], [0]

    def upload(seed: int) -> None:
        for turn in range(40):
            content = f"{seed} {turn % 3}".encode()  # its own: it ends its reservations, and nobody else's
            sha256 = hashlib.sha256(content).hexdigest()
            key = dataset_key(caller.org_id, sha256)
            try:
                with tenant_session(api_engine, caller.org_id) as session:
                    reservations.reserve(session, key)
                    kept = text("SELECT kept_until FROM object_reservations WHERE key = :k")
                    mine = session.scalar(kept, {"k": key})
            except UnavailableError:
                continue  # it is being removed: the client sends it again
            put_content(store, key, io.BytesIO(content), size_bytes=len(content))
            with tenant_session(api_engine, caller.org_id) as session:
                row = files.register(
                    session, caller, filename=f"{seed}-{turn}.jsonl", purpose="user_data", size_bytes=len(content),
                    sha256=sha256,
                )  # fmt: skip
                row_id = row.id
            if not (store.root / key).exists():
                lost.append(key)
            with system_session(system_engine) as session:
                session.execute(text("UPDATE dataset_versions SET deleted_at = now() WHERE id = :id"), {"id": row_id})
                session.execute(text(END), {"hours": 24})
                # The reservation is over, as after hours; not that of who has reserved the key since.
                over = "UPDATE object_reservations SET kept_until = now() WHERE key = :k AND kept_until = :mine"
                session.execute(text(over), {"k": key, "mine": mine})

    def sweep() -> None:
        while not ended.is_set():
            rounds[0] += collect(system_engine, store, grace=timedelta(0), dry_run=False).removed

    uploaders = [threading.Thread(target=upload, args=(seed,)) for seed in range(3)]
    collector = threading.Thread(target=sweep)
    for thread in (collector, *uploaders):
        thread.start()
    for thread in uploaders:
        thread.join()
    ended.set()
    collector.join()
    assert lost == []
    assert rounds[0] > 3, "the collection must have removed something meanwhile"


def test_a_pass_holds_a_page_and_not_the_listing(
    put: Callable[..., str], system_engine: Engine, store: DirectoryStore, caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("zhub.objects.collection.PAGE", 4)
    for number in range(10):
        put(dataset_key(caller.org_id, f"{number:064x}"))
    asked: list[int] = []
    original = references.unnamed

    def counting(session: Any, keys: Any, *, grace: timedelta) -> set[str]:
        asked.append(len(keys))
        return original(session, keys, grace=grace)

    monkeypatch.setattr("zhub.objects.collection.unnamed", counting)
    seen: list[StoredObject] = []
    found = collect(system_engine, store, dry_run=True, on_unnamed=lambda listed, _removed: seen.append(listed))
    assert asked == [4, 4, 2] and found.unnamed == len(seen) == 10
