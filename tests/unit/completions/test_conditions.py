"""The query that a person reads: what is a condition, and what is refused by the piece of text at fault."""

import pytest

from zhub.completions.conditions import MAX_CHARACTERS, MAX_CONDITIONS, Condition, parse
from zhub.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("where", "conditions"),
    [
        ("", []),
        ("  ", []),
        ("rating:up", [Condition("rating", ":", "up")]),
        ("rating>=0.5", [Condition("rating", ">=", "0.5")]),
        ("-rating<-0.5", [Condition("rating", "<", "-0.5", negated=True)]),
        (" model:a.b@prod \n since:7d ", [Condition("model", ":", "a.b@prod"), Condition("since", ":", "7d")]),
        ("until:2026-01-31T10:00:00Z", [Condition("until", ":", "2026-01-31T10:00:00Z")]),
        ('metadata.team:"a b" -metadata.x-y:c:d', [
            Condition("metadata", ":", "a b", "team"), Condition("metadata", ":", "c:d", "x-y", negated=True),
        ]),
        ('metadata.team:""', [Condition("metadata", ":", "", "team")]),
    ],
)  # fmt: skip
def test_a_query_is_its_conditions(where: str, conditions: list[Condition]) -> None:
    assert parse(where) == conditions


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("ratng:up", "there is no condition 'ratng'. Did you mean 'rating'"),
        ("rating:up good", "'good' is no condition"),
        ("rating: up", "'rating:' is no condition"),
        ('model:"a', "'model:\"a' is no condition"),
        ('model:a"b" c', "'model:a\"b\"' is no condition"),
        ("rating:up;drop", None),
        ("metadata:a", "There are: .*metadata.KEY"),
        ("model.x:a", "there is no condition 'model.x'"),
        ("since>7d", "only a rating is compared by '>'; write since:value"),
        ("OR", "'OR' is no condition"),
        ("a" * (MAX_CHARACTERS + 1), "1,001 characters"),
        ("rating:up " * (MAX_CONDITIONS + 1), "21 conditions"),
    ],
)
def test_what_is_no_query_is_refused_by_the_text_at_fault(where: str, message: str | None) -> None:
    if message is None:
        assert [str(condition) for condition in parse(where)] == [where]  # its value is refused later
        return
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse(where)
    assert caught.value.param == "where"
