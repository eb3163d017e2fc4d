"""What a training says before its first step: of rewards that teach little, and of a language the base cannot read."""

from pathlib import Path
from typing import Any

import pytest
from tiny_training import CONTAINS_E, PROMPTS, Load, reinforcement, run, write_rows

from zhub.datasets.rows import Row
from zhub.errors import ConstantRewardError
from zhub_workers.evaluation.tokenizer_fit import TokenizerFit, tokenizer_fit
from zhub_workers.training import preflight as checks
from zhub_workers.training.preflight import Preflight

ENGLISH = "A short text about the weather in the hills, and what people say of it when it rains: 123,456,789. "
THAI = "รัฐบาลตัดสินใจ 123,456,789. "


class ByteFallback:
    """Splits ASCII into tokens of four letters, and every other letter into its bytes, as tokenizers do for English."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0] * self.count(text.replace(" ", "")) for text in texts]}

    def count(self, letters: str) -> int:
        foreign = [letter for letter in letters if not letter.isascii()]
        return (len(letters) - len(foreign)) // 4 + sum(len(letter.encode()) for letter in foreign)


def rows(text: str) -> list[Row]:
    return [Row(1, [{"role": "user", "content": text}], {})]


def report(**changed: Any) -> Preflight:
    usual: dict[str, Any] = {"prompts": 16, "answers": 128, "mean": 0.5, "deviation": 0.5, "low": 0.0, "high": 1.0}
    return Preflight(**(usual | {"informative": 0.5, "unread": 0.0} | changed))


def test_a_language_that_is_split_into_bytes_is_told_from_english() -> None:
    foreign, english = (tokenizer_fit(ByteFallback(), rows(text * 40)) for text in (THAI, ENGLISH))
    assert foreign is not None and english is not None
    assert foreign.tokens_per_letter == pytest.approx(3.0)
    assert foreign.times_english == pytest.approx(12.0, rel=0.15)
    assert (foreign.is_foreign, foreign.script, english.is_foreign) == (True, "Thai", False)


@pytest.mark.parametrize("text", ["What is 23 + 45? 68", "x = [3, 4]", ""])
def test_numbers_and_a_few_letters_say_nothing_about_a_language(text: str) -> None:
    assert tokenizer_fit(ByteFallback(), rows(text)) is None


def test_a_language_that_the_base_cannot_read_is_named_with_what_it_costs_and_what_to_do(
    load_adapted: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "tokenizer_fit", lambda _tokenizer, _rows: TokenizerFit(3.2, 12.9, "Thai"))
    _, events = run(load_adapted("llama"), reinforcement(n_steps=1), write_rows(tmp_path / "t", PROMPTS))
    (warning,) = [
        message for level, message, data in events if level == "warn" and data and data["type"] == "tokenizer"
    ]
    assert "The tokenizer of 'tiny' splits 'rows.jsonl', mostly Thai letters, into 3.2 tokens a letter" in warning
    assert "13 times as many as English" in warning and "its context holds about 20 letters" in warning
    assert "Use a base model whose tokenizer knows the language, or translate the rows." in warning


def test_a_reward_that_the_base_never_gets_offers_supervised_training_first(load_adapted: Load, tmp_path: Path) -> None:
    impossible = CONTAINS_E.model_copy(update={"reference": "no such answer"})
    with pytest.raises(ConstantRewardError, match="The base never gets the reward.*train with the method 'supervised'"):
        run(load_adapted("llama"), reinforcement(impossible), write_rows(tmp_path / "t", PROMPTS))


def test_a_reward_that_the_base_always_gets_asks_for_harder_rows() -> None:
    said = str(ConstantRewardError(1.0, 128, 0))
    assert "use harder rows" in said and "supervised" not in said


def test_a_reward_that_few_prompts_vary_in_is_warned_of_by_what_is_rare() -> None:
    never, always = report(informative=0.06, mean=0.01), report(informative=0.06, mean=0.99)
    assert never.advice is not None and "nearly no answer gets a reward" in never.advice
    assert "train with the method 'supervised'" in never.advice
    assert always.advice is not None and always.advice.endswith("Use harder rows, or a stricter grader.")
    assert report(informative=0.1).advice is None
