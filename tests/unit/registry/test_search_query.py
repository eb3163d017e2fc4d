"""Searches of the catalogue: read as they were meant, or refused at the place that cannot be read."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhub.errors import SearchQueryError
from zhub.registry import search_query
from zhub.registry.search_query import MAX_CHARACTERS, MAX_TERMS, Term, parse


def read(query: str) -> list[tuple[object, ...]]:
    return [(term.name, term.relation, term.value, term.suite) for term in parse(query)]


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("", []),
        ("  \t ", []),
        ("sorting", [(None, ":", "sorting", None)]),
        ('"in a row"', [(None, ":", "in a row", None)]),
        ("base:tiny tag:team=north", [("base", ":", "tiny", None), ("tag", ":", "team=north", None)]),
        ('tag:"two words"', [("tag", ":", "two words", None)]),
        ("BASE:Tiny", [("base", ":", "Tiny", None)]),
        ("accuracy>=0.7", [("accuracy", ">=", 0.7, "test")]),
        (
            "accuracy>0 suite:gsm8k accuracy>=0.7 gain<.1 suite:mmlu accuracy<=1e-1",
            [
                ("accuracy", ">", 0.0, "test"),
                ("suite", ":", "gsm8k", None),
                ("accuracy", ">=", 0.7, "gsm8k"),
                ("gain", "<", 0.1, "gsm8k"),
                ("suite", ":", "mmlu", None),
                ("accuracy", "<=", 0.1, "mmlu"),
            ],
        ),
        ("-suite:gsm8k accuracy>0", [("suite", ":", "gsm8k", None), ("accuracy", ">", 0.0, "test")]),
        ("updated>2026-01-01", [("updated", ">", datetime(2026, 1, 1, tzinfo=UTC), None)]),
        ("created>2026-01-01T12:00:00+01:00", [("created", ">", datetime(2026, 1, 1, 11, tzinfo=UTC), None)]),
        ("updated>=2w tokens>1000", [("updated", ">=", timedelta(weeks=2), None), ("tokens", ">", 1000.0, None)]),
        ("größe 数学", [(None, ":", "größe", None), (None, ":", "数学", None)]),
    ],
)
def test_a_search_is_read_as_it_was_meant(query: str, terms: list[tuple[object, ...]]) -> None:
    assert read(query) == terms


def test_a_minus_turns_a_term_round_and_only_before_it() -> None:
    assert [term.negated for term in parse("-alias:prod alias:prod -word wo-rd -accuracy>0.5")] == [
        True, False, True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "position", "told"),
    [
        ("sorting acuracy>=0.7", 8, "Did you mean 'accuracy'?"),
        ("x foo:bar", 2, "there is no 'foo'"),
        ("http://example.com", 0, "stands in quotation marks"),
        ("base=tiny", 4, "write base:tiny"),
        ("base>=tiny", 4, "write base:tiny"),
        ("accuracy:0.7", 8, "write accuracy>=0.7"),
        ("accuracy=0.7", 8, "write accuracy>=0.7"),
        ("updated:2026-01-01", 7, "write updated>2026-01-01"),
        ("accuracy>=high", 10, "compared with a number"),
        ("accuracy>=nan", 10, "compared with a number"),
        ("accuracy>=1e999", 10, "compared with a number"),
        ("updated>yesterday", 8, "compared with a date"),
        ("created>2026-13-01", 8, "compared with a date"),
        ("visibility:publik", 11, "Did you mean 'public'?"),
        ("archived:maybe", 9, "archived is one of yes, no, any"),
        ('tag:"never closed', 4, "never closed"),
        ('a "b"c', 2, "a blank belongs"),
        ('a b"c" d', 3, "a blank belongs"),
        ('base:""', 5, "nothing in the quotation marks"),
        ("a %", 2, "a letter or a digit"),
        ("-", 0, "a letter or a digit"),
        ("a " * (MAX_TERMS + 1), 2 * MAX_TERMS, f"at most {MAX_TERMS} terms"),
        ("a" * (MAX_CHARACTERS + 1), MAX_CHARACTERS, "characters"),
    ],
)
def test_what_cannot_be_read_is_refused_at_its_place_with_what_would_be_right(
    query: str, position: int, told: str
) -> None:
    with pytest.raises(SearchQueryError) as caught:
        parse(query)
    assert (caught.value.position, caught.value.param) == (position, "q")
    assert told in str(caught.value) and f"at character {position + 1}" in str(caught.value)


@given(st.text(alphabet=st.sampled_from(list('ab:<>=-" \t\n0.7é_')) | st.characters(), max_size=60))
def test_every_text_is_read_or_refused_within_it(query: str) -> None:
    try:
        terms = parse(query)
    except SearchQueryError as error:
        assert 0 <= error.position <= len(query)
    else:
        assert "".join(query.split()) == "".join("".join(term.written.split()) for term in terms)


def test_the_metric_that_ranks_is_the_first_that_is_bounded() -> None:
    def ranking(query: str) -> Term | None:
        return search_query.ranking_metric(parse(query))

    assert ranking("word -accuracy>0.5") is None
    found = ranking("-gain>0 suite:gsm8k accuracy>0.5 gain>0")
    assert found is not None and (found.name, found.suite) == ("accuracy", "gsm8k")
