"""Which option of a multiple-choice question a text chooses.

An answer that cannot be read is wrong; it is never taken for a letter.
"""

import re

from zhub.errors import RewardError
from zhub.graders.samples import Grade, Sample
from zhub.graders.templates import UnreadableAnswerError, fill
from zhub.graders.types import MultipleChoiceGrader

# "(B)", "B.", "**B**", "\boxed{B}", "B": the option alone, with or without marks around it.
ALONE = re.compile(r"(?:\\boxed\s?\{)?[\s*_`\"'(\[{]*([A-Za-z]|[0-9]{1,2})[\s*_`\"')\]}.:,!]*")
# "the answer is (B)", "Answer: B", "correct option is B".
ANNOUNCED = re.compile(
    r"\b(?i:answer|choice|option)\s*(?:is|:|=)?(?:\s+(?:is|option|choice))?\s*[:=]?\s*"
    r"(?:\\boxed\s?\{)?[*_`\"'(\[{]*([A-Z]|[0-9]{1,2})(?![\w'])"
    # "The answer is A dog" does not choose A, and "the answer is I think" does not choose I.
    r"(?!(?<=[AI])\s(?!because\b|since\b|as\b|for\b|and\b|is\b)[a-z])",
)
BOXED = re.compile(r"\\boxed\s?\{\s*(?:\\text\s?\{)?\s*\(?([A-Za-z]|[0-9]{1,2})\)?\s*\}")
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

    In this order: the text is one option and nothing else, the last ``\\boxed{}``, the last announcement ("the answer
    is"), its last line is one option, it begins with one.
    """
    if alone := ALONE.fullmatch(text):
        return read_key(alone[1], n_choices=n_choices, base=base)
    for pattern in (BOXED, ANNOUNCED):
        if keys := pattern.findall(text):
            return read_key(keys[-1], n_choices=n_choices, base=base)
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and (alone := ALONE.fullmatch(lines[-1])):
        return read_key(alone[1], n_choices=n_choices, base=base)
    if leading := LEADING.match(text):
        return read_key(leading[1], n_choices=n_choices, base=base)
    return None


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
