"""Exports of versions: asked for once, fetched file by file, and refused where they would give weights away."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import openai
import pytest
from api_requests import refused
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session
from zhub.registry import exports
from zhub.specs import ExportSpec
from zhub.storage.directory import DirectoryStore
from zhub.tenancy import quotas

Client = openai.OpenAI


def ask(client: Client, version: str, export_format: str = "lora", **fields: Any) -> Any:
    body = {"model": version, "format": export_format} | fields
    return client.post("/expert_exports", body=body, cast_to=object)


def fetch(client: Client, export_id: str, name: str) -> bytes:
    return client.get(f"/expert_exports/{export_id}/files/{name}", cast_to=bytes)


def own_base(engine: Engine, **values: Any) -> None:
    with system_session(engine) as session:
        for column, value in values.items():
            session.execute(text(f"UPDATE base_models SET {column} = {value}"))


def test_a_version_is_exported_once_and_fetched_file_by_file(
    client: Client, publish: Callable[..., str], write_export: Callable[[], ExportSpec]
) -> None:
    version = publish()
    asked = ask(client, version, rank=8)
    assert (asked["status"], asked["model"], asked["files"]) == ("queued", version, None)
    assert ask(client, version, rank=8)["id"] == asked["id"], "it is on its way already"
    spec = write_export()
    assert (spec.name, spec.format, spec.rank) == (version, "lora", 8)
    assert {file.name for file in spec.files} == {"manifest.json", "z.safetensors", "routing.safetensors"}
    made: Any = client.get(f"/expert_exports/{asked['id']}", cast_to=object)
    assert (made["status"], made["facts"], len(made["files"])) == ("succeeded", {"rank": 8}, 2)
    assert fetch(client, made["id"], "a.json") == b"a.json"
    assert fetch(client, made["id"], "rank-8/b.bin") == b"rank-8/b.bin"
    assert ask(client, version, rank=8)["id"] == asked["id"], "it is there already"
    assert ask(client, version, rank=4)["id"] != asked["id"]


def test_an_alias_is_exported_as_the_version_that_it_points_to_now(client: Client, publish: Callable[..., str]) -> None:
    first, second = publish(), publish()
    client.put("/experts/main.summer/aliases/prod", body={"version": first}, cast_to=object)
    before = ask(client, "main.summer@prod")
    client.put("/experts/main.summer/aliases/prod", body={"version": second}, cast_to=object)
    after = ask(client, "main.summer@prod")
    assert (before["model"], after["model"]) == (first, second) and before["id"] != after["id"]
    assert before["digest"] != after["digest"]


def test_an_export_that_waits_can_be_explained_and_cancelled_and_is_then_asked_for_anew(
    client: Client, publish: Callable[..., str]
) -> None:
    version = publish()
    asked = ask(client, version)
    queue: Any = client.get(f"/expert_exports/{asked['id']}/queue", cast_to=object)
    assert (queue["object"], queue["job_id"]) == ("expert_export.queue", asked["id"])
    cancelled: Any = client.post(f"/expert_exports/{asked['id']}/cancel", cast_to=object)
    assert cancelled["status"] == "cancelled"
    assert ask(client, version)["id"] != asked["id"]


def test_weights_of_another_organisations_base_are_not_given_out(
    client: Client, publish: Callable[..., str], system_engine: Engine
) -> None:
    version = publish()
    error = refused(lambda: ask(client, version, "merged"))
    assert (error.status_code, error.param) == (400, "format")
    assert "were added by another organisation" in error.message
    own_base(system_engine, owner_org_id="(SELECT org_id FROM expert_versions LIMIT 1)")
    assert ask(client, version, "merged")["status"] == "queued"


def test_exports_count_in_the_quota_and_one_that_does_not_fit_is_refused(
    client: Client, publish: Callable[..., str], write_export: Callable[[], ExportSpec], system_engine: Engine
) -> None:
    version = publish()
    ask(client, version)
    write_export()
    with system_session(system_engine) as session:
        (org_id,) = session.scalars(text("SELECT DISTINCT org_id FROM expert_exports"))
        before = quotas.stored_bytes(session, org_id)
        session.execute(text("UPDATE expert_exports SET swept_at = now()"))
        assert before - quotas.stored_bytes(session, org_id) == len("a.json") + len("rank-8/b.bin")
        session.execute(text("UPDATE base_models SET source = jsonb_set(source, '{hub_id}', '\"acme/tiny\"')"))
        session.execute(text("UPDATE base_models SET details = '{\"parameters\": 200000000000}'"))
    error = refused(lambda: ask(client, version, "merged"))
    assert (error.status_code, error.code) == (429, "quota_exceeded")


def test_those_of_a_base_of_the_hub_are(client: Client, publish: Callable[..., str], system_engine: Engine) -> None:
    version = publish()
    own_base(system_engine, source="jsonb_set(source, '{hub_id}', '\"acme/tiny\"')")
    assert ask(client, version, "merged")["status"] == "queued"


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"rank": 8, "export_format": "psoft"}, 400, "Only a LoRA is of a rank"),
        ({"rank": 0}, 400, "rank"),
        ({"export_format": "gguf"}, 400, "format"),
        ({"version": "main.winter@v1"}, 404, "main.winter@v1"),
        ({"cluster": "nowhere"}, 400, "No agent has offered"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    client: Client, publish: Callable[..., str], fields: dict[str, Any], status: int, told: str
) -> None:
    version = publish()
    error = refused(lambda: ask(client, **({"version": version} | fields)))
    assert error.status_code == status and told in str(error.message)


def test_files_that_are_not_there_say_why(
    client: Client, publish: Callable[..., str], write_export: Callable[[], ExportSpec], system_engine: Engine,
    store: DirectoryStore,
) -> None:  # fmt: skip
    asked = ask(client, publish())
    early = refused(lambda: fetch(client, asked["id"], "a.json"))
    assert (early.status_code, early.code) == (409, "not_ready")
    write_export()
    assert refused(lambda: fetch(client, asked["id"], "c.json")).status_code == 404
    assert exports.sweep(system_engine, store) == 0, "it is fresh"
    assert exports.sweep(system_engine, store, kept=timedelta(0)) == 1
    assert not [key for key in store.keys("t/") if key.endswith("b.bin")]
    gone = refused(lambda: fetch(client, asked["id"], "a.json"))
    assert gone.status_code == 409 and "Export the version again" in gone.message
    assert exports.sweep(system_engine, store, kept=timedelta(0)) == 0


def test_exports_of_a_deleted_version_go_with_it(
    client: Client, publish: Callable[..., str], write_export: Callable[[], ExportSpec], system_engine: Engine,
    store: DirectoryStore,
) -> None:  # fmt: skip
    version = publish()
    ask(client, version)
    write_export()
    client.delete(f"/experts/{version}", cast_to=object)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE expert_versions SET deleted_at = deleted_at - interval '2 minutes'"))
    assert exports.sweep(system_engine, store) == 1
