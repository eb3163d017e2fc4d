"""Names that texts and files give: nothing is lost without a word."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhub.errors import InvalidRequestError
from zhub.tenancy.names import NAME, name_of_file, name_of_suffix


def refusal(suffix: str) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        name_of_suffix(suffix, "expert", param="suffix")
    assert refused.value.param == "suffix"
    return str(refused.value)


@pytest.mark.parametrize(
    ("suffix", "suggestion"), [("Größe", "grosse"), ("café!", "cafe"), ("a.b", "a-b"), ("日本 2", "2")]
)
def test_a_suffix_that_would_lose_letters_is_refused_with_a_suggestion(suffix: str, suggestion: str) -> None:
    assert f"How about '{suggestion}'?" in refusal(suffix)


@pytest.mark.parametrize("suffix", ["日本", "!!!", "", "-", "_ _"])
def test_a_suffix_of_which_nothing_can_stay_is_refused(suffix: str) -> None:
    assert "lower-case letters, digits" in refusal(suffix)


@pytest.mark.parametrize(("suffix", "name"), [("gr e", "gr-e"), ("Sum Mer", "sum-mer"), ("a_b-2", "a_b-2")])
def test_capitals_and_blanks_of_a_suffix_are_bent(suffix: str, name: str) -> None:
    assert name_of_suffix(suffix, "expert", param="suffix") == name


@given(st.text(max_size=80))
def test_every_suffix_is_a_name_or_refused(suffix: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        assert NAME.fullmatch(name_of_suffix(suffix, "expert", param="suffix"))


@given(st.text(max_size=80))
def test_every_file_name_gives_a_name(filename: str) -> None:
    assert NAME.fullmatch(name_of_file(filename, default="dataset"))


def test_files_with_names_of_other_scripts_have_names_of_their_own() -> None:
    files = ["データ.jsonl", "日本.jsonl", "данные.jsonl", "Größe.jsonl", "gr e.jsonl", "Grosse.jsonl", "dataset.jsonl"]
    assert len({name_of_file(file, default="dataset") for file in files}) == len(files)


def test_a_file_with_a_plain_name_gives_it() -> None:
    assert name_of_file("My Rows.v2.jsonl", default="dataset") == "my-rows-v2"
