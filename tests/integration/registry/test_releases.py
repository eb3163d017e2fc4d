"""Releases: what they pin never changes, and they are named, compared, promoted and deleted as one."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused_with
from releasing import findings
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.errors import ConflictError
from zhub.models import BaseModel
from zhub.registry import namespace
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
Publish = Callable[..., str]
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(ask: Ask) -> Make:
    """Make a version of the release ``support``, or of another."""

    def create(*models: str, strategy: str = "centroid", name: str = "support", **fields: Any) -> dict[str, Any]:
        experts = [{"model": model} if isinstance(model, str) else model for model in models]
        made: dict[str, Any] = ask(
            "post", "/releases", {"name": name, "strategy": strategy, "experts": experts, **fields}
        )
        return made

    return create


def promote(ask: Ask, version: str, **fields: Any) -> Any:
    name = version.partition("@")[0]
    return ask("put", f"/releases/{name}/aliases/prod", {"version": version, **fields})


def test_a_release_pins_versions_with_their_weights(make: Make, ask: Ask, publish_version: Publish) -> None:
    first, second = publish_version("summer"), publish_version("winter")
    made = make(first, {"model": second, "weight": 0.5, "description": "cold days"})
    assert (made["id"], made["strategy"], made["base_model"]) == ("main.support@v1", "centroid", "tiny")
    pinned = [(expert["model"], expert["weight"], expert["description"]) for expert in made["experts"]]
    assert pinned == [(first, 1.0, "summer"), (second, 0.5, "cold days")]
    assert ask("get", "/releases/main.support@v1") == made


def test_an_alias_pins_the_version_that_it_points_to_when_the_release_is_made(
    make: Make, ask: Ask, publish_version: Publish
) -> None:
    first, second = publish_version(), publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": first})
    made = make("main.summer@prod")
    ask("put", "/experts/main.summer/aliases/prod", {"version": second})
    assert ask("get", f"/releases/{made['id']}")["experts"][0]["model"] == first


def test_a_mixture_without_weights_is_of_equal_parts(make: Make, publish_version: Publish) -> None:
    made = make(publish_version("a"), publish_version("b"), strategy="mixture")
    assert [expert["weight"] for expert in made["experts"]] == [0.5, 0.5]


def test_what_people_say_of_an_expert_is_pinned_as_it_is_said_then(
    make: Make, ask: Ask, publish_version: Publish
) -> None:
    version = publish_version()
    ask("patch", "/experts/main.summer", {"description": "adds  numbers\nup"})
    made = make(version)
    ask("patch", "/experts/main.summer", {"description": "something else"})
    assert ask("get", f"/releases/{made['id']}")["experts"][0]["description"] == "adds numbers up"


def test_the_same_content_is_the_same_version_and_other_content_the_next(make: Make, publish_version: Publish) -> None:
    first, second = publish_version("a"), publish_version("b")
    versions = [make(first), make(first), make(first, second), make(first)]
    assert [made["id"].partition("@")[2] for made in versions] == ["v1", "v1", "v2", "v3"]
    assert versions[0]["digest"] == versions[3]["digest"] != versions[2]["digest"]


@pytest.mark.parametrize(
    "change",
    [{"strategy": "prompt"}, {"weight": 0.5}, {"description": "other"}],
    ids=["strategy", "weight", "description"],
)
def test_all_that_decides_how_it_answers_is_in_the_digest(
    make: Make, publish_version: Publish, change: dict[str, Any]
) -> None:
    version = publish_version()
    strategy = change.pop("strategy", "centroid")
    assert make({"model": version, **change}, strategy=strategy)["digest"] != make(version)["digest"]


def test_a_release_and_an_expert_never_share_a_name(
    make: Make, ask: Ask, publish_version: Publish, system_engine: Engine, caller: Caller
) -> None:
    version = publish_version()
    refused_with(409, "share one space of names", make, version, name="summer")
    make(version)
    refused_with(409, "share one space of names", ask, "patch", "/experts/main.summer", {"name": "support"})
    with system_session(system_engine) as session, pytest.raises(ConflictError, match="share one space of names"):
        namespace.claim_for_expert(session, caller.project_id, "support")


def test_a_former_name_of_an_expert_stays_the_experts(make: Make, ask: Ask, publish_version: Publish) -> None:
    publish_version()
    ask("patch", "/experts/main.summer", {"name": "autumn"})
    refused_with(409, "share one space of names", make, "main.autumn@v1", name="summer")


def test_a_router_chooses_among_experts_and_not_among_versions_of_one(make: Make, publish_version: Publish) -> None:
    first, second = publish_version(), publish_version()
    refused_with(400, "of one expert", make, first, second)
    assert len(make(first, second, strategy="mixture")["experts"]) == 2
    refused_with(400, "named twice", make, first, first, strategy="mixture")


def test_experts_of_two_bases_make_no_release(
    unfrozen: None, make: Make, publish_version: Publish, system_engine: Engine
) -> None:
    first, second = publish_version("a"), publish_version("b")
    with system_session(system_engine) as session:
        other = BaseModel(name="other", status="ready", source={}, basis_fingerprint="x", basis_key_prefix="k")
        session.add(other)
        session.flush()
        session.connection().exec_driver_sql(
            "UPDATE expert_versions SET base_model_id = %s FROM experts e WHERE e.id = expert_id AND e.name = 'b'",
            (other.id,),
        )
    refused_with(400, "versions of one base model", make, first, second)


def test_an_archived_version_gets_into_no_new_release(make: Make, ask: Ask, publish_version: Publish) -> None:
    version = publish_version()
    ask("patch", f"/experts/{version}", {"archived": True})
    refused_with(409, "archived", make, version)


def test_a_version_that_is_not_there_is_named(make: Make) -> None:
    refused_with(404, r"main\.none@v1", make, "main.none@v1")


def test_a_release_that_is_not_there_is_named_with_the_one_that_was_meant(
    make: Make, ask: Ask, publish_version: Publish
) -> None:
    make(publish_version())
    refused_with(404, r"main\.support@v1", ask, "get", "/releases/main.suport@v1")
    refused_with(404, r"main\.support", ask, "get", "/releases/main.suport/aliases/prod")


def test_releases_are_listed_newest_first_page_by_page(make: Make, ask: Ask, publish_version: Publish) -> None:
    version = publish_version()
    names = [make(version, description="x")["id"], make(version, strategy="prompt")["id"]]
    names.append(make(version, name="another")["id"])
    listed = ask("get", "/releases?limit=2")
    assert ([entry["id"] for entry in listed["data"]], listed["has_more"]) == (names[:0:-1], True)
    rest = ask("get", f"/releases?after={listed['last_id']}")
    assert ([entry["id"] for entry in rest["data"]], rest["has_more"]) == (names[:1], False)
    assert [entry["id"] for entry in ask("get", "/releases?release=main.another")["data"]] == names[2:]


def test_what_promoting_would_change_is_shown(make: Make, ask: Ask, publish_version: Publish) -> None:
    old, new, other = publish_version("a"), publish_version("a"), publish_version("b")
    first, second = make(old)["id"], make({"model": new, "weight": 0.5}, other, strategy="prompt")["id"]
    promote(ask, first)
    compared = ask("get", f"/releases/{second}/diff")
    assert (compared["from"], compared["to"]) == (first, second)
    changes = {(row["what"]): (row["before"], row["after"]) for row in compared["differences"]}
    assert changes == {
        "strategy": ("centroid", "prompt"),
        "main.a: version": (old, new),
        "main.a: weight": (1.0, 0.5),
        "main.b: version": (None, other),
        "main.b: weight": (None, 1.0),
        "main.b: description": (None, "b"),
    }
    assert ask("get", f"/releases/{first}/diff?against={first}")["differences"] == []


def test_a_pinned_version_is_not_deleted_until_the_release_version_is(
    make: Make, ask: Ask, publish_version: Publish, system_engine: Engine
) -> None:
    version = publish_version()
    made = make(version)["id"]
    refused_with(409, rf"release {made} pins {version}", ask, "delete", f"/experts/{version}")
    refused_with(409, rf"release {made} pins {version}", ask, "delete", "/experts/main.summer")
    assert ask("delete", f"/releases/{made}")["deleted"]
    assert ask("delete", f"/experts/{version}")["deleted"]
    assert findings(system_engine) == []


def test_a_deleted_release_version_is_gone_and_its_number_is_not_given_again(
    make: Make, ask: Ask, publish_version: Publish
) -> None:
    version = publish_version()
    ask("delete", f"/releases/{make(version)['id']}")
    with pytest.raises(openai.NotFoundError, match="It was deleted"):
        ask("get", "/releases/main.support@v1")
    assert ask("get", "/releases")["data"] == []
    assert make(version)["id"] == "main.support@v2"


def test_releases_are_models_of_the_dialect(make: Make, client: openai.OpenAI, publish_version: Publish) -> None:
    made = make(publish_version())["id"]
    assert made in [model.id for model in client.models.list()]
    retrieved: Any = client.models.retrieve(made).to_dict()
    assert (retrieved["id"], retrieved["kind"], retrieved["base_model"]) == (made, "release", "tiny")
