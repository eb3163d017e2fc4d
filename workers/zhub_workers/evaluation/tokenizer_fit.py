"""Whether a base's tokenizer knows the language of a dataset, or splits it into many times the tokens of English.

Such a base has hardly read the language: each row costs many times the computation, little of it fits the context, and
answers end after a few letters. Only letters are counted: numbers and code are split alike in every language.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zhub.datasets.rows import Row
from zhub_workers.evaluation.general_suite import all_questions

# Chinese takes three times the tokens of English for each letter with a tokenizer that was made for both, and says as
# much with a third of the letters.
MAX_TIMES_ENGLISH = 4.0
MIN_LETTERS = 200  # fewer say little about a language
MAX_LETTERS = 20_000  # more say no more
ROWS_READ = 500  # to tell the language of a dataset


@dataclass(frozen=True)
class TokenizerFit:
    """Tokens for each letter of a dataset; ``times_english``: how many times those of an English letter that is.

    ``script`` is that of most of the letters: "Thai".
    """

    tokens_per_letter: float
    times_english: float
    script: str

    def warning(self, base: str, file: str, *, context_length: int | None, max_new_tokens: int | None = None) -> str:
        """For people: what it costs, and what to do. Only where ``is_foreign``."""
        hold = []
        if context_length is not None:
            hold.append(f"its context holds about {context_length / self.tokens_per_letter:,.0f} letters of it")
        if max_new_tokens is not None:
            letters = max_new_tokens / self.tokens_per_letter
            hold.append(f"an answer of {max_new_tokens} tokens (max_new_tokens) about {letters:,.0f}")
        return (
            f"The tokenizer of '{base}' splits '{file}', mostly {self.script} letters, into "
            f"{self.tokens_per_letter:.1f} tokens a letter, {self.times_english:.0f} times as many as English: the "
            f"base has hardly read this language{''.join(f', {what}' for what in hold)}, and each row takes as many "
            "times longer. Use a base model whose tokenizer knows the language, or translate the rows."
        )

    @property
    def is_foreign(self) -> bool:
        return self.times_english > MAX_TIMES_ENGLISH


def tokenizer_fit(tokenizer: Any, rows: Iterable[Row]) -> TokenizerFit | None:
    """How a tokenizer splits the texts of some rows; None where they have too few letters to tell."""
    texts: list[str] = []
    count = 0
    for row in rows:
        for message in row.messages:
            words = letters_of(message["content"][:MAX_LETTERS])
            texts.append(words)
            count += _letter_count(words)
        if count >= MAX_LETTERS:
            break
    if count < MIN_LETTERS:
        return None
    english = _tokens_per_letter(tokenizer, [letters_of(question.question) for question in all_questions()])
    here = _tokens_per_letter(tokenizer, texts)
    return TokenizerFit(here, here / english, _script(texts))


def letters_of(text: str) -> str:
    """The words of a text: letters with their marks, everything else as one blank."""
    kept = (letter if unicodedata.category(letter)[0] in "LM" else " " for letter in text)
    return " ".join("".join(kept).split())


def _tokens_per_letter(tokenizer: Any, texts: Sequence[str]) -> float:
    tokens = sum(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])
    return float(tokens / sum(map(_letter_count, texts)))


def _letter_count(words: str) -> int:
    return len(words) - words.count(" ")


def _script(texts: Sequence[str]) -> str:
    # The first word of a letter's Unicode name is its script, for nearly all scripts in use.
    names = Counter(unicodedata.name(letter, "OTHER").split()[0] for text in texts for letter in text if letter != " ")
    name = names.most_common(1)[0][0]
    return "Chinese or Japanese" if name in ("CJK", "HIRAGANA", "KATAKANA") else name.capitalize()
