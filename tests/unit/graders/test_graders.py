"""Graders: from an answer and its row to a reward."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from zhub.errors import InvalidRequestError, RewardError
from zhub.graders import (
    Grade,
    Grader,
    GradingTools,
    JsonSchemaGrader,
    MultiGrader,
    Sample,
    ScoreModelGrader,
    StringCheckGrader,
    check_templates,
    grade,
    grade_all,
    judge_models,
    needs_sandbox,
    parse_grader,
)
from zhub.graders.formula import check, evaluate
from zhub.graders.judge import read_score
from zhub.graders.similarity import bleu, gleu, rouge_l, rouge_n
from zhub.graders.templates import UnreadableAnswerError, fill

Operation = Literal["eq", "ne", "like", "ilike"]
PARAM = "method.reinforcement.grader"


def grader(
    operation: Operation = "eq", template: str = "{{sample.output_text}}", reference: str = "{{item.answer}}"
) -> StringCheckGrader:
    return StringCheckGrader(
        type="string_check", name="check", input=template, reference=reference, operation=operation
    )


@pytest.mark.parametrize(
    ("operation", "answer", "wanted", "reward"),
    [
        ("eq", "4", "4", 1.0),
        ("eq", "4 ", "4", 0.0),
        ("eq", "A", "a", 0.0),
        ("ne", "4", "4", 0.0),
        ("ne", "5", "4", 1.0),
        ("like", "it is 4.", "4", 1.0),
        ("like", "4", "it is 4.", 0.0),
        ("like", "Paris", "paris", 0.0),
        ("ilike", "in PARIS now", "paris", 1.0),
        ("ilike", "STRASSE", "straße", 1.0),
        ("ilike", "London", "paris", 0.0),
    ],
)
def test_an_operation_does_what_its_name_says(operation: Operation, answer: str, wanted: str, reward: float) -> None:
    assert grade(grader(operation), answer, {"answer": wanted}) == reward


@given(st.text(), st.text())
def test_a_reward_is_nothing_or_one_and_ne_is_the_opposite_of_eq(answer: str, wanted: str) -> None:
    rewards = [grade(grader(operation), answer, {"answer": wanted}) for operation in ("eq", "ne")]
    assert sorted(rewards) == [0.0, 1.0]


@given(st.text(), st.text(), st.text())
def test_like_finds_the_reference_anywhere(before: str, wanted: str, after: str) -> None:
    assert grade(grader("like"), before + wanted + after, {"answer": wanted}) == 1.0


@given(st.text())
def test_an_answer_that_looks_like_a_template_is_not_filled_in(wanted: str) -> None:
    item = {"answer": wanted, "secret": "s"}
    assert fill("check", "{{sample.output_text}}", Sample("{{item.secret}}", item)) == "{{item.secret}}"


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{{sample.output_text}}", "out"),
        ("{{ sample.output_text }}", "out"),
        ("[{{item.answer}}]", "[4]"),
        ("{{item.deep.er}}", "x"),
        ("{{item.answer}}{{item.answer}}", "44"),
        ("no template", "no template"),
        ("{single}", "{single}"),
    ],
)
def test_placeholders_are_filled_in(template: str, filled: str) -> None:
    assert fill("check", template, Sample("out", {"answer": "4", "deep": {"er": "x"}})) == filled


@pytest.mark.parametrize(
    ("value", "filled"),
    [(4, "4"), (2.5, "2.5"), (True, "true"), (False, "false"), (None, ""), ({"a": ["é"]}, '{"a": ["é"]}')],
)
def test_values_are_written_as_json_writes_them(value: object, filled: str) -> None:
    assert fill("check", "{{item.answer}}", Sample("", {"answer": value})) == filled


@pytest.mark.parametrize("item", [{}, {"answer": {}}, {"answer": "text"}, {"answer": [1]}])
def test_a_row_without_the_column_is_an_error_that_names_it(item: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match=r"'check'.*item\.answer\.value"):
        grade(grader(reference="{{item.answer.value}}"), "4", item)


def test_templates_that_every_row_can_fill_in_are_accepted() -> None:
    check_templates(grader(), {"answer": 10, "extra": 3}, 10, param=PARAM)


@pytest.mark.parametrize(
    ("made", "field", "message"),
    [
        (
            grader(reference="{{item.solution}}"),
            "reference",
            "'solution', which no row has. Columns found: answer, extra",
        ),
        (grader(reference="{{item.extra}}"), "reference", "'extra', which 7 of 10 rows lack"),
        (grader(reference="{{item}}"), "reference", "unknown placeholder"),
        (grader(template="{{sample.output_tools.a}}"), "input", "unknown placeholder"),
        (grader(template="{{output_text}}"), "input", "unknown placeholder"),
        (grader(template="{{sample.output_text"), "input", "cannot read the template"),
        (grader(template="{{sample.output_text | trim}}"), "input", "cannot read the template"),
        (grader(template="{{Item.answer}}"), "input", "cannot read the template"),
        (grader(template="{{item.answer}}"), "input", "never looks at the answer"),
    ],
)
def test_a_template_that_cannot_work_is_refused_by_its_field(made: StringCheckGrader, field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_templates(made, {"answer": 10, "extra": 3}, 10, param=PARAM)
    assert (refused.value.param, refused.value.code) == (f"{PARAM}.{field}", "invalid_grader")
    assert message in str(refused.value)


@given(st.text(alphabet="{}. itemsaplox_\n", max_size=60))
def test_a_template_that_was_accepted_can_be_filled_in(template: str) -> None:
    made = grader(reference=template)
    try:
        check_templates(made, {"a": 1, "x": 1}, 1, param=PARAM)
    except InvalidRequestError:
        return
    try:
        assert "{{" not in fill("check", template, Sample('{"a": 1, "x": 2}', {"a": "1", "x": "2"}))
    except RewardError as exc:
        assert "no column 'item." in str(exc)  # deeper than what the count of columns knows
    except UnreadableAnswerError:
        assert "output_json" in template


@pytest.mark.parametrize("change", [{"operation": "regex"}, {"input": 1}, {"extra": 1}, {"reference": None}])
def test_a_grader_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StringCheckGrader.model_validate(grader().model_dump() | change)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"n": {"m": 4}}', Grade(1.0)),
        ('{"n": {"m": 5}}', Grade(0.0)),
        ('{"n": 4}', Grade(0.0, parsed=False, detail="the answer has no '{{sample.output_json.n.m}}'")),
    ],
)
def test_a_template_looks_into_an_answer_that_is_json(answer: str, found: Grade) -> None:
    made = grader(template="{{sample.output_json.n.m}}")
    assert grade_all(made, [Sample(answer, {"answer": 4})], GradingTools()) == [found]


def test_an_answer_that_is_no_json_is_not_parsed() -> None:
    (found,) = grade_all(grader(template="{{sample.output_json.n}}"), [Sample("n", {"answer": 4})], GradingTools())
    assert (found.reward, found.parsed) == (0.0, False)


def test_an_error_names_the_line_of_the_row() -> None:
    with pytest.raises(RewardError, match="'check': line 17: the row has no column 'item.answer'"):
        grade_all(grader(), [Sample("4", {"answer": "4"}, 16), Sample("4", {}, 17)], GradingTools())


# Text similarity, against slow formulas.


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


# JSON.


def json_grader(schema: dict[str, Any], **more: Any) -> JsonSchemaGrader:
    return JsonSchemaGrader(type="json_schema", name="j", json_schema=schema, **more)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.mark.parametrize(
    ("answer", "reward", "parsed"),
    [
        ('{"name": "Ada", "age": 36}', 1.0, True),
        ('```json\n{"name": "Ada", "age": 36}\n```', 1.0, True),
        ('{"name": "ada", "age": 36}', 0.0, True),
        ('{"name": "Ada"}', 0.0, True),
        ('{"name": "Ada", "age": NaN}', 0.0, False),
        ("Ada is 36.", 0.0, False),
        ("[" * 100_000, 0.0, False),
        ("", 0.0, False),
    ],
)
def test_json_that_fits_its_schema_is_right(answer: str, reward: float, parsed: bool) -> None:
    (found,) = grade_all(json_grader(PERSON), [Sample(answer, {})], GradingTools())
    assert (found.reward, found.parsed) == (reward, parsed)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('{"name": "Bob", "age": 36.0}', 0.5),
        ('{"name": "Bob", "age": 37}', 0.0),
        ('{"name": "Ada"}', 0.0),
    ],
)
def test_fields_that_agree_with_the_reference_are_counted(answer: str, reward: float) -> None:
    made = json_grader(PERSON, reference="{{item.person}}")
    assert grade(made, answer, {"person": {"name": "Ada", "age": 36}}) == reward
    assert grade(made, answer, {"person": '{"name": "Ada", "age": 36}'}) == reward


def test_true_is_not_the_number_one() -> None:
    assert grade(json_grader({}, reference="{{item.p}}"), '{"a": true, "b": [1]}', {"p": {"a": 1, "b": [True]}}) == 0


@pytest.mark.parametrize(
    ("schema", "answer", "message"),
    [
        ({"$ref": "https://127.0.0.1:9/schema.json"}, "{}", "none is fetched"),
        ({"$ref": "#"}, "{}", "without end"),
        ({"pattern": "^(a+)+$"}, '"' + "a" * 40 + 'b"', None),
        (
            {"$ref": "#/$defs/0", "$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 9} for n in range(9)}
             | {"9": False}},
            "{}",
            "without end",
        ),
    ],
    ids=["a schema elsewhere", "a circle", "a pattern that backtracks", "references that multiply"],
)  # fmt: skip
def test_a_schema_that_would_do_harm_comes_to_an_end(schema: dict[str, Any], answer: str, message: str | None) -> None:
    try:
        found = grade(json_grader(schema), answer, {})
    except RewardError as exc:
        assert message is None or message in str(exc)
    else:
        assert message is None and found == 0


# A model as judge.

JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "base",
    "input": [{"role": "user", "content": "Rate {{sample.output_text}} against {{item.answer}}."}],
    "range": [0, 10],
}


def test_a_judge_is_asked_about_all_answers_at_once() -> None:
    asked: list[Any] = []

    def judge(grader: ScoreModelGrader, conversations: Any) -> list[str]:
        asked.append(list(conversations))
        return ["7", "score: none", "11"]

    samples = [Sample(text, {"answer": "x"}) for text in "abc"]
    found = grade_all(parse_grader(JUDGE, param="grader"), samples, GradingTools(judge=judge))
    assert [(one.reward, one.parsed) for one in found] == [(7.0, True), (0.0, False), (0.0, False)]
    assert asked == [[[{"role": "user", "content": f"Rate {text} against x."}] for text in "abc"]]


@pytest.mark.parametrize(
    ("judgement", "score"),
    [
        ("0.75", 0.75),
        ('{"result": 3}', 3.0),
        ('Thinking {x}. {"steps": [], "score": 0.5} done 9', 0.5),
        ("I give it 4 out of 5, so 0.8", 0.8),
        ("-1", -1.0),
        ("none", None),
        ("9" * 500, None),
        ('{"result": "high"}', None),
        ('{"result": true}', None),
    ],
)
def test_a_judgement_is_read_for_its_number(judgement: str, score: float | None) -> None:
    assert read_score(judgement) == score


# Formulas.


def multi(formula: str, **more: Any) -> MultiGrader:
    made = parse_grader(
        {"type": "multi", "name": "m", "calculate_output": formula,
         "graders": {"a": grader().model_dump(), "b": grader("ne").model_dump()}} | more, param=PARAM,
    )  # fmt: skip
    assert isinstance(made, MultiGrader)
    return made


@pytest.mark.parametrize(
    ("formula", "reward"),
    [
        ("0.75 * a + 0.25 * b", 0.75),
        ("min(a, b) - max(a, b, 0.5)", -1.0),
        ("abs(b - a) + floor(0.9 * a) + ceil(0.1 + b)", 2.0),
        ("exp(log(a)) + sqrt(4 * a) + b", 3.0),
        ("2^3 * a + b", 8.0),
        ("1 + 2^2 * a + b", 5.0),
        ("-(a + b) / 2", -0.5),
    ],
)
def test_a_formula_joins_the_rewards(formula: str, reward: float) -> None:
    assert grade(multi(formula), "4", {"answer": "4"}) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("a + c", "'c', which is no grader"),
        ("a", "does not use the grader 'b'"),
        ("a +", "cannot be read"),
        ("a + b + __import__('os').system('true')", "a formula has numbers"),
        ("a.real + b", "a formula has numbers"),
        ("a + b + 'x'", "a formula has numbers"),
        ("a if b else 0", "a formula has numbers"),
        ("a + b + True", "a formula has numbers"),
        ("max() + a + b", "a formula has numbers"),
        ("sqrt(a, b)", "takes 1 argument"),
        ("(" * 300 + "a" + ")" * 300, "cannot be read"),
    ],
)
def test_a_formula_that_cannot_be_computed_is_refused(formula: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match="Grader: ") as refused:
        multi(formula)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "formula", ["a / b", "log(b) + a", "10 ^ 400 + a + b", "exp(10000 * a) + b", "9^9^9^9 + a + b"]
)
def test_a_formula_without_a_value_is_an_error_that_says_for_what(formula: str) -> None:
    with pytest.raises(RewardError, match="a = 1, b = 0") as failed:
        grade(multi(formula), "4", {"answer": "4"})
    assert failed.value.code == "reward_not_a_number"


@given(st.text(alphabet="ab12+-*/()., ^minlog", max_size=30))
def test_a_formula_that_was_accepted_gives_a_number_or_says_why_not(formula: str) -> None:
    try:
        check(formula, ["a", "b"])
    except ValueError:
        return
    try:
        evaluate(formula, {"a": 1.0, "b": 0.0})
    except (ArithmeticError, ValueError):
        return


@pytest.mark.parametrize(
    ("graders", "names"),
    [
        (grader().model_dump(), ["check"]),
        ([grader().model_dump(), grader().model_dump() | {"name": "b"}], ["check", "b"]),
        ({"x": grader().model_dump()}, ["x"]),
    ],
    ids=["one", "a list", "by name"],
)
def test_the_graders_of_a_multi_come_in_three_shapes(graders: Any, names: list[str]) -> None:
    assert list(multi(" + ".join(names), graders=graders).graders) == names


# What is refused before it costs anything.

PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0\n"}
STRING = grader().model_dump()


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ("string_check", "", "A grader is an object"),
        ({}, ".type", "no grader type None"),
        ({"type": "strin_check"}, ".type", "Did you mean 'string_check'?"),
        ({"type": "label_model"}, ".type", "Known: string_check"),
        (STRING | {"operation": "regex"}, ".operation", "operation"),
        (STRING | {"inptu": "x"}, ".inptu", "inptu"),
        (STRING | {"input": "{{item.answer}}"}, ".input", "never looks at the answer"),
        (PYTHON | {"source": "def grade(sample, item)\n  pass"}, ".source", "line 1"),
        (PYTHON | {"source": "x = 1"}, ".source", "must define a function grade"),
        (PYTHON | {"source": "def grade(sample): return 1"}, ".source", "two arguments"),
        (PYTHON | {"source": "def grade(a, b, c): return 1"}, ".source", "two arguments"),
        (PYTHON | {"source": "def grade(a, b, *, c): return 1"}, ".source", "two arguments"),
        (PYTHON | {"source": "async def grade(a, b): return 1"}, ".source", "must define a function grade"),
        (PYTHON | {"source": "#" * (257 << 10)}, ".source", "256 KiB"),
        (PYTHON | {"image_tag": "v2"}, ".image_tag", "None"),
        (PYTHON | {"timeout_s": 0}, ".timeout_s", "greater than 0"),
        ({"type": "json_schema", "name": "j", "json_schema": {"type": "strin"}}, ".json_schema", "no JSON schema"),
        ({"type": "json_schema", "name": "j", "json_schema": {"pattern": "("}}, ".json_schema", "no JSON schema"),
        ({"type": "json_schema", "name": "j", "json_schema": {}, "fields": ["a"]}, "", "'reference'"),
        ({"type": "code_tests", "name": "c", "tests": "assert f(1) == 2"}, ".tests", "must be one column"),
        (JUDGE | {"range": [1, 0]}, ".range", "must ascend"),
        (JUDGE | {"input": []}, ".input", "at least 1"),
        (
            JUDGE | {"input": [{"role": "user", "content": "{{samples}} {{sample.output_text}}"}]},
            ".input.0.content",
            "unknown placeholder",
        ),
        (
            {"type": "multi", "name": "m", "calculate_output": "a", "graders": {"a": PYTHON | {"source": ""}}},
            ".graders.a.source",
            "must define",
        ),
        (
            {"type": "multi", "name": "m", "calculate_output": "a", "graders": {"a": STRING | {"input": "x"}}},
            ".graders.a.input",
            "never looks",
        ),
    ],
)
def test_a_grader_that_cannot_work_is_refused_by_its_field(given: Any, param: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_grader(given, param=PARAM)
    assert (refused.value.param, refused.value.code) == (PARAM + param, "invalid_grader")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "def grade(sample, item): return 1",
        "def grade(sample, item, extra=2): return 1",
        "def grade(*args): return 1",
        "def grade(sample, item=None, *, strict=False): return 1",
    ],
)
def test_a_source_whose_grade_takes_two_is_accepted(source: str) -> None:
    assert needs_sandbox(parse_grader(PYTHON | {"source": source}, param=PARAM))


def test_columns_are_checked_in_every_part_of_a_multi() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_templates(multi("a + b"), {"other": 10}, 10, param=PARAM)
    assert refused.value.param == f"{PARAM}.graders.a.reference"


def test_what_a_grader_needs_is_found_in_its_parts() -> None:
    parts = {"a": JUDGE, "b": JUDGE | {"model": "other"}, "c": JUDGE, "d": STRING}
    made = multi("a + b + c + d", graders=parts)
    assert (judge_models(made), needs_sandbox(made)) == (["base", "other"], False)
    assert needs_sandbox(multi("a + d", graders={"a": PYTHON, "d": STRING}))


@pytest.mark.parametrize("given", [STRING, PYTHON, JUDGE, multi("a + b").model_dump()], ids=lambda given: given["type"])
def test_a_grader_written_down_is_read_as_it_was(given: Any) -> None:
    made = parse_grader(given, param=PARAM)
    assert parse_grader(made.model_dump(mode="json"), param=PARAM) == made
