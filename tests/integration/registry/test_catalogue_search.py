"""The catalogue searched: as a look at every version would have it, page by page, with counts and reasons."""

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

import openai
import pytest
from api_requests import refused
from sqlalchemy import Engine, text
from suites import GRADER, right_in, run

from zhub.database.sessions import system_session, tenant_session
from zhub.manifest import Accuracy, Evaluation
from zhub.registry import use
from zhub.specs import EvaluateSpec
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
Publish = Callable[..., str]


def scored(mean: float, base: float = 0.25) -> dict[str, Any]:
    figures = [Accuracy(mean=value, low=0, high=1, n=10) for value in (base, mean)]
    return {"evaluations": [Evaluation(split="test", base=figures[0], expert=figures[1], p_value=1.0)]}


@pytest.fixture
def catalogue(ask: Ask, publish_version: Publish) -> dict[str, str]:
    """Six versions of three experts, each by a letter."""
    names = {
        "a": publish_version("summer", **scored(0.5)),
        "b": publish_version("winter", **scored(0.875)),
        "c": publish_version("summer", **scored(0.75), hyperparameters={"adapter": "lora"}),
        "d": publish_version("autumn-leaves", dataset_digest="e"),
        "e": publish_version("winter", **scored(0.875)),
        "f": publish_version("winter", **scored(0.125)),
    }
    ask("patch", "/experts/main.winter", {"description": "Sorts letters.", "tags": {"team": "north"}})
    ask("patch", f"/experts/{names['c']}", {"description": "sorts numbers", "tags": {"team": "south", "stage": "x=y"}})
    ask("put", "/experts/main.winter/aliases/prod", {"version": names["b"]})
    ask("put", "/experts/main.summer/aliases/prod", {"version": names["a"]})
    ask("put", "/experts/main.summer/aliases/prod", {"version": names["c"]})
    ask("patch", f"/experts/{names['f']}", {"archived": True})
    return names


SEARCHES = [
    ("", "edcba"),
    ("archived:any", "fedcba"),
    ("archived:yes", "f"),
    ("summer", "ca"),
    ("summ", "ca"),
    ("SORTS", "ecb"),
    ("sorts numbers", "c"),
    ('"sorts numbers"', "c"),
    ('"numbers sorts"', ""),
    ("leaves", "d"),
    ("autumn-leaves", "d"),
    ("north", "eb"),
    ("-sorts", "da"),
    ("tag:team", "ecb"),
    ("tag:team=north", "eb"),
    ("tag:team -tag:team=north", "c"),
    ("tag:stage=x=y", "c"),
    ("alias:prod", "cb"),
    ("base:tiny", "edcba"),
    ("base:other", ""),
    ("adapter:lora", "c"),
    ("adapter:svf alias:prod", "b"),
    ("dataset:e", "d"),
    ("project:main", "edcba"),
    ("project:other", ""),
    ("owner:acme", "edcba"),
    ("-owner:acme", ""),
    ("visibility:private", "edcba"),
    ("visibility:public", ""),
    ("suite:test", "ecba"),
    ("accuracy>=0.5", "ebca"),
    ("accuracy>0.5", "ebc"),
    ("accuracy>0.5 accuracy<0.8", "c"),
    ("gain>=0.5 accuracy<0.8", "c"),
    ("suite:test accuracy>=0.5 summer", "ca"),
    ("-accuracy>0.5", "da"),
    ("suite:elsewhere accuracy>0", ""),
    ("created>1d", "edcba"),
    ("created<1d", ""),
    ("updated>2020-01-01", "edcba"),
    ("tokens>0", ""),
    ("-feedback>=0", "edcba"),
]


def search(ask: Ask, q: str = "", **more: Any) -> Any:
    return ask("get", f"/catalogue?{urlencode({'q': q, **more})}")


def rewards(right: int, spec: EvaluateSpec) -> list[float]:
    """Of the version so many are right, of the base none."""
    return right_in(right if spec.z else 0)


def ids(answer: Any) -> list[str]:
    return [entry["id"] for entry in answer["data"]]


def test_a_search_finds_what_a_look_at_every_version_would(
    ask: Ask, catalogue: dict[str, str], subtests: pytest.Subtests
) -> None:
    for query, letters in SEARCHES:
        with subtests.test(query=query):
            found = search(ask, query)
            assert ids(found) == [catalogue[letter] for letter in letters]
            assert (found["nothing"] is None) == bool(letters)


def test_an_entry_says_what_it_was_found_by(ask: Ask, catalogue: dict[str, str]) -> None:
    (entry,) = search(ask, "numbers")["data"]
    assert (entry["id"], entry["project"], entry["expert"], entry["version"]) == (catalogue["c"], "main", "summer", 2)
    assert (entry["base_model"], entry["adapter"], entry["aliases"]) == ("tiny", "lora", ["prod"])
    assert (entry["description"], entry["tags"]) == ("sorts numbers", {"team": "south", "stage": "x=y"})
    figures = {(metric["suite"], metric["metric"]): metric["value"] for metric in entry["metrics"]}
    assert figures == {("test", "accuracy"): 0.75, ("test", "base_accuracy"): 0.25, ("test", "gain"): 0.5}


@pytest.mark.parametrize(("query", "sort"), [("", None), ("accuracy>0", None), ("", "tokens"), ("", "feedback")])
def test_pages_have_each_version_once_also_where_one_comes_meanwhile(
    ask: Ask, catalogue: dict[str, str], publish_version: Publish, query: str, sort: str | None
) -> None:
    more = {"sort": sort} if sort else {}
    whole = ids(search(ask, query, **more))
    paged: list[str] = []
    after: dict[str, str] = {}
    for number in range(len(whole)):
        answer = search(ask, query, limit=1, **more, **after)
        paged += ids(answer)
        assert answer["has_more"] == (answer["next"] is not None) == (number < len(whole) - 1)
        after = {"after": answer["next"]}
        if number == 0:
            publish_version("spring", **scored(1.0))
    assert paged == whole


def test_a_cursor_belongs_to_its_search_and_order(ask: Ask, catalogue: dict[str, str]) -> None:
    after = search(ask, "sorts", limit=1)["next"]
    for answer in (
        refused(lambda: search(ask, "summer", after=after)),
        refused(lambda: search(ask, "sorts", sort="tokens", after=after)),
        refused(lambda: search(ask, "sorts", after="nonsense")),
    ):
        assert (answer.status_code, answer.param) == (400, "after")


def test_the_best_first_needs_a_metric(ask: Ask) -> None:
    error = refused(lambda: search(ask, "summer", sort="best"))
    assert (error.status_code, error.param) == (400, "sort")


def test_a_search_that_cannot_be_read_is_refused_at_its_place(ask: Ask) -> None:
    error = refused(lambda: search(ask, "sorting acuracy>=0.7"))
    assert (error.status_code, error.code, error.param) == (400, "invalid_search", "q")
    assert "at character 9" in error.message and "Did you mean 'accuracy'?" in error.message


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("summer alias:prod base:other", "'base:other' alone finds nothing."),
        ("base:other summer tag:none", "'base:other', 'tag:none' alone find nothing."),
        ("summer tag:team=north", "Each term alone finds something; nothing has all of them."),
        ("suite:gsm8k accuracy>=0.7 summer", "'suite:gsm8k', 'accuracy>=0.7' alone find nothing."),
    ],
)
def test_a_search_that_nobody_can_satisfy_says_which_terms_find_nothing(
    ask: Ask, catalogue: dict[str, str], query: str, told: str
) -> None:
    answer = search(ask, query)
    assert (answer["data"], answer["nothing"]) == ([], told)


def test_facets_count_the_matches_by_their_values(ask: Ask, catalogue: dict[str, str]) -> None:
    facets = search(ask, "accuracy>0", limit=1, facets="true")["facets"]
    assert (facets["matches"], facets["is_whole"]) == (4, True)
    counted = {name: {one["value"]: one["count"] for one in facets[name]} for name in ("adapter", "alias", "tag")}
    assert counted["adapter"] == {"svf": 3, "lora": 1} and counted["alias"] == {"prod": 2}
    assert counted["tag"]["team=north"] == 2 and counted["tag"]["team"] == 3
    assert search(ask, "accuracy>0")["facets"] is None


def test_what_an_evaluation_measured_is_found_by_the_name_of_its_file(
    ask: Ask,
    publish_version: Publish,
    make_file: Callable[..., str],
    caller: Caller,
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    better, worse = publish_version("summer"), publish_version("winter")
    file = make_file(caller, name="gsm8k.jsonl")
    for name, right in ((better, 30), (worse, 10)):
        ask("post", "/evaluations", {"model": name, "file": file, "grader": GRADER})
        run(system_engine, store, partial(rewards, right))
    assert ids(search(ask, "suite:gsm8k accuracy>=0.7")) == [better]
    assert ids(search(ask, "suite:gsm8k accuracy>=0.1")) == [better, worse]
    assert ids(search(ask, "suite:gsm8k")) == [worse, better]
    (metric, *_) = search(ask, "suite:gsm8k accuracy>=0.7")["data"][0]["metrics"]
    assert (metric["suite"], metric["metric"], metric["value"], metric["n"]) == ("gsm8k", "accuracy", 0.75, 40)


def test_what_is_used_most_and_liked_best_comes_first(
    ask: Ask, catalogue: dict[str, str], api_engine: Engine, caller: Caller
) -> None:
    with tenant_session(api_engine, caller.org_id) as session:
        mixed = f"{catalogue['a']} + {catalogue['d']}"
        use.add(session, [(catalogue["a"], 5), (mixed, 7), ("", 100), ("main.nobody@v1", 3)])
    assert ids(search(ask, "", sort="tokens"))[:2] == [catalogue["a"], catalogue["d"]]
    assert ids(search(ask, "tokens>10")) == [catalogue["a"]]
    said = {"messages": [{"role": "user", "content": "x"}], "completion": "y"}
    made = {name: ask("post", "/feedback", said | {"model": catalogue[name], "score": score})["id"]
            for name, score in (("c", 1), ("e", 0.5))}  # fmt: skip
    assert ids(search(ask, "", sort="feedback"))[:2] == [catalogue["c"], catalogue["e"]]
    assert ids(search(ask, "feedback>=0.75")) == [catalogue["c"]]
    ask("delete", f"/feedback/{made['c']}")
    assert ids(search(ask, "feedback>=0")) == [catalogue["e"]]


def test_what_is_renamed_deleted_or_moved_is_found_as_it_is_now(ask: Ask, catalogue: dict[str, str]) -> None:
    ask("patch", "/experts/main.summer", {"name": "heat"})
    assert ids(search(ask, "heat")) == ids(search(ask, "summer")) == ["main.heat@v2", "main.heat@v1"]
    ask("delete", "/experts/main.heat@v1")
    assert ids(search(ask, "heat")) == ["main.heat@v2"]
    ask("delete", "/experts/main.heat/aliases/prod")
    assert ids(search(ask, "alias:prod")) == [catalogue["b"]]
    ask("delete", "/experts/main.autumn-leaves")
    assert ids(search(ask, "leaves archived:any")) == []


def test_a_search_shows_nothing_of_other_projects_not_even_counts(
    ask: Ask, catalogue: dict[str, str], make_key: Callable[..., str], open_client: Callable[..., openai.OpenAI]
) -> None:
    for other in (("globex", "main"), ("acme", "other")):
        stranger: Any = open_client(make_key(*other)).get("/catalogue?facets=true", cast_to=object)
        assert (stranger["data"], stranger["facets"]["matches"]) == ([], 0)
        assert all(stranger["facets"][name] == [] for name in ("base", "tag", "alias", "suite"))
        assert stranger["nothing"] == "There is nothing here yet."


def test_entries_that_are_written_again_are_as_the_triggers_have_them(
    ask: Ask, catalogue: dict[str, str], system_engine: Engine
) -> None:
    """What a migration writes of all versions at once is what the triggers wrote one by one."""
    read = text("SELECT version_id, audience, archived, terms, document FROM catalogue_entries ORDER BY version_id")
    with system_session(system_engine) as session:
        before = session.execute(read).all()
        session.execute(text("SELECT catalogue_write(ARRAY(SELECT id FROM expert_versions))"))
        assert session.execute(read).all() == before and len(before) == len(catalogue)
