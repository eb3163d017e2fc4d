"""The name that somebody may have meant."""

from zhub.suggestions import did_you_mean


def test_the_nearest_name_follows_the_sentence() -> None:
    assert f"No such x.{did_you_mean('sortin', ['reversal', 'sorting'])}" == "No such x. Did you mean 'sorting'?"


def test_nothing_is_suggested_where_nothing_is_near_or_known() -> None:
    assert did_you_mean("sorting", ["addition"]) == did_you_mean("sorting", []) == ""


def test_a_name_of_a_million_characters_is_compared_by_its_beginning() -> None:
    assert did_you_mean("x" * 1_000_000, ["y"]) == ""
    assert did_you_mean("sorting" + " " * 1_000_000, ["sorting"]) == ""
