"""How alike two texts are, in [0, 1]: fuzzy matching, BLEU, GLEU and ROUGE.

ROUGE is computed here: its one library (rouge-score 0.1.2, of 2022) brings 49 MB of dependencies for it and reads no
letter outside ASCII, so that two texts in Greek share nothing.

Words are those of the script: a letter keeps the marks that belong to it (Hindi "कि" is not "की"), and scripts that put
no blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) are compared character by character, as
sacrebleu's tokenizer for Chinese does. Texts are compared in the Unicode normal form C.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex
from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from zhub.errors import RewardError
from zhub.graders.limits import SUBSEQUENCE_CHARACTERS
from zhub.graders.samples import Grade, Sample
from zhub.graders.templates import UnreadableAnswerError, fill
from zhub.graders.types import TextSimilarityGrader

UNSPACED_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
# A letter of an unspaced script with its marks.
CHARACTER = regex.compile(rf"(?V1)[[{UNSPACED_SCRIPTS}]&&[\p{{L}}\p{{N}}]]\p{{M}}*+")
# The joiners stand within words of Persian and Hindi.
WORD = regex.compile(
    rf"{CHARACTER.pattern}|[[\p{{L}}\p{{N}}_]--[{UNSPACED_SCRIPTS}]][[\p{{L}}\p{{M}}\p{{N}}_\u200c\u200d]--[{UNSPACED_SCRIPTS}]]*+"
)
WORD_OR_MARK = regex.compile(rf"{WORD.pattern}|[^\s\p{{L}}\p{{M}}\p{{N}}_]")
GLEU_ORDER = 4


def grade_similarity(grader: TextSimilarityGrader, sample: Sample) -> Grade:
    answer = unicodedata.normalize("NFC", fill(grader.name, grader.input, sample))
    wanted = unicodedata.normalize("NFC", fill(grader.name, grader.reference, sample))
    if grader.evaluation_metric in ("fuzzy_match", "rouge_l"):
        _check_lengths(grader, sample, answer, wanted)
    match grader.evaluation_metric:
        case "fuzzy_match":
            score = fuzz.ratio(answer, wanted) / 100
        case "bleu":
            score = bleu(answer, wanted)
        case "gleu":
            score = gleu(answer, wanted)
        case "rouge_l":
            score = rouge_l(answer, wanted)
        case metric:
            score = rouge_n(answer, wanted, int(metric.removeprefix("rouge_")))
    return Grade(score)


def _check_lengths(grader: TextSimilarityGrader, sample: Sample, answer: str, wanted: str) -> None:
    most = f"{grader.evaluation_metric} compares at most {SUBSEQUENCE_CHARACTERS:,}"
    if len(answer) > SUBSEQUENCE_CHARACTERS:
        raise UnreadableAnswerError(f"the answer has {len(answer):,} characters, and {most}")
    if len(wanted) > SUBSEQUENCE_CHARACTERS:
        raise RewardError(
            grader.name,
            f"{sample.where}the reference has {len(wanted):,} characters, and {most}. Shorten it, or use rouge_2.",
        )


def bleu(answer: str, wanted: str) -> float:
    """Sentence BLEU as sacrebleu computes it, on the orders of n-grams that the texts are long enough for."""
    # Imported where it is used: it takes 0.1 s and numpy, and the command line knows graders too.
    from sacrebleu.metrics.bleu import BLEU

    answer, wanted = (CHARACTER.sub(r" \g<0> ", text) for text in (answer, wanted))
    return float(min(1.0, BLEU(effective_order=True).sentence_score(answer, [wanted]).score / 100))


def gleu(answer: str, wanted: str) -> float:
    """The lesser of precision and recall over all n-grams up to 4. Source: Wu et al. 2016, arXiv:1609.08144, §7.1."""
    counts = [Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()]
    for text, count in zip((answer, wanted), counts, strict=True):
        words = WORD_OR_MARK.findall(text)
        for order in range(1, GLEU_ORDER + 1):
            count.update(_ngrams(words, order))
    most = max(counts[0].total(), counts[1].total())
    return (counts[0] & counts[1]).total() / most if most else 1.0


def rouge_n(answer: str, wanted: str, order: int) -> float:
    """F1 over n-grams of lower-case words. Source: Lin 2004. Texts too short for one are equal or not."""
    words = [WORD.findall(text.lower()) for text in (answer, wanted)]
    if max(map(len, words)) < order:
        return float(words[0] == words[1])
    left, right = (Counter(_ngrams(of_text, order)) for of_text in words)
    return _f1((left & right).total(), left.total(), right.total())


def rouge_l(answer: str, wanted: str) -> float:
    """F1 over the longest common subsequence of lower-case words. Source: Lin 2004."""
    left, right = (WORD.findall(text.lower()) for text in (answer, wanted))
    return _f1(LCSseq.similarity(left, right), len(left), len(right))


def _ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]


def _f1(common: int, in_answer: int, in_reference: int) -> float:
    if in_answer == 0 and in_reference == 0:
        return 1.0
    return 2 * common / (in_answer + in_reference)
