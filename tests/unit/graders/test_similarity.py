"""Text similarity, against slow formulas."""

import pytest
from example_graders import PARAM
from hypothesis import given
from hypothesis import strategies as st

from zhub.errors import InvalidRequestError
from zhub.graders import Grader, grade, parse_grader
from zhub.graders.similarity import bleu, gleu, rouge_l, rouge_n


def slow_rouge(found: list[str], wanted: list[str], order: int) -> float:
    left = [found[i : i + order] for i in range(len(found) - order + 1)]
    right = [wanted[i : i + order] for i in range(len(wanted) - order + 1)]
    if not left and not right:
        return 1.0
    common, rest = 0, list(right)
    for gram in left:
        if gram in rest:
            rest.remove(gram)
            common += 1
    precision, recall = common / max(len(left), 1), common / max(len(right), 1)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def slow_lcs(left: list[str], right: list[str]) -> int:
    if not left or not right:
        return 0
    if left[0] == right[0]:
        return 1 + slow_lcs(left[1:], right[1:])
    return max(slow_lcs(left[1:], right), slow_lcs(left, right[1:]))


words = st.lists(st.sampled_from(["a", "b", "ä", "δ", "7"]), max_size=7)


@given(words, words, st.integers(1, 5))
def test_rouge_n_is_the_f1_of_common_n_grams(found: list[str], wanted: list[str], order: int) -> None:
    expected = slow_rouge(found, wanted, order)
    assert rouge_n(" ".join(found), " ".join(wanted), order) == pytest.approx(expected)


@given(words, words)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(found: list[str], wanted: list[str]) -> None:
    total = len(found) + len(wanted)
    expected = 2 * slow_lcs(found, wanted) / total if total else 1.0
    assert rouge_l(" ".join(found), " ".join(wanted)) == pytest.approx(expected)


@given(words, words)
def test_gleu_is_the_lesser_of_precision_and_recall(found: list[str], wanted: list[str]) -> None:
    def grams(words: list[str]) -> list[list[str]]:
        return [words[i : i + order] for order in (1, 2, 3, 4) for i in range(len(words) - order + 1)]

    left, right = grams(found), grams(wanted)
    rest, common = list(right), 0
    for gram in left:
        if gram in rest:
            rest.remove(gram)
            common += 1
    expected = min(common / len(left), common / len(right)) if left and right else float(left == right)
    assert gleu(" ".join(found), " ".join(wanted)) == pytest.approx(expected)


def test_bleu_of_equal_texts_is_one_however_short() -> None:
    assert [bleu(text, text) for text in ("yes", "the cat", "the cat sat on the mat .")] == pytest.approx([1, 1, 1])


METRICS = ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]


def similarity(metric: str) -> Grader:
    return parse_grader(
        {"type": "text_similarity", "name": "s", "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
         "evaluation_metric": metric}, param=PARAM,
    )  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_a_similarity_ranks_the_nearer_answer_higher(metric: str) -> None:
    item = {"answer": "the quick brown fox jumps over the lazy dog"}
    same, near, far = (
        grade(similarity(metric), text, item)
        for text in (item["answer"], "the quick brown fox jumps over a dog", "no such animal")
    )
    assert same == pytest.approx(1) and same > near > far >= 0


@pytest.mark.parametrize(("metric", "reason"), [("cosine", "embedding"), ("meteor", "WordNet"), ("rouge", "rouge_1")])
def test_a_similarity_without_its_library_is_refused_with_a_reason(metric: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as refused:
        similarity(metric)
    assert refused.value.param == f"{PARAM}.evaluation_metric"
