"""Lists of expert versions: filtered, sorted, page by page, as a look at every version would have them."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused

from zhub.client import Client as ZhubClient
from zhub.manifest import Accuracy, Evaluation

Ask = Callable[..., Any]
Publish = Callable[..., str]


def scored(mean: float) -> dict[str, Any]:
    accuracy = Accuracy(mean=mean, low=0, high=1, n=10)
    return {"evaluations": [Evaluation(split="test", base=accuracy, expert=accuracy, p_value=1.0)]}


@pytest.fixture
def catalogue(ask: Ask, publish_version: Publish) -> dict[str, str]:
    """Six versions of three experts, each by a letter."""
    names = {
        "a": publish_version("summer", **scored(0.5)),
        "b": publish_version("winter", **scored(0.9)),
        "c": publish_version("summer", **scored(0.7)),
        "d": publish_version("autumn"),
        "e": publish_version("winter", **scored(0.9)),
        "f": publish_version("winter", **scored(0.1)),
    }
    ask("patch", "/experts/main.winter", {"description": "Sorts 100% of_all letters.", "tags": {"team": "north"}})
    ask("patch", f"/experts/{names['c']}", {"description": "sorts numbers", "tags": {"team": "south", "stage": "x=y"}})
    ask("put", "/experts/main.winter/aliases/prod", {"version": names["b"]})
    ask("put", "/experts/main.summer/aliases/prod", {"version": names["c"]})
    ask("patch", f"/experts/{names['f']}", {"archived": True})
    return names


LISTS = [
    ("", "edcba"),
    ("archived=true", "fedcba"),
    ("archived=false", "edcba"),
    ("sort=name", "dcaeb"),
    ("sort=score", "ebcad"),
    ("sort=score&archived=true", "ebcafd"),
    ("search=summ", "ca"),
    ("search=SORTS", "ecb"),
    ("search=sorts&sort=name", "ceb"),
    ("search=100%25", "eb"),
    ("search=of_all", "eb"),
    ("search=ofxall", ""),
    ("search=%25", "eb"),
    ("tag=team", "ecb"),
    ("tag=team=north", "eb"),
    ("tag=team&tag=stage", "c"),
    ("tag=stage=x=y", "c"),
    ("tag=team=", ""),
    ("alias=prod", "cb"),
    ("alias=prod&sort=score", "bc"),
    ("alias=none", ""),
    ("base=tiny&search=autumn", "d"),
]


def test_a_list_has_what_was_asked_for_in_the_order_that_was_asked_for(
    ask: Ask, catalogue: dict[str, str], subtests: pytest.Subtests
) -> None:
    for query, letters in LISTS:
        with subtests.test(query=query):
            listed = [version["id"] for version in ask("get", f"/experts?{query}")["data"]]
            assert listed == [catalogue[letter] for letter in letters]


def test_pages_of_every_order_have_each_version_once(
    ask: Ask, catalogue: dict[str, str], subtests: pytest.Subtests
) -> None:
    for sort, limit in itertools.product(("newest", "name", "score"), (1, 2, 4)):
        query = f"/experts?sort={sort}&archived=true"
        whole = [version["id"] for version in ask("get", query)["data"]]
        assert len(whole) == len(catalogue)
        with subtests.test(sort=sort, limit=limit):
            listed: list[str] = []
            page = ask("get", f"{query}&limit={limit}")
            while page["has_more"]:
                listed += [version["id"] for version in page["data"]]
                page = ask("get", f"{query}&limit={limit}&after={page['last_id']}")
            assert [*listed, *(version["id"] for version in page["data"])] == whole


@pytest.mark.parametrize("sort", ["newest", "name", "score"])
def test_the_next_page_is_there_after_the_last_version_of_this_one_was_deleted(
    ask: Ask, catalogue: dict[str, str], sort: str
) -> None:
    first, *others = [version["id"] for version in ask("get", f"/experts?sort={sort}&search=winter")["data"]]
    ask("delete", "/experts/main.winter/aliases/prod")
    ask("delete", f"/experts/{first}")
    page = ask("get", f"/experts?sort={sort}&search=winter&after={first}")
    assert [version["id"] for version in page["data"]] == others


REFUSED = [
    ("sort=best", 400, "sort", "'newest'"),
    ("serach=x", 400, "serach", "Did you mean 'search'?"),
    ("base=tinny", 404, None, "Did you mean 'tiny'?"),
    ("archived=perhaps", 400, "archived", "archived"),
    ("search=" + "x" * 201, 400, "search", "200"),
]


def test_what_cannot_be_asked_for_is_refused_by_its_name(ask: Ask, suite_file: str, subtests: pytest.Subtests) -> None:
    for query, status, param, says in REFUSED:
        with subtests.test(query=query):
            error = refused(partial(ask, "get", f"/experts?{query}"))
            assert (error.status_code, error.param) == (status, param) and says in str(error)


def test_zhubs_own_client_asks_for_as_many_as_it_was_asked_for(
    api_url: str, make_key: Callable[..., str], catalogue: dict[str, str]
) -> None:
    with ZhubClient(api_url.removesuffix("/v1"), make_key()) as client:
        assert [version.id for version in client.experts.list(sort="score", limit=2)] == [
            catalogue["e"],
            catalogue["b"],
        ]
        listed = client.experts.list(tags=["team=south", "stage"], alias="prod", base="tiny", search="num")
        assert [version.id for version in listed] == [catalogue["c"]]
        assert listed[0].aliases == ["prod"] and listed[0].tags == {"team": "south", "stage": "x=y"}


def test_a_version_names_the_version_that_its_training_began_from(
    client: openai.OpenAI, ask: Ask, publish_version: Publish
) -> None:
    parent = ask("get", f"/experts/{publish_version('a')}")
    child = publish_version("b", parent_digest=parent["digest"])
    stranger = publish_version("b", parent_digest="0" * 64)
    listed = {version["id"]: version["parent"] for version in ask("get", "/experts")["data"]}
    assert listed == {parent["id"]: None, child: parent["id"], stranger: None}
    client.models.delete(parent["id"])
    assert ask("get", f"/experts/{child}")["parent"] == parent["id"]
