"""What the store has lost is named, its version marked and refused, until the file is back."""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session
from zhub.errors import StoreAwayError
from zhub.manifest import MANIFEST_FILE, Manifest
from zhub.objects.verification import Verified, verify
from zhub.storage.directory import DirectoryStore

# What is published is made to fit files, which the database refuses.
pytestmark = pytest.mark.usefixtures("unfrozen")
Client = openai.OpenAI


@pytest.fixture
def version(
    publish_version: Callable[..., str], make_base_model: Callable[..., Any], store: DirectoryStore,
    system_engine: Engine,
) -> str:  # fmt: skip
    """A version whose files are in the store, whole."""
    make_base_model()
    name = publish_version()
    restore(system_engine, store)
    return name


def restore(engine: Engine, store: DirectoryStore) -> None:
    """Store what the version has: files whose bytes its manifest is made to fit."""
    with system_session(engine) as session:
        manifest = Manifest.model_validate(session.scalars(text("SELECT manifest FROM expert_versions")).one())
        files = [file.model_copy(update={"size_bytes": 3, "sha256": SHA256_OF_ABC}) for file in manifest.files]
        manifest = manifest.model_copy(update={"files": files})
        session.execute(
            text("UPDATE expert_versions SET manifest = :m, digest = :d"),
            {"m": manifest.canonical().decode(), "d": manifest.digest},
        )
    store.put(f"k/{MANIFEST_FILE}", io.BytesIO(manifest.canonical()))
    for file in files:
        store.put(f"k/{file.name}", io.BytesIO(b"abc"))
    with system_session(engine) as session:
        fingerprint = hashlib.sha256(INDEX).hexdigest()
        session.execute(text("UPDATE base_models SET basis_fingerprint = :f"), {"f": fingerprint})
    store.put("bases/tiny/basis.json", io.BytesIO(INDEX))
    store.put("bases/tiny/00000.safetensors", io.BytesIO(b"abc"))


SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
INDEX = b'{"matrices":[{"file":"00000.safetensors","sha256":"' + SHA256_OF_ABC.encode() + b'"}]}'


@pytest.fixture
def run(system_engine: Engine, store: DirectoryStore) -> Callable[..., Verified]:
    return lambda deep=False: verify(system_engine, store, deep=deep)


def test_a_whole_store_is_whole(version: str, run: Callable[..., Verified]) -> None:
    for deep in (False, True):
        found = run(deep)
        assert (found.lost, found.marked, found.whole_again) == ([], [], [])
        assert found.objects >= 2


def test_a_lost_file_is_named_and_its_version_refused_until_it_is_back(
    version: str, run: Callable[..., Verified], store: DirectoryStore, client: Client, system_engine: Engine
) -> None:
    store.delete("k/z.safetensors")
    found = run()
    assert [(lost.named.owner, lost.named.key, lost.why) for lost in found.lost] == [
        (version, "k/z.safetensors", "it is not there")
    ]
    assert found.marked == [version]
    asking = {"model": version, "messages": [{"role": "user", "content": "x"}]}
    error = refused(lambda: client.post("/chat/completions", body=asking, cast_to=object))
    assert error.status_code == 409 and "has lost z.safetensors" in error.message
    exporting = {"model": version, "format": "lora"}
    assert refused(lambda: client.post("/expert_exports", body=exporting, cast_to=object)).status_code == 409
    shown: Any = client.get(f"/experts/{version}", cast_to=object)
    assert shown["lost_files"] == ["z.safetensors"]
    assert run().marked == [], "it is marked already"
    restore(system_engine, store)
    assert run().whole_again == [version]
    with pytest.raises(openai.InternalServerError, match="Serving does not answer"):  # all before serving went well
        client.post("/chat/completions", body=asking, cast_to=object)


def test_other_bytes_of_the_same_size_are_found_by_reading(
    version: str, run: Callable[..., Verified], store: DirectoryStore
) -> None:
    store.put("k/z.safetensors", io.BytesIO(b"abd"))
    assert run().lost == []
    (lost,) = run(True).lost
    assert lost.named.key == "k/z.safetensors" and f"expected {SHA256_OF_ABC}" in lost.why
    store.put("k/z.safetensors", io.BytesIO(b"ab"))
    (lost,) = run().lost
    assert lost.why == "it has 2 bytes, expected 3"


def test_a_store_that_is_away_has_lost_nothing(
    version: str, run: Callable[..., Verified], store: DirectoryStore, system_engine: Engine
) -> None:
    store.root.rename(store.root.with_name("elsewhere"))
    with pytest.raises(StoreAwayError):
        run()
    with system_session(system_engine) as session:
        assert session.scalars(text("SELECT lost_files FROM expert_versions")).all() == [None]


def test_a_lost_file_of_a_basis_or_a_checkpoint_is_named(
    version: str, run: Callable[..., Verified], store: DirectoryStore, system_engine: Engine
) -> None:
    with system_session(system_engine) as session:
        session.execute(
            text(
                "INSERT INTO checkpoints (id, org_id, job_id, fence, step, key_prefix, digest, size_bytes, z, metrics)"
                " SELECT gen_random_uuid(), org_id, job_id, 1, 1, 'c', 'd', 1, :z, '{}' FROM expert_versions"
            ),
            {"z": f'{{"name": "z.safetensors", "size_bytes": 3, "sha256": "{SHA256_OF_ABC}"}}'},
        )
    store.delete("bases/tiny/00000.safetensors")
    found = run()
    assert [lost.named.key for lost in found.lost] == ["c/z.safetensors", "bases/tiny/00000.safetensors"]
    assert found.lost[1].named.owner == "basis of tiny" and found.marked == []
    store.delete("bases/tiny/basis.json")
    assert [lost.named.key for lost in run().lost] == ["c/z.safetensors", "bases/tiny/basis.json"]
