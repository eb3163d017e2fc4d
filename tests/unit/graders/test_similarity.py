"""Text similarity, against slow formulas."""

import unicodedata

import pytest
from example_graders import PARAM
from hypothesis import given
from hypothesis import strategies as st

from zhub.errors import InvalidRequestError, RewardError
from zhub.graders import Grader, GradingTools, Sample, grade, grade_all, parse_grader
from zhub.graders.limits import SUBSEQUENCE_CHARACTERS
from zhub.graders.similarity import WORD_OR_MARK, bleu, gleu, rouge_l, rouge_n


def slow_rouge(found: list[str], wanted: list[str], order: int) -> float:
    left = [found[i : i + order] for i in range(len(found) - order + 1)]
    right = [wanted[i : i + order] for i in range(len(wanted) - order + 1)]
    if not left and not right:
        return float(found == wanted)
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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("कि", "की"),
        ("दिन", "दीन"),
        ("มา", "ม้า"),
        ("ใกล้", "ไกล"),
        ("ກາ", "ກ້າ"),
        ("កា", "កី"),
        ("שָׁלוֹם", "שׁלום"),
        ("دِين", "دَين"),
    ],
    ids=["Hindi", "Hindi words", "Thai tones", "Thai", "Lao", "Khmer", "Hebrew", "Arabic"],
)
def test_texts_that_differ_in_their_marks_are_not_equal(metric: str, answer: str, wanted: str) -> None:
    assert (
        grade(similarity(metric), answer, {"answer": wanted})
        < 1
        == grade(similarity(metric), answer, {"answer": answer})
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("near", "far", "wanted"),
    [
        ("我非常喜欢小猫", "今天下雨了", "我非常喜欢小狗"),
        ("私は猫がとても好きです", "雨だ", "私は犬がとても好きです"),
        ("ฉันชอบแมวตัวนี้มาก", "ฝนตก", "ฉันชอบหมาตัวนี้มาก"),
        ("ខ្ញុំចូលចិត្តឆ្មានេះណាស់", "ភ្លៀង", "ខ្ញុំចូលចិត្តឆ្កែនេះណាស់"),
        ("मुझे यह छोटी बिल्ली बहुत पसंद है आज भी और कल भी", "बारिश हुई", "मुझे यह छोटी चिड़िया बहुत पसंद है आज भी और कल भी"),
        (
            "나는 이 작은 고양이를 아주 많이 좋아한다 오늘도 그리고 내일도",
            "비가 온다",
            "나는 이 작은 강아지를 아주 많이 좋아한다 오늘도 그리고 내일도",
        ),
    ],
    ids=["Chinese", "Japanese", "Thai", "Khmer", "Hindi", "Korean"],
)
def test_a_similar_text_is_near_in_every_script(metric: str, near: str, far: str, wanted: str) -> None:
    rewards = [grade(similarity(metric), text, {"answer": wanted}) for text in (wanted, near, far)]
    assert rewards[0] == pytest.approx(1) and rewards[0] > rewards[1] > rewards[2]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("text", ["Größe über Bäume", "é", "한국어 문장", "ガギグ", "क़लम"])
def test_composed_and_decomposed_texts_are_equal(metric: str, text: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert grade(similarity(metric), composed, {"answer": decomposed}) == pytest.approx(1)
    assert grade(similarity(metric), decomposed, {"answer": composed}) == pytest.approx(1)


def test_words_are_split_from_marks_and_characters_of_unspaced_scripts_from_each_other() -> None:
    assert WORD_OR_MARK.findall("don't, 我们2人 B2_x ม้า!") == [
        "don", "'", "t", ",", "我", "们", "2", "人", "B2_x", "ม้", "า", "!",
    ]  # fmt: skip


@pytest.mark.parametrize(("metric", "reason"), [("cosine", "embedding"), ("meteor", "WordNet"), ("rouge", "rouge_1")])
def test_a_similarity_without_its_library_is_refused_with_a_reason(metric: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as refused:
        similarity(metric)
    assert refused.value.param == f"{PARAM}.evaluation_metric"


@pytest.mark.parametrize("metric", ["fuzzy_match", "rouge_l"])
def test_a_common_subsequence_is_looked_for_in_texts_of_bounded_length(metric: str) -> None:
    longest = "a " * (SUBSEQUENCE_CHARACTERS // 2)
    (whole,) = grade_all(similarity(metric), [Sample(longest, {"answer": longest})], GradingTools())
    assert whole.reward == pytest.approx(1)
    (cut,) = grade_all(similarity(metric), [Sample(longest + "a", {"answer": "a"})], GradingTools())
    assert (cut.reward, cut.parsed) == (0.0, False) and "at most 20,000" in str(cut.detail)
    with pytest.raises(RewardError, match="line 7: the reference has 20,001 characters, and .* at most 20,000"):
        grade_all(similarity(metric), [Sample("a", {"answer": longest + "a"}, 7)], GradingTools())
