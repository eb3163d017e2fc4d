"""What people say of experts and versions: descriptions, tags, archive, names; and who said it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from api_requests import refused
from sqlalchemy import Engine, select, text
from suites import METHOD

from zhub.database.sessions import system_session, tenant_session
from zhub.errors import ConflictError
from zhub.models import BaseModel, Expert
from zhub.registry import metadata, versions
from zhub.registry.metadata import Change
from zhub.registry.publish import get_or_create_expert
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import SCOPES
from zhub.training.fine_tuning import JobRequest

Ask = Callable[..., Any]
Publish = Callable[..., str]


@pytest.mark.parametrize("name", ["main.summer", "main.summer@v1"])
def test_an_expert_and_a_version_are_described_and_tagged_each_by_itself(
    ask: Ask, publish_version: Publish, name: str
) -> None:
    publish_version()
    changed = ask("patch", f"/experts/{name}", {"description": "Adds\nnumbers.", "tags": {"team": "a", "stage": "t"}})
    assert (changed["description"], changed["tags"]) == ("Adds\nnumbers.", {"team": "a", "stage": "t"})
    assert changed == ask("get", f"/experts/{name}") and changed["id"] == name
    other = ask("get", "/experts/main.summer" + ("" if "@" in name else "@v1"))
    assert (other["description"], other["tags"]) == (None, {})


def test_a_tag_that_is_null_is_removed_and_one_that_is_left_out_stays(ask: Ask, publish_version: Publish) -> None:
    name = publish_version()
    ask("patch", f"/experts/{name}", {"tags": {"a": "1", "b": "2"}, "description": "d"})
    changed = ask("patch", f"/experts/{name}", {"tags": {"a": None, "c": "3"}, "description": None})
    assert (changed["tags"], changed["description"]) == ({"b": "2", "c": "3"}, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tags": {"a b": "x"}}, "tags"),
        ({"tags": {"": "x"}}, "tags"),
        ({"tags": {str(n): "x" for n in range(metadata.MAX_TAGS + 1)}}, "tags"),
        ({"tags": {"a": "x" * (metadata.MAX_TAG_VALUE_CHARACTERS + 1)}}, "tags.a"),
        ({"description": "x" * (metadata.MAX_DESCRIPTION_CHARACTERS + 1)}, "description"),
        ({"name": "Ümlaut"}, "name"),
        ({"archived": "yes"}, "archived"),
        ({"descripton": "x"}, "descripton"),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_name(
    ask: Ask, publish_version: Publish, body: dict[str, Any], param: str
) -> None:
    publish_version()
    error = refused(lambda: ask("patch", "/experts/main.summer", body))
    assert (error.status_code, error.param) == (400, param)


def test_a_version_has_no_name_of_its_own(ask: Ask, publish_version: Publish) -> None:
    name = publish_version()
    error = refused(lambda: ask("patch", f"/experts/{name}", {"name": "other"}))
    assert (error.status_code, error.param) == (400, "name")


def test_every_change_is_noted_with_who_made_it_and_what_was_there_before(
    ask: Ask, publish_version: Publish, system_engine: Engine, caller: Caller
) -> None:
    name = publish_version()
    ask("patch", "/experts/main.summer", {"name": "autumn", "tags": {"a": "1"}})
    ask("patch", "/experts/main.autumn@v1", {"archived": True})
    ask("patch", "/experts/main.autumn@v1", {"archived": True, "tags": {}})  # changes nothing
    archived, renamed = ask("get", "/experts/main.autumn/changes")["data"]
    assert renamed["subject"] == "main.autumn" and archived["subject"] == "main.autumn@v1" != name
    assert renamed["changes"] == {
        "name": {"from": "summer", "to": "autumn"},
        "tags": {"from": {}, "to": {"a": "1"}},
    }
    assert archived["changes"]["archived_at"]["from"] is None
    assert archived["by"].startswith("key-") and renamed["by"] == archived["by"]
    assert [change["id"] for change in ask("get", "/experts/main.autumn@v1/changes")["data"]] == [archived["id"]]
    page = ask("get", f"/experts/main.autumn/changes?limit=1&after={archived['id']}")
    assert ([change["id"] for change in page["data"]], page["has_more"]) == ([renamed["id"]], False)


def test_an_old_name_still_leads_to_the_expert(ask: Ask, publish_version: Publish) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    assert ask("patch", "/experts/main.summer", {"name": "autumn"})["former_names"] == ["summer"]
    for old in ("main.summer@v1", "main.summer@prod"):
        assert ask("get", f"/experts/{old}")["id"] == ask("get", f"/models/{old}")["id"] == "main.autumn@v1"
    assert ask("get", "/experts/main.summer")["id"] == "main.autumn"
    assert ask("get", "/experts/main.summer/aliases/prod")["id"] == "main.autumn@prod"


def test_no_other_expert_gets_a_name_that_an_expert_had(ask: Ask, publish_version: Publish, train_expert: Ask) -> None:
    publish_version()
    publish_version("winter")
    ask("patch", "/experts/main.summer", {"name": "autumn"})
    error = refused(lambda: ask("patch", "/experts/main.winter", {"name": "summer"}))
    assert error.status_code == 409 and "'summer'" in str(error)
    error = refused(train_expert)
    assert error.status_code == 409 and "suffix 'autumn'" in str(error)
    assert ask("patch", "/experts/main.autumn", {"name": "summer"})["former_names"] == ["autumn"]
    assert refused(lambda: ask("patch", "/experts/main.summer", {"name": "winter"})).status_code == 409


def test_an_expert_cannot_take_a_name_while_its_owner_gives_it_up(
    publish_version: Publish, system_engine: Engine, api_engine: Engine, caller: Caller
) -> None:
    """A training under a name that is just being given up waits, and is refused."""
    publish_version()
    began = threading.Event()

    def create() -> None:
        with tenant_session(api_engine, caller.org_id) as session:
            session.execute(text("SELECT 1"))
            began.set()
            get_or_create_expert(session, caller, "summer")

    with ThreadPoolExecutor(1) as pool:
        with tenant_session(api_engine, caller.org_id) as session:
            expert = versions.get_expert(session, caller, "main.summer")
            metadata.change(session, caller, expert, None, Change(name="autumn"))
            creating = pool.submit(create)
            assert began.wait(10)
            until_blocked(system_engine)
        with pytest.raises(ConflictError, match="suffix 'autumn'"):
            creating.result(20)
    with system_session(system_engine) as session:
        assert session.scalars(select(Expert.name)).all() == ["autumn"]


def until_blocked(engine: Engine) -> None:
    """Return once a transaction waits for another's lock."""
    with engine.connect() as connection:
        for _ in range(1000):
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            if connection.execute(text(waits)).scalar_one():
                return
            connection.rollback()
            connection.execute(text("SELECT pg_sleep(0.01)"))
    raise AssertionError("nothing waits")


def test_a_schedule_goes_on_to_train_an_expert_that_was_renamed(
    ask: Ask, publish_version: Publish, suite_file: str
) -> None:
    publish_version("suite")
    body = {"name": "weekly", "dataset": "suite", "training": {"model": "tiny", "method": METHOD}, "on_new_data": True}
    by_dataset = ask("post", "/schedules", body)
    body["training"] = body["training"] | {"suffix": "other"}  # type: ignore[operator]
    of_other = ask("post", "/schedules", body | {"name": "daily"})
    ask("patch", "/experts/main.suite", {"name": "sums"})
    assert ask("get", f"/schedules/{by_dataset['id']}")["training"]["suffix"] == "sums"
    assert ask("get", f"/schedules/{of_other['id']}")["training"]["suffix"] == "other"


def test_what_is_archived_is_hidden_and_answers_by_its_name_only(
    ask: Ask, client: openai.OpenAI, publish_version: Publish, system_engine: Engine, caller: Caller
) -> None:
    first, second = publish_version("a"), publish_version("b")
    for name in (first, second):
        ask("put", f"/experts/{name.partition('@')[0]}/aliases/prod", {"version": name})
    ask("patch", "/experts/main.a", {"archived": True})
    ask("patch", f"/experts/{second}", {"archived": True})
    assert ask("get", "/experts")["data"] == []
    assert [model.id for model in client.models.list()] == ["tiny", "auto"]
    assert [version["archived"] for version in ask("get", "/experts?archived=true")["data"]] == [True, True]
    assert client.models.retrieve(first).id == first
    with system_session(system_engine) as session:
        base = session.scalars(select(BaseModel)).one()
        assert versions.promoted(session, caller.project_id, base) == []
        assert versions.newest(session, caller.project_id, base, limit=100) == []
    ask("patch", "/experts/main.a", {"archived": False})
    assert [version["id"] for version in ask("get", "/experts")["data"]] == [first]


def test_an_archived_expert_is_not_trained(ask: Ask, publish_version: Publish, train_expert: Ask) -> None:
    publish_version()
    ask("patch", "/experts/main.summer", {"archived": True})
    error = refused(train_expert)
    assert error.status_code == 409 and "is archived. Unarchive it" in str(error)
    ask("patch", "/experts/main.summer", {"archived": False})
    assert train_expert().status == "queued"


@pytest.mark.parametrize("archived", ["main.summer", "main.summer@v1"])
def test_no_alias_is_moved_to_what_is_archived(ask: Ask, publish_version: Publish, archived: str) -> None:
    name = publish_version()
    ask("patch", f"/experts/{archived}", {"archived": True})
    error = refused(lambda: ask("put", "/experts/main.summer/aliases/prod", {"version": name}))
    assert (
        error.status_code == 409
        and f"'{archived.removeprefix('main.') if '@' not in archived else archived}'" in str(error)
    )


def test_a_key_that_only_reads_changes_nothing(
    open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str], publish_version: Publish
) -> None:
    name = publish_version()
    reader = open_client(make_key(scopes=tuple(scope for scope in SCOPES if scope != "models:write")))
    calls: list[Callable[[], Any]] = [
        lambda: reader.patch("/experts/main.summer", cast_to=object, body={"archived": True}),
        lambda: reader.delete(f"/experts/{name}", cast_to=object),
        lambda: reader.models.delete(name),
        lambda: reader.delete("/experts/main.summer/aliases/prod", cast_to=object),
    ]
    assert [refused(call).status_code for call in calls] == [403] * 4
    assert reader.get(f"/experts/{name}", cast_to=object)["archived"] is False  # type: ignore[index]


def test_anothers_experts_are_not_there(
    open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str], publish_version: Publish
) -> None:
    name = publish_version()
    stranger = open_client(make_key("globex"))
    calls: list[Callable[[], Any]] = [
        lambda: stranger.patch("/experts/main.summer", cast_to=object, body={"archived": True}),
        lambda: stranger.get("/experts/main.summer", cast_to=object),
        lambda: stranger.get("/experts/main.summer/changes", cast_to=object),
        lambda: stranger.models.delete(name),
    ]
    assert [refused(call).status_code for call in calls] == [404] * 4


def test_the_dry_run_of_a_training_says_what_a_training_would(
    ask: Ask, publish_version: Publish, suite_file: str
) -> None:
    publish_version()
    ask("patch", "/experts/main.summer", {"archived": True})
    body = JobRequest(model="tiny", training_file=suite_file, method=METHOD, suffix="summer").model_dump()
    assert refused(lambda: ask("post", "/fine_tuning/jobs/estimate", body)).status_code == 409
