"""The final number of a text, read as people write numbers in English: ``$-1,234.50``, ``70,000``, ``3/4``, ``50%``.

A final number that is not understood whole is no number: a part of it would be a wrong answer, or be
right by chance.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from zhub.errors import RewardError
from zhub.graders.latex_boxes import last_boxed
from zhub.graders.number_reader import Number
from zhub.graders.number_tokens import Token, tokens_of
from zhub.graders.samples import Grade, Sample
from zhub.graders.templates import UnreadableAnswerError, fill
from zhub.graders.types import NumericGrader

# A final number stands near the end of a text, or near what announces it.
MAX_READ_CHARACTERS = 8_000
ANNOUNCED = re.compile(r"\banswer[\s*_]{0,8}(?:is\b|:|=)(?:\s{0,8}:)?", re.IGNORECASE)
FINAL_MARK = "####"
UNIT_WORDS = 3  # at most, between a number and the operator that makes it part of a sum

Unreadable = Literal["unreadable"]


def grade_numeric(grader: NumericGrader, sample: Sample) -> Grade:
    wanted = final_number(fill(grader.name, grader.reference, sample))
    if wanted is None:
        text = fill(grader.name, grader.reference, sample)
        raise RewardError(
            grader.name, f"{sample.where}the reference {text[:100]!r} holds no number. Correct the row or the template."
        )
    answer = final_number(fill(grader.name, grader.input, sample))
    if answer is None:
        raise UnreadableAnswerError("no number in the answer")
    return Grade(float(equal(answer, wanted, abs_tol=grader.abs_tol, rel_tol=grader.rel_tol)))


def equal(answer: Number, wanted: Number, *, abs_tol: float, rel_tol: float) -> bool:
    """Compare exactly, within the greater tolerance.

    Where only one of the two has a percent sign, "50%" is equal to 50 (a percentage was asked for) and to 0.5.
    """
    tolerance = max(Fraction(abs_tol), Fraction(rel_tol) * abs(wanted.value))
    candidates = [answer.value]
    if answer.percent and not wanted.percent:
        candidates.append(answer.value / 100)
    elif wanted.percent and not answer.percent:
        candidates.append(answer.value * 100)
    return any(abs(candidate - wanted.value) <= tolerance for candidate in candidates)


def final_number(text: str) -> Number | None:
    """Return the final number of a text, or None where there is none that is understood whole.

    It is the first one after the last ``####``, else the last one in the last ``\\boxed{}`` or ``\\fbox{}``, else the
    first one after the last "answer is", else the last number of the text. Where there is an ``=`` beside it, the one
    on its right; a sum without an ``=`` is not worked out.
    """
    number = _final(text)
    return number if isinstance(number, Number) else None


def _final(text: str) -> Number | Unreadable | None:
    if FINAL_MARK in text:
        return _first(text.rpartition(FINAL_MARK)[2])
    if (boxed := last_boxed(text)) is not None:
        return _last(boxed)
    if announced := [match.end() for match in ANNOUNCED.finditer(text)]:
        # Only to the end of the line: the next lines may explain the answer with other numbers.
        said = text[announced[-1] :].lstrip().partition("\n")[0]
        if (number := _first(said)) is not None:
            return number
    return _last(text)


def _first(text: str) -> Number | Unreadable | None:
    """The first number of the first clause with numbers, or the first one on the right of its last ``=``."""
    tokens = tokens_of(text[:MAX_READ_CHARACTERS])
    places = _places(tokens)
    if not places:
        return None
    end = next((place for place in range(places[0], len(tokens)) if tokens[place] == "end"), len(tokens))
    last = max(place for place in places if place < end)
    equals = max((place for place in range(last) if tokens[place] == "equals"), default=0)
    return _alone(tokens[:end], next(place for place in places if place >= equals))


def _last(text: str) -> Number | Unreadable | None:
    tokens = tokens_of(text[-MAX_READ_CHARACTERS:])
    places = _places(tokens)
    return _alone(tokens, places[-1]) if places else None


def _places(tokens: Sequence[Token]) -> list[int]:
    return [place for place, token in enumerate(tokens) if isinstance(token, Number) or token == "unreadable"]


def _alone(tokens: Sequence[Token], place: int) -> Number | Unreadable:
    """The number at a place among tokens, unless it is only a part of a sum."""
    number = tokens[place]
    after = place + 1
    while after < len(tokens) and after <= place + UNIT_WORDS and tokens[after] == "word":
        after += 1
    in_a_sum = "operator" in (*tokens[max(0, place - 1) : place], *tokens[after : after + 1])
    return number if isinstance(number, Number) and not in_a_sum else "unreadable"
