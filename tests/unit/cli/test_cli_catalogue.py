"""``zhub experts search`` and ``zhub experts card``: what is asked of the API, and what is shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., int]
METRIC = {"suite": "gsm8k", "metric": "accuracy", "value": 0.75, "low": 0.6, "high": 0.85, "n": 40}
ENTRY = {
    "id": "default.sorting@v1",
    "object": "catalogue.entry",
    "owner": "local",
    "created_at": 1_700_000_000,
    "updated_at": 1_700_000_100,
    "base_model": "zhub-tiny",
    "adapter": "svf",
    "description": None,
    "tags": {},
    "aliases": ["prod"],
    "visibility": "private",
    "archived": False,
    "metrics": [METRIC],
    "used_tokens": 1234,
    "feedback": {"count": 2, "mean_score": 0.5},
}
FACETS = {"matches": 1, "is_whole": True, "base": [{"value": "zhub-tiny", "count": 1}]} | {
    name: [] for name in ("adapter", "alias", "suite", "tag", "visibility")
}
FOUND = {"object": "list", "data": [ENTRY], "has_more": False, "next": None, "facets": FACETS, "nothing": None}
CARD: dict[str, Any] = {
    "id": "default.sorting@v1",
    "object": "expert.card",
    "expert": "default.sorting",
    "facts": None,
    "metrics": [],
    "revision": 2,
    "text": "Sorts.",
    "links": [],
    "by": "key-1",
    "written_at": 1_700_000_000,
    "permission": "manage",
    "markdown": "# default.sorting\n\nSorts.\n",
}


def test_a_search_is_asked_for_as_it_is_written_and_shows_its_metric(api: Any, zhub: Run, capsys: Any) -> None:
    api.add("GET", "/v1/catalogue", FOUND)
    assert zhub("experts", "search", "sorting suite:gsm8k accuracy>=0.7", "--facets", "--sort", "best") == 0
    asked = dict(api.requests[-1].url.params)
    assert asked == {"q": "sorting suite:gsm8k accuracy>=0.7", "sort": "best", "facets": "true", "limit": "20"}
    shown = capsys.readouterr().out
    for part in ("GSM8K ACCURACY", "default.sorting@v1", "@prod", "0.750", "1,234", "+0.50 (2)", "base:zhub-tiny"):
        assert part in shown


def test_a_search_goes_on_over_pages_until_its_limit(api: Any, zhub: Run, capsys: Any) -> None:
    def answer(request: Any) -> Any:
        page = int(request.url.params.get("after", "0"))
        entries = [ENTRY | {"id": f"default.sorting@v{page}-{n}"} for n in range(int(request.url.params["limit"]))]
        return FOUND | {"data": entries, "next": str(page + 1)}

    api.add("GET", "/v1/catalogue", answer)
    assert zhub("experts", "search", "--limit", "150") == 0
    assert [dict(sent.url.params)["limit"] for sent in api.requests[-2:]] == ["100", "50"]
    captured = capsys.readouterr()
    assert captured.out.count("default.sorting@v") == 150 and "There are more" in captured.err


def test_a_search_that_finds_nothing_says_why(api: Any, zhub: Run, capsys: Any) -> None:
    api.add("GET", "/v1/catalogue", FOUND | {"data": [], "facets": None, "nothing": "'base:x' alone finds nothing."})
    assert zhub("experts", "search", "base:x") == 0
    assert "'base:x' alone finds nothing." in capsys.readouterr().err


def test_a_search_that_cannot_be_read_is_shown_with_the_place(api: Any, zhub: Run, capsys: Any) -> None:
    assert zhub("experts", "search", "sorting acuracy>=0.7") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["sorting acuracy>=0.7", "        ^"] and "Did you mean 'accuracy'?" in lines[2]
    assert not [sent for sent in api.requests if sent.url.path == "/v1/catalogue"]


def test_a_card_is_shown_as_its_markdown(api: Any, zhub: Run, capsys: Any) -> None:
    api.add("GET", "/v1/experts/default.sorting/card", CARD)
    assert zhub("experts", "card", "default.sorting") == 0
    assert capsys.readouterr().out == CARD["markdown"]


def test_a_card_is_written_from_a_file(api: Any, zhub: Run, tmp_path: Path) -> None:
    api.add("PUT", "/v1/experts/default.sorting/card", CARD)
    (tmp_path / "card.md").write_text("Sorts.")
    more = ("--link", "Paper=https://example.com/a=b", "--expected", "1")
    assert zhub("experts", "card", "default.sorting", "--write", str(tmp_path / "card.md"), *more) == 0
    assert api.bodies("PUT", "/v1/experts/default.sorting/card") == [
        {"text": "Sorts.", "links": [{"title": "Paper", "url": "https://example.com/a=b"}], "expected": 1}
    ]


@pytest.mark.parametrize("arguments", [("--link", "no-url"), ("--write", "/nowhere/card.md")])
def test_what_cannot_be_written_on_a_card_is_refused_before_it_is_sent(
    api: Any, zhub: Run, arguments: tuple[str, str]
) -> None:
    assert zhub("experts", "card", "default.sorting", *arguments) == 2
    assert api.requests == []


def test_the_history_of_a_card_says_who_wrote_what(api: Any, zhub: Run, capsys: Any) -> None:
    revision = {"id": "1", "revision": 1, "created_at": 1_700_000_000, "by": "key-1", "text": "Sorts.", "links": []}
    page = {"object": "list", "data": [revision], "has_more": False, "last_id": "1"}
    api.add("GET", "/v1/experts/default.sorting/card/revisions", page)
    assert zhub("experts", "card", "default.sorting", "--history") == 0
    assert "key-1" in (shown := capsys.readouterr().out) and "Sorts." in shown


def test_a_search_that_begins_with_a_minus_stands_after_two(api: Any, zhub: Run) -> None:
    api.add("GET", "/v1/catalogue", FOUND)
    assert zhub("experts", "search", "--", "-alias:prod") == 0
    assert api.requests[-1].url.params["q"] == "-alias:prod"
