"""Experts that were made elsewhere: what the API refuses before any worker, and the version that comes of the rest."""

import io
import json
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused
from claims import admit_queued, claim_one
from sqlalchemy import Engine
from suites import manifest_of

from zhub.database.sessions import system_session
from zhub.kinds.outcomes import record_success
from zhub.manifest import ROUTING_FILE, Z_FILE, FileEntry, Manifest, Origin, Probe
from zhub.registry.resolve import resolve
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "/data/tiny"}
PROBE = Probe(prompts=4, tokens=40, mean_kl=0.1, max_kl=0.5)


def push(client: Client, files: dict[str, bytes] | None = None, **fields: Any) -> Any:
    sent = files or {"adapter_config.json": json.dumps(CONFIG).encode(), "adapter_model.safetensors": b"weights"}
    return client.post(
        "/expert_imports",
        body={"name": "moved", "base_model": "tiny"} | fields,
        files=[("files", (name, io.BytesIO(content))) for name, content in sent.items()],
        options={"headers": {"Content-Type": "multipart/form-data"}},
        cast_to=object,
    )


@pytest.fixture
def publish_import(system_engine: Engine) -> Callable[..., None]:
    """Do what a worker does with the import that waits, at once."""

    def make(*names: str, **fields: Any) -> None:
        with system_session(system_engine) as session:
            admit_queued(session)
            claim = claim_one(session, "import")
        assert claim is not None
        spec = claim.spec
        origin = Origin(
            format="peft", imported_by=spec["imported_by"], base_check=spec["base_check"], config=spec["config"],
            files=[], routing_dataset=None, probe=PROBE,
        )  # fmt: skip
        files = [FileEntry(name=name, size_bytes=1, sha256=name) for name in (Z_FILE, *names)]
        manifest: Manifest = manifest_of(
            claim.job_id, fence=claim.fence, files=files, recipe="imported", best_step=-1, **fields
        ).model_copy(update={"origin": origin, "dataset_digest": None})
        result = {"manifest": manifest.model_dump(mode="json"), "key_prefix": "made", "trained_tokens": 0}
        with system_session(system_engine) as session:
            record_success(session, claim.job_id, claim.fence, result)

    return make


def test_an_import_becomes_a_version_that_is_shown_with_its_origin(
    client: Client, checked_file: str, store: DirectoryStore, publish_import: Callable[..., None]
) -> None:
    made = push(client)
    assert (made["status"], made["version"]) == ("queued", None)
    assert "whether the weights are the same is not known" in made["base_check"]
    (key,) = [key for key in store.keys("t/") if key.endswith("adapter_model.safetensors")]
    assert b"".join(store.open(key)) == b"weights"
    publish_import()
    ended: Any = client.get(f"/expert_imports/{made['id']}", cast_to=object)
    assert (ended["status"], ended["version"]["id"]) == ("succeeded", "main.moved@v1")
    assert ended["version"]["job"] == made["id"] and ended["version"]["manifest"]["origin"]["config"] == CONFIG
    shown: Any = client.get("/experts/main.moved@v1", cast_to=object)
    assert shown == ended["version"]


def test_auto_never_chooses_an_expert_whose_prompts_nobody_knows(
    client: Client, checked_file: str, publish_import: Callable[..., None], system_engine: Engine, caller: Caller
) -> None:
    for routing in ([], [ROUTING_FILE]):
        push(client)
        publish_import(*routing)
        number = 2 if routing else 1
        client.put("/experts/main.moved/aliases/prod", body={"version": f"main.moved@v{number}"}, cast_to=object)
        with system_session(system_engine) as session:
            candidates = resolve(session, caller, "auto", []).candidates
        assert [candidate.record.name for candidate in candidates or []] == ["main.moved@v2"] * bool(routing)


def test_an_expert_whose_prompts_nobody_knows_keeps_no_prompt_from_others(
    client: Client,
    publish: Callable[..., str],
    publish_import: Callable[..., None],
    system_engine: Engine,
    caller: Caller,
) -> None:
    name = publish()
    client.put("/experts/main.summer/aliases/prod", body={"version": name}, cast_to=object)
    push(client)
    publish_import()
    with system_session(system_engine) as session:
        assert resolve(session, caller, "auto", []).others == []


def test_an_imported_version_answers_by_its_name(
    client: Client, checked_file: str, publish_import: Callable[..., None]
) -> None:
    push(client)
    publish_import()
    with pytest.raises(openai.InternalServerError, match="Serving does not answer"):  # all before serving went well
        client.chat.completions.create(model="main.moved@v1", messages=[{"role": "user", "content": "x"}])


def test_an_import_that_waits_can_be_explained_and_cancelled(client: Client, checked_file: str) -> None:
    made = push(client)
    queue: Any = client.get(f"/expert_imports/{made['id']}/queue", cast_to=object)
    assert (queue["object"], queue["job_id"]) == ("expert_import.queue", made["id"])
    cancelled: Any = client.post(f"/expert_imports/{made['id']}/cancel", cast_to=object)
    assert cancelled["status"] == "cancelled"


def changed(**settings: Any) -> dict[str, bytes]:
    return {
        "adapter_config.json": json.dumps(CONFIG | settings).encode(),
        "adapter_model.safetensors": b"weights",
    }


@pytest.mark.parametrize(
    ("files", "param", "told"),
    [
        (changed(modules_to_save=["lm_head"]), "modules_to_save", "replaces whole modules"),
        (changed(init_lora_weights="pissa"), "init_lora_weights", "changed the weights of the base"),
        (changed(r="4"), "r", "adapter_config.json: r"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b""}, "files", "is a pickle"),
        ({"adapter_config.json": b"{}"}, "files", "Give adapter_config.json and adapter_model.safetensors"),
        (changed() | {"adapter_config.json": b"{"}, "files", "cannot be read as JSON"),
        (changed() | {"adapter_config.json": b"[]"}, "files", "must hold a JSON object"),
        (changed() | {"adapter_config.json": b'{"r": NaN}'}, "files", "NaN is no number"),
        (changed() | {"adapter_config.json": b'{"r": "\\u0000"}'}, "files", "NUL"),
        (changed() | {"adapter_config.json": b'{"r": "\\ud800"}'}, "files", "cannot be read as JSON"),
        ({"manifest.json": b"{}", "z.safetensors": b""}, "files", "not the manifest of a version"),
    ],
)
def test_what_cannot_become_a_version_is_refused_before_it_is_stored(
    client: Client, checked_file: str, store: DirectoryStore, files: dict[str, bytes], param: str, told: str
) -> None:
    before = set(store.keys("t/"))
    error = refused(lambda: push(client, files))
    assert (error.status_code, error.param) == (400, param)
    assert told in error.message
    assert set(store.keys("t/")) == before


def test_a_version_of_another_basis_or_with_other_bytes_is_refused(client: Client, checked_file: str) -> None:
    manifest = manifest_of(uuid.uuid4(), files=[FileEntry(name=Z_FILE, size_bytes=1, sha256="0" * 64)])
    for told, changes in {"is noise on another": {"basis_fingerprint": "other"}, "is not the file that": {}}.items():
        content = manifest.model_copy(update=changes).canonical()
        error = refused(partial(push, client, {"manifest.json": content, "z.safetensors": b"z"}))
        assert error.status_code == 400 and told in error.message


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"base_model": "none"}, 404), ({"name": "No name!"}, 400), ({"dataset": "file-" + "0" * 32}, 404),
     ({"cluster": "nowhere"}, 400), ({"weight": "3"}, 400)],
)  # fmt: skip
def test_names_that_are_none_are_refused(
    client: Client, checked_file: str, fields: dict[str, Any], status: int
) -> None:
    assert refused(lambda: push(client, **fields)).status_code == status
