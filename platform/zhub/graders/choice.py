"""Which option of a multiple-choice question a text chooses.

An answer that cannot be read is wrong; it is never taken for a letter.
"""

import re
import string

from zhub.errors import RewardError
from zhub.graders.latex_boxes import last_boxed
from zhub.graders.samples import Grade, Sample
from zhub.graders.templates import UnreadableAnswerError, fill
from zhub.graders.types import MultipleChoiceGrader

# "(B)", "B.", "**B**", "\\boxed{\\textbf{(B)}}", "B": the option alone, with or without marks around it.
COMMAND = re.compile(r"\\[A-Za-z]+")
MARKS_BEFORE = string.whitespace + "\\$*_`\"'([{"
MARKS_BEHIND = string.whitespace + "\\$*_`\"')]}.:,!"
KEY = re.compile(r"[A-Za-z]|[0-9]{1,2}")
# "the answer is (B)", "Answer: B", "correct option is B". Every repetition has a bound and gives nothing back, so that
# an answer of blanks takes no longer than another.
ANNOUNCED = re.compile(
    r"\b(?i:answer|choice|option)\s{0,16}+(?P<said>(?i:is\b)|[:=])?+(?:\s{1,16}+(?i:is|option|choice)\b)?+"
    r"\s{0,16}+[:=]?+(?:\\[A-Za-z]{1,16}+|[\s\\$*_`\"'(\[{]){0,16}+(?P<key>[A-Za-z]|[0-9]{1,2})(?![\w'])"
)
# "The answer is A dog" does not choose A, and "the answer is I think" does not choose I.
GOES_ON = re.compile(r"\s(?!(?:because|since|as|for|and|is)\b)[a-z]")
# A small letter is a key only where the sentence ends, or gives its reasons: "the answer is a dog".
ENDS = re.compile(r"[\\$*_`\"')\]}]{0,16}+(?:\s{0,16}+\Z|[^\S\n]{0,16}+(?:[.,;:!?\n]|(?:because|since|as)\b))")
# "B. because …", "B) because …": the option first, then the reason.
LEADING = re.compile(r"\s*[*_(\[]*([A-Z]|[0-9]{1,2})[)\].:][*_]*\s")


def grade_choice(grader: MultipleChoiceGrader, sample: Sample) -> Grade:
    reference = fill(grader.name, grader.reference, sample)
    wanted = read_key(reference, n_choices=grader.n_choices, base=grader.reference_base)
    if wanted is None:
        last = chr(ord("A") + grader.n_choices - 1)
        lowest, highest = grader.reference_base, grader.reference_base + grader.n_choices - 1
        raise RewardError(
            grader.name,
            f"{sample.where}the reference {reference[:100]!r} is neither a letter from A to {last} nor a number from "
            f"{lowest} to {highest}. Correct the row, n_choices or reference_base.",
        )
    answer = fill(grader.name, grader.input, sample)
    chosen = read_choice(answer, n_choices=grader.n_choices, base=grader.reference_base)
    if chosen is None:
        raise UnreadableAnswerError("the answer chooses none of the options")
    return Grade(float(chosen == wanted))


def read_choice(text: str, *, n_choices: int, base: int) -> int | None:
    """Return the option that a text chooses, from 0, or None.

    In this order: the text is one option and nothing else, its last ``\\boxed{}`` is one, the last announcement ("the
    answer is"), its last line is one option, it begins with one.
    """
    boxed = last_boxed(text)
    lines = [line for line in text.splitlines() if line.strip()]
    leading = LEADING.match(text)
    keys = (
        _alone(text),
        _alone(boxed) if boxed is not None else None,
        _announced(text),
        _alone(lines[-1]) if lines else None,
        leading[1] if leading is not None else None,
    )
    key = next((key for key in keys if key is not None), None)
    return None if key is None else read_key(key, n_choices=n_choices, base=base)


def _alone(text: str) -> str | None:
    """The option that is all of a text but for marks around it."""
    key = COMMAND.sub("", text).lstrip(MARKS_BEFORE).rstrip(MARKS_BEHIND)
    return key if KEY.fullmatch(key) else None


def _announced(text: str) -> str | None:
    chosen = None
    for match in ANNOUNCED.finditer(text):
        key, end = match["key"], match.end()
        vague = key.islower() and not (match["said"] and ENDS.match(text, end))
        if not vague and not (key in ("A", "I") and GOES_ON.match(text, end)):
            chosen = key
    return chosen


def read_key(key: str, *, n_choices: int, base: int) -> int | None:
    """A letter counts from A, a number from ``base``."""
    key = key.strip().strip("().").upper()
    if re.fullmatch(r"[A-Z]", key):
        place = ord(key) - ord("A")
    elif re.fullmatch(r"[0-9]{1,2}", key):
        place = int(key) - base
    else:
        return None
    return place if 0 <= place < n_choices else None
