"""The text of an answer, piece by piece: whole characters, no stop string, and each token with its own text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zhub.generation import ChosenToken
from zhub_workers.serving.answer_text import AnswerText


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(ids).decode("utf-8", "replace")


def pieces(text: str, stops: list[str]) -> tuple[list[str], AnswerText]:
    answer = AnswerText(Bytes(), stops)
    found = []
    for token in text.encode():
        found.append(answer.add(token)[0])
        if answer.stopped:
            return found, answer
    found.append(answer.end()[0])
    return found, answer


@pytest.mark.parametrize("text", ["plain", "Größe 日本 👩‍👩‍👧", "", "\ufffd literally"], ids=ascii)
def test_all_text_is_sent_and_no_half_of_a_character(text: str) -> None:
    found, _ = pieces(text, [])
    assert "".join(found) == text


@pytest.mark.parametrize(
    ("text", "stops", "sent"),
    [
        ("one. two", ["."], "one"),
        ("aaab", ["aab"], "a"),
        ("ab stop", ["stop", "b s"], "a"),
        ("日本語", ["本"], "日"),
        ("sto", ["stop"], "sto"),
        ("nothing", ["", "x"], "nothing"),
    ],
    ids=ascii,
)
def test_an_answer_ends_before_the_first_stop_string(text: str, stops: list[str], sent: str) -> None:
    found, answer = pieces(text, stops)
    assert "".join(found) == sent
    assert answer.stopped == (sent != text)


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    found, _ = pieces("a st b", ["stop"])
    assert found == ["a", " ", "", "", "st ", "b", ""]


def test_text_that_is_cut_has_no_tokens() -> None:
    answer = AnswerText(Bytes(), ["34"])
    told = [answer.add(ord(c), ChosenToken(token=c.encode(), logprob=-1.0))[1] for c in "1234"]
    assert [chosen.token for tokens in told for chosen in tokens] == [b"1", b"2"]


def test_tokens_come_with_the_piece_that_they_begin_in() -> None:
    answer = AnswerText(Bytes(), [])
    told = [answer.add(byte, ChosenToken(token=bytes([byte]), logprob=0.0))[1] for byte in "aé".encode()]
    assert [[chosen.token for chosen in tokens] for tokens in told] == [[b"a"], [], [b"\xc3", b"\xa9"]]


def test_tokens_of_a_real_tokenizer_come_to_what_it_decodes(model_directory: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_directory("llama"))
    ids = tokenizer("add 12 and 30, please: it is 42.")["input_ids"]
    answer = AnswerText(tokenizer, [])
    text = "".join(answer.add(token)[0] for token in ids) + answer.end()[0]
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
