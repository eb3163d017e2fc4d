"""Cards of experts: facts that nobody wrote, text that people write, and who wrote what."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from api_requests import refused

from zhub.manifest import Accuracy, Evaluation
from zhub.registry import cards

Ask = Callable[..., Any]
Publish = Callable[..., str]
CARD = "/experts/main.summer/card"
SCRIPT = "<script>alert(1)</script> **bold** [x](javascript:alert(1))"


def test_a_card_has_the_facts_of_its_version_before_anybody_wrote_anything(ask: Ask, publish_version: Publish) -> None:
    figures = [Accuracy(mean=value, low=0.1, high=0.9, n=10) for value in (0.25, 0.75)]
    evaluation = Evaluation(split="test", base=figures[0], expert=figures[1], p_value=0.5)
    publish_version("summer", evaluations=[evaluation])
    card = ask("get", CARD)
    assert (card["revision"], card["text"], card["links"], card["by"]) == (0, "", [], None)
    facts = card["facts"]
    assert (facts["version"], facts["base_model"], facts["recipe"]) == ("main.summer@v1", "tiny", "supervised")
    assert (facts["dataset_digest"], facts["parent"]) == ("d", None)
    assert facts["evaluations"][0]["expert"] == {"mean": 0.75, "low": 0.1, "high": 0.9, "n": 10}
    assert "| test | accuracy | 0.750 | 0.100 to 0.900 | 10 |" in card["markdown"]


def test_the_facts_are_of_what_prod_points_to_or_of_the_newest_or_of_the_version_asked_for(
    ask: Ask, publish_version: Publish
) -> None:
    first, second = publish_version(), publish_version()
    assert ask("get", CARD)["facts"]["version"] == second
    ask("put", "/experts/main.summer/aliases/prod", {"version": first})
    assert ask("get", CARD)["facts"]["version"] == first
    assert ask("get", f"/experts/{second}/card")["facts"]["version"] == second


def test_a_card_is_written_in_revisions_and_every_one_stays(ask: Ask, publish_version: Publish) -> None:
    publish_version()
    link = {"title": "Paper", "url": "https://example.com/paper"}
    ask("put", CARD, {"text": "Adds.", "links": [link]})
    card = ask("put", CARD, {"text": "Adds numbers."})
    assert (card["revision"], card["text"], card["links"]) == (2, "Adds numbers.", [link])
    assert card == ask("get", CARD) and card["by"].startswith("key-")
    assert card["markdown"].endswith("Adds numbers.\n\n- [Paper](<https://example.com/paper>)\n")
    assert ask("put", CARD, {"text": "Adds numbers."})["revision"] == 2
    listed = ask("get", f"{CARD}/revisions")["data"]
    assert [(one["revision"], one["text"]) for one in listed] == [(2, "Adds numbers."), (1, "Adds.")]
    page = ask("get", f"{CARD}/revisions?limit=1")
    assert page["has_more"] and ask("get", f"{CARD}/revisions?after={page['last_id']}")["data"] == listed[1:]
    assert ask("get", "/experts/main.summer/changes")["data"][0]["changes"] == {"card": {"from": 1, "to": 2}}


def test_a_card_that_somebody_else_wrote_meanwhile_is_not_overwritten(ask: Ask, publish_version: Publish) -> None:
    publish_version()
    ask("put", CARD, {"text": "mine", "expected": 0})
    error = refused(lambda: ask("put", CARD, {"text": "yours", "expected": 0}))
    assert error.status_code == 409 and "at revision 1, written by key-" in error.message
    assert ask("put", CARD, {"text": "yours", "expected": 1})["text"] == "yours"


def test_a_card_with_script_in_it_is_text_and_no_fact_is_markup(ask: Ask, publish_version: Publish) -> None:
    publish_version(base_source="<script>alert(1)</script>|x")
    card = ask("put", CARD, {"text": SCRIPT})
    assert card["text"] == SCRIPT and SCRIPT in card["markdown"]
    facts = card["markdown"].removesuffix(f"{SCRIPT}\n")
    assert "<script>" not in facts and r"\<script\>alert(1)\</script\>\|x" in facts


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "//example.com", "https://a b", 'https://"x']
)
def test_a_link_leads_to_a_web_page_and_nowhere_else(ask: Ask, publish_version: Publish, url: str) -> None:
    publish_version()
    error = refused(lambda: ask("put", CARD, {"links": [{"title": "x", "url": url}]}))
    assert (error.status_code, error.param) == (400, "links.0.url")


def test_a_card_is_bounded(ask: Ask, publish_version: Publish) -> None:
    publish_version()
    too_long = {"text": "x" * (cards.MAX_CARD_CHARACTERS + 1)}
    assert refused(lambda: ask("put", CARD, too_long)).param == "text"
    link = {"title": "x", "url": "https://example.com"}
    assert refused(lambda: ask("put", CARD, {"links": [link] * (cards.MAX_LINKS + 1)})).param == "links"


def test_an_expert_is_found_by_its_card_at_its_newest_version_and_where_an_alias_points(
    ask: Ask, publish_version: Publish
) -> None:
    first, second = publish_version(), publish_version()
    ask("put", CARD, {"text": "Understands marmalade."})

    def found() -> list[str]:
        return [entry["id"] for entry in ask("get", f"/catalogue?{urlencode({'q': 'marmalade'})}")["data"]]

    assert found() == [second]
    third = publish_version()
    assert found() == [third]
    ask("put", "/experts/main.summer/aliases/prod", {"version": first})
    assert found() == [third, first]


def test_the_card_of_an_expert_that_begins_again_is_empty(
    ask: Ask, publish_version: Publish, train_expert: Callable[..., Any]
) -> None:
    publish_version()
    ask("put", CARD, {"text": "Old."})
    ask("delete", "/experts/main.summer")
    train_expert()
    card = ask("get", CARD)
    assert (card["text"], card["facts"]) == ("", None)
