"""Base models: who adds them, who changes them, who sees them."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from api_requests import raw, refused
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import ProgrammingError

from zhub.database.sessions import system_session, tenant_session
from zhub.models import BaseModel, Job
from zhub.specs import DecomposeSpec
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import SCOPES, TENANT_SCOPES

Client = openai.OpenAI
OpenClient = Callable[[str], Client]
MakeKey = Callable[..., str]


def begin(client: Client, name: str = "big", **options: Any) -> Any:
    return client.post("/base_models", body={"name": name} | options, cast_to=object)


def put(api_url: str, key: str, filename: str, name: str = "big") -> httpx.Response:
    return raw(api_url, key, "PUT", f"/v1/base_models/{name}/files/{filename}", content=b"{}")


def names(client: Client) -> list[str]:
    answer: Any = client.get("/base_models", cast_to=object)
    return [base["id"] for base in answer["data"]]


@pytest.fixture
def tenant(open_client: OpenClient, make_key: MakeKey) -> Client:
    """A client with the rights that a tenant's key has by default."""
    return open_client(make_key(scopes=TENANT_SCOPES))


@pytest.fixture
def stranger(open_client: OpenClient, make_key: MakeKey) -> Client:
    """A client of another organisation, with every right there is."""
    return open_client(make_key("globex"))


@pytest.mark.parametrize("private", [False, True])
def test_an_upload_can_be_changed_only_by_the_organisation_that_began_it(
    client: Client, stranger: Client, api_url: str, private: bool
) -> None:
    begin(client, private=private)
    for filename in ("config.json", "model.safetensors"):
        assert put(api_url, client.api_key, filename).status_code == 200
    assert put(api_url, stranger.api_key, "config.json").status_code == 404
    assert refused(lambda: stranger.post("/base_models/big/complete", cast_to=object)).status_code == 404
    if not private:
        assert refused(lambda: begin(stranger)).status_code == 409
    assert sorted(begun(client)["files"]) == ["config.json", "model.safetensors"]
    client.post("/base_models/big/complete", cast_to=object)


def begun(client: Client) -> Any:
    return client.get("/base_models/big", cast_to=object)


def test_a_base_for_everybody_is_an_operators_right(tenant: Client, client: Client, api_url: str) -> None:
    assert refused(lambda: begin(tenant, private=False)).status_code == 403
    assert begin(client)["private"] is False
    assert put(api_url, tenant.api_key, "config.json").status_code == 403  # its organisation's, by another key


def test_a_tenants_base_is_seen_and_used_by_its_organisation_alone(
    tenant: Client, stranger: Client, checked_file: str, make_base_model: Callable[..., uuid.UUID], caller: Caller
) -> None:
    assert begin(tenant)["private"] is True
    make_base_model("ours", private=True, owner_org_id=caller.org_id)
    assert names(tenant) == ["big", "ours", "tiny"] and names(stranger) == ["tiny"]
    assert "ours" in {model.id for model in tenant.models.list()}
    assert "ours" not in {model.id for model in stranger.models.list()}
    for call in (
        lambda: stranger.models.retrieve("ours"),
        lambda: stranger.get("/base_models/ours", cast_to=object),
        lambda: stranger.chat.completions.create(model="ours", messages=[{"role": "user", "content": "1"}]),
    ):
        assert refused(call).status_code == 404
    message = str(refused(lambda: stranger.get("/base_models/none", cast_to=object)))
    assert "tiny" in message and "ours" not in message


def test_two_organisations_may_have_private_bases_of_one_name(tenant: Client, stranger: Client) -> None:
    assert begin(tenant)["private"] is begin(stranger, private=True)["private"] is True


def test_a_private_base_is_never_the_default(client: Client, tenant: Client) -> None:
    assert begin(tenant, "first")["is_default"] is False
    assert begin(client, "second")["is_default"] is True


def test_an_upload_that_broke_off_is_begun_again_by_its_owner(client: Client, api_url: str) -> None:
    begin(client)
    put(api_url, client.api_key, "config.json")
    assert begin(client)["files"] == []


@pytest.mark.parametrize("private", [True, False])
def test_row_level_security_keeps_others_off_a_base(
    api_engine: Engine,
    make_caller: Callable[..., Caller],
    make_base_model: Callable[..., uuid.UUID],
    caller: Caller,
    private: bool,
) -> None:
    other = make_caller("globex")
    base_id = make_base_model("ours", private=private, owner_org_id=caller.org_id)
    statement = text("UPDATE base_models SET status = 'uploading' WHERE id = :base RETURNING id")
    with tenant_session(api_engine, other.org_id) as session:
        assert session.execute(statement, {"base": base_id}).all() == []
        assert bool(session.scalar(select(BaseModel.id))) is not private
    with (
        pytest.raises(ProgrammingError, match="row-level security"),
        tenant_session(api_engine, other.org_id) as session,
    ):
        session.add(BaseModel(name="theirs", source={}, owner_org_id=caller.org_id))


def test_a_base_of_an_earlier_release_belongs_to_the_operator(
    client: Client, tenant: Client, system_engine: Engine
) -> None:
    begin(client)
    with system_engine.begin() as connection:
        connection.execute(text("UPDATE base_models SET owner_org_id = NULL"))
    assert refused(lambda: client.post("/base_models/big/complete", cast_to=object)).status_code == 404
    assert refused(lambda: begin(tenant)).status_code == 409
    assert begin(client)["status"] == "uploading"


@pytest.mark.parametrize(
    "hub_id", ["/etc", "etc", "/etc/passwd", "../x", "a/..", "a/b/c", "https://example.org/a", "a/b\n", "a b/c", ""]
)
def test_a_hub_id_is_an_owner_and_a_name(client: Client, hub_id: str) -> None:
    error = refused(lambda: begin(client, hub_id=hub_id, hub_revision="0" * 40))
    assert (error.status_code, error.param) == (400, "hub_id")


@pytest.mark.parametrize(
    "hub_id", ["Qwen/Qwen2.5-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M", "a/b_c", "google/gemma-2.b"]
)
def test_an_owner_and_a_name_are_a_hub_id(client: Client, hub_id: str) -> None:
    assert begin(client, hub_id=hub_id, hub_revision="0" * 40)["hub_id"] == hub_id


@pytest.mark.parametrize(
    "filename", ["a%0d%0ab.json", "a%0a.json", "a%1b.json", "a%7f.json", "a%e2%80%a8b.json", "a" * 300 + ".json"]
)
def test_a_file_name_has_no_control_characters(client: Client, api_url: str, filename: str) -> None:
    begin(client)
    answer = put(api_url, client.api_key, filename)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "filename")


def test_a_tenants_default_rights_lack_the_operators() -> None:
    assert set(SCOPES) - set(TENANT_SCOPES) == {"platform_base_models:write", "platform_organizations:write"}


def test_the_rank_of_a_basis_is_told_to_who_decomposes(client: Client, api_url: str, system_engine: Engine) -> None:
    assert begin(client)["rank"] is None
    assert begin(client, rank=1024)["rank"] == 1024  # the upload is begun again
    for name in ("config.json", "model.safetensors"):
        put(api_url, client.api_key, name)
    client.post("/base_models/big/complete", cast_to=object)
    with system_session(system_engine) as session:
        job = session.scalars(select(Job).where(Job.kind == "decompose")).one()
        assert DecomposeSpec.model_validate(job.spec).rank == 1024


@pytest.mark.parametrize("rank", [0, 4, 12, -8, 1 << 20, 8.0, "8"])
def test_a_rank_that_cannot_be_is_refused(client: Client, rank: Any) -> None:
    error = refused(lambda: begin(client, rank=rank))
    assert (error.status_code, error.param) == (400, "rank")
