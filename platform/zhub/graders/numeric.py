"""The final number of a text, read as people write numbers in English: ``$-1,234.50``, ``70,000``, ``3/4``, ``50%``."""

import re
from dataclasses import dataclass
from fractions import Fraction

from zhub.errors import RewardError
from zhub.graders.samples import Grade, Sample
from zhub.graders.templates import UnreadableAnswerError, fill
from zhub.graders.types import NumericGrader

# No answer is longer, and exact arithmetic on 10^999999999 would take all memory.
MAX_DIGITS = 60
MAX_EXPONENT = 300

_PLAIN = r"(?:[0-9]{1,3}(?:[,\u00a0\u202f][0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A hyphen is no minus where it joins the number to what comes before it, as in "3-5" or "x-5".
NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\].,%])[-+\u2212\u2013]\s?)?
    [$€£¥]?\s?(?P<inner_sign>(?<=[$€£¥])[-+\u2212])?
    (?P<whole>{_PLAIN})
    (?:[eE](?P<exponent>[-+]?[0-9]{{1,9}})(?![\w]))?
    (?:\s?/\s?(?P<below>[0-9][0-9,]*(?:\.[0-9]+)?)|[ ](?P<part_above>[0-9]+)/(?P<part_below>[0-9]+))?
    \s?(?P<percent>\\?%|percent\b|per\scent\b)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{\s?(-?[0-9.,]+)\s?\}\s?\{\s?([0-9.,]+)\s?\}")
BOXED = re.compile(r"\\boxed\s?\{((?:[^{}]|\{[^{}]*\})*)\}")
ANNOUNCED = re.compile(r"\banswer\s*(?:is|:|=)(?:\s*:)?", re.IGNORECASE)
FINAL_MARK = "####"


@dataclass(frozen=True)
class Number:
    """``value`` is what is written before a percent sign, not a hundredth of it."""

    value: Fraction
    percent: bool = False


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
    """Return the final number of a text, or None.

    It is the first one after the last ``####``, else the last one in the last ``\\boxed{}``, else the first one after
    the last "answer is", else the last number of the text.
    """
    if FINAL_MARK in text:
        return _first(text.rpartition(FINAL_MARK)[2])
    if boxed := BOXED.findall(text):
        return _last(boxed[-1])
    announced = list(ANNOUNCED.finditer(text))
    if announced:
        # Only to the end of the line: the next lines may explain the answer with other numbers.
        said = text[announced[-1].end() :].lstrip().partition("\n")[0]
        if (number := _first(said)) is not None:
            return number
    return _last(text)


def _first(text: str) -> Number | None:
    return next((number for number in map(_read, NUMBER.finditer(_plain(text))) if number is not None), None)


def _last(text: str) -> Number | None:
    numbers = [number for number in map(_read, NUMBER.finditer(_plain(text))) if number is not None]
    return numbers[-1] if numbers else None


def _plain(text: str) -> str:
    text = LATEX_FRACTION.sub(r" \1/\2 ", text)
    return text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\$", "$").replace("**", "")


def _read(match: re.Match[str]) -> Number | None:
    digits = re.sub(r"[,\u00a0\u202f]", "", match["whole"])
    exponent = int(match["exponent"] or 0)
    below = (match["below"] or match["part_below"] or "1").replace(",", "")
    above = match["part_above"] or "0"
    if max(len(digits), len(below), len(above)) > MAX_DIGITS or abs(exponent) > MAX_EXPONENT:
        return None
    if Fraction(below) == 0:
        return None
    value = Fraction(digits) * Fraction(10) ** exponent
    value = value + Fraction(above) / Fraction(below) if match["part_above"] else value / Fraction(below)
    signs = (match["sign"] or "") + (match["inner_sign"] or "")
    if any(sign in signs for sign in "-\u2212\u2013"):
        value = -value
    return Number(value, percent=bool(match["percent"]))
