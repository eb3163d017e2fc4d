"""How alike two texts are, in [0, 1]: fuzzy matching, BLEU, GLEU and ROUGE.

ROUGE is computed here: its one library (rouge-score 0.1.2, of 2022) brings 49 MB of dependencies for it and reads no
letter outside ASCII, so that two texts in Greek share nothing.
"""

import re
from collections import Counter
from collections.abc import Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from zhub.graders.samples import Grade, Sample
from zhub.graders.templates import fill
from zhub.graders.types import TextSimilarityGrader

WORD = re.compile(r"\w+")
WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
GLEU_ORDER = 4


def grade_similarity(grader: TextSimilarityGrader, sample: Sample) -> Grade:
    answer = fill(grader.name, grader.input, sample)
    wanted = fill(grader.name, grader.reference, sample)
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


def bleu(answer: str, wanted: str) -> float:
    """Sentence BLEU as sacrebleu computes it, on the orders of n-grams that the texts are long enough for."""
    # Imported where it is used: it takes 0.1 s and numpy, and the command line knows graders too.
    from sacrebleu.metrics.bleu import BLEU

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
    """F1 over n-grams of lower-case words. Source: Lin 2004."""
    left, right = (Counter(_ngrams(WORD.findall(text.lower()), order)) for text in (answer, wanted))
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
