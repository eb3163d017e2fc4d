"""What becomes of the columns of foreign records: the mappings that names give, those that are chosen, and refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conversions import answered, asked, rows_of, rows_of_bytes, rows_of_records

from zhub.datasets.conversion.column_names import ANSWERS, PROMPTS
from zhub.datasets.conversion.converting import as_rows
from zhub.datasets.conversion.mapping import ChosenColumns
from zhub.errors import InvalidRequestError

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = {
    "input": {"messages": [USER]},
    "preferred_output": [BOT],
    "non_preferred_output": [{"role": "assistant", "content": "b"}],
}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_question_with_its_answer_is_known_by_their_names(prompt: str, answer: str, tmp_path: Path) -> None:
    for prompt_name, answer_name in ((prompt, answer), (prompt.upper(), answer.title())):
        assert rows_of_records(tmp_path, [{prompt_name: "q", answer_name: "a"}]) == [asked("q", answer="a")]


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"instruction": "q", "input": "x", "output": "a"}, asked("q\n\nx", answer="a")),
        ({"instruction": "q", "input": "", "output": "a"}, asked("q", answer="a")),
        ({"instruction": "q", "context": None, "response": "a"}, asked("q", answer="a")),
        ({"input": "q", "output": "a"}, asked("q", answer="a")),
        ({"text": "q", "label": 3}, asked("q", answer="3")),
        ({"question": 7, "answer": True, "n": 0, "none": None}, asked("7", answer="true", n=0)),
        ({"question": "q", "answer": 0.5, "topic": {"a": [1]}}, asked("q", answer="0.5", topic={"a": [1]})),
        ({"prompt": [USER], "completion": [BOT]}, asked("q", answer="a")),
        (
            {"system": "s", "question": "q", "answer": "a"},
            {"messages": [{"role": "system", "content": "s"}, USER], "answer": "a"},
        ),
        ({"prompt": "q", "score": 3}, asked("q", score=3)),
        ({"messages": [USER, BOT], "answer": "x"}, {"messages": [USER, BOT], "answer": "x"}),
        ({"messages": json.dumps([USER, BOT])}, {"messages": [USER, BOT]}),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "id": "1"},
            {"messages": [USER, BOT], "id": "1"},
        ),
        ({"conversation": [USER, BOT]}, {"messages": [USER, BOT]}),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
        ({"prompt": "q", "chosen": [USER, BOT], "rejected": [USER, BOT | {"content": "b"}]}, PAIR),
        ({"chosen": [USER, BOT], "rejected": [USER, BOT | {"content": "b"}], "score": 2}, {"score": 2} | PAIR),
        ({"prompt": [USER], "chosen": [BOT], "rejected": [BOT | {"content": "b"}]}, PAIR),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "messages": [USER, BOT]}, PAIR),
        (PAIR, PAIR),
    ],
    ids=lambda value: str(list(value)),
)
def test_the_columns_of_public_datasets_become_rows(
    record: dict[str, Any], row: dict[str, Any], tmp_path: Path
) -> None:
    assert rows_of_records(tmp_path, [record]) == [row]


@pytest.mark.parametrize(
    ("method", "record", "row"),
    [
        ("supervised", {"question": "q", "answer": "a"}, answered("q", "a", answer="a")),
        ("supervised", {"problem": "q", "output": "a", "n": 1}, answered("q", "a", answer="a", n=1)),
        ("reinforcement", {"question": "q", "answer": "a"}, asked("q", answer="a")),
        ("reinforcement", {"conversations": [USER, BOT], "id": 1}, asked("q", answer="a", id=1)),
        ("supervised", {"conversations": [USER, BOT]}, {"messages": [USER, BOT]}),
        ("dpo", {"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
        (
            "supervised",
            {"prompt": "q", "chosen": "a", "rejected": "b", "messages": [USER, BOT]},
            answered("q", "a", prompt="q", chosen="a", rejected="b"),
        ),
    ],
)
def test_the_method_says_where_the_answer_goes(
    method: str, record: dict[str, Any], row: dict[str, Any], tmp_path: Path
) -> None:
    assert rows_of_records(tmp_path, [record], method=method) == [row]


WORKED = [{"question": f"q{n}", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(3)]


def test_the_final_answer_of_a_worked_solution_is_the_answer_and_the_rest_is_kept(tmp_path: Path) -> None:
    expected = [asked(f"q{n}", answer=str(n + 1), solution=WORKED[n]["answer"]) for n in range(3)]
    assert rows_of_records(tmp_path, WORKED) == expected
    expected = [answered(f"q{n}", WORKED[n]["answer"], answer=str(n + 1)) for n in range(3)]
    assert rows_of_records(tmp_path, WORKED, method="supervised") == expected


def test_headings_in_answers_are_no_final_answers(tmp_path: Path) -> None:
    answer = "#### Soup\nCook it."
    assert rows_of_records(tmp_path, [{"question": "q", "answer": answer}]) == [asked("q", answer=answer)]
    mixed = [*WORKED, {"question": "q", "answer": "none"}]
    assert [row["answer"] for row in rows_of_records(tmp_path, mixed)] == [record["answer"] for record in mixed]


def test_a_solution_without_the_final_answer_that_all_before_it_had_is_named(tmp_path: Path) -> None:
    records = [*WORKED * 40, {"question": "q", "answer": "none"}]
    with pytest.raises(InvalidRequestError, match=r"row 121: 'answer' has no answer after ####"):
        rows_of_records(tmp_path, records)


# What somebody chose


COMPETING = {"problem": "q", "solution": "long", "answer": "a", "topic": "t"}


@pytest.mark.parametrize(
    ("chosen", "options", "row"),
    [
        (ChosenColumns(answer_column="answer"), {}, asked("q", answer="a", solution="long", topic="t")),
        (
            ChosenColumns(answer_column="solution"),
            {"method": "supervised"},
            answered("q", "long", answer="a", topic="t"),
        ),
        (
            ChosenColumns("topic", "answer"),
            {},
            asked("t", answer="a", problem="q", solution="long"),
        ),
        (
            ChosenColumns(answer_column="answer", prompt_template="{{item.topic}}: {{ item.problem }}!"),
            {},
            asked("t: q!", answer="a", problem="q", solution="long", topic="t"),
        ),
    ],
)
def test_chosen_columns_come_before_names(
    chosen: ChosenColumns, options: dict[str, Any], row: dict[str, Any], tmp_path: Path
) -> None:
    assert rows_of_records(tmp_path, [COMPETING], chosen=chosen, **options) == [row]


def test_a_template_writes_lists_as_json_and_reaches_into_objects(tmp_path: Path) -> None:
    record = {"q": {"text": "x"}, "choices": ["a", "ü"], "answer": "a", "none": None}
    chosen = ChosenColumns(prompt_template="{{item.q.text}} {{item.choices}}{{item.none}}")
    (row,) = rows_of_records(tmp_path, [record], chosen=chosen)
    assert row["messages"] == [{"role": "user", "content": 'x ["a", "ü"]'}]


# What is refused


@pytest.mark.parametrize(
    ("record", "options", "told"),
    [
        ({"foo": "q", "bar": "a"}, {}, "with the columns foo, bar, and cannot become rows: none of them is known"),
        ({"question": "q", "prompt": "p", "answer": "a"}, {}, "several columns may be the prompt: prompt, question"),
        (COMPETING, {}, "several columns may be the answer: answer, solution"),
        ({"question": "q", "Answer": "a", "answer": "b"}, {}, "several columns may be the answer: Answer, answer"),
        ({"question": "q", "choices": ["a"], "answer": "a"}, {}, "the prompt needs 'choices' as well"),
        ({"question": "q", "other": "a"}, {"method": "supervised"}, "no column for the answer"),
        ({"text": "a corpus"}, {}, "none of them is known for a prompt"),
        ({"question": "q", "answer": "a"}, {"method": "dpo"}, "in columns named 'chosen' and 'rejected'"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "x"}, {}, "split the prompt off"),
        (COMPETING, {"chosen": ChosenColumns("problm", "answer")}, "no column 'problm'; the nearest is 'problem'."),
        (COMPETING, {"chosen": ChosenColumns("problem", "solution")}, "its column 'answer' is not the answer"),
        (COMPETING, {"chosen": ChosenColumns("problem", "answer", "{{item.topic}}")}, "not both"),
        (COMPETING, {"chosen": ChosenColumns(None, "answer", "no column")}, "names columns as {{item.<column>}}"),
        (COMPETING, {"chosen": ChosenColumns(None, "answer", "{{item.x}}")}, "no column 'x'"),
        (COMPETING, {"chosen": ChosenColumns(None, "answer", "{{sample.output_text}}")}, "and nothing else"),
        (COMPETING, {"chosen": ChosenColumns(None, "answer", "{{item.topic}} {{x}}")}, "and nothing else"),
    ],
)
def test_columns_that_say_nothing_are_refused_with_what_to_do(
    record: dict[str, Any], options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        rows_of_records(tmp_path, [record], **options)
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith("file is JSON with the columns ")


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"question": "", "answer": "a"}, "nothing is in 'question'"),
        ({"question": "q", "answer": " "}, "nothing is in 'answer'"),
        ({"question": "q"}, "nothing is in 'answer'"),
        ({"question": ["q"], "answer": "a"}, "'question' is a list, and text was expected"),
        ({"question": "q", "answer": {"a": 1}}, "'answer' is an object"),
        ({"question": "q\ud800", "answer": "a"}, "half of a surrogate pair"),
        ({"question": "q" * (1 << 20), "answer": "a"}, "the row is longer than"),
        ({"question": "q", "answer": "a", "tools": [1]}, "'tools': definitions of tools are not rendered"),
    ],
)
def test_a_record_that_cannot_become_a_row_is_named_and_nothing_is_converted(
    record: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        rows_of_records(tmp_path, [GOOD, record, GOOD])
    first, second = str(refused.value).split("\n")
    assert first.startswith("A record of file cannot become a row.") and second.startswith(f"row 2: {told}")


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (
            [{"from": "human", "value": "q"}, {"from": "tool", "value": "x"}],
            "the speaker of conversations[1] is 'tool'",
        ),
        ([{"from": "human", "value": None}], "messages[0].content must be a string"),
        ([{"role": "user", "content": "q", "tool_calls": [1]}], "tool_calls"),
        ("text", "must be a list of messages"),
        ([], "nothing is in 'conversations'"),
    ],
)
def test_a_dialogue_that_zhub_cannot_render_is_named(messages: Any, told: str, tmp_path: Path) -> None:
    good = {"conversations": [{"from": "human", "value": "q"}]}
    with pytest.raises(InvalidRequestError) as refused:
        rows_of_records(tmp_path, [good, {"conversations": messages}])
    assert told in str(refused.value)


def test_the_first_bad_records_are_named_by_their_lines_and_the_rest_counted(tmp_path: Path) -> None:
    content = b'question,answer\n"two\nlines",a\n' + b"x,\n" * 7
    with pytest.raises(InvalidRequestError) as refused:
        rows_of_bytes(tmp_path, content)
    head, *lines = str(refused.value).split("\n")
    assert head.startswith("7 records of file cannot become a row.") and "--skip-incomplete" in head
    assert lines == [*(f"line {n}: nothing is in 'answer'" for n in range(4, 9)), "… and 2 more"]


def test_records_without_prompt_or_answer_are_left_out_on_request_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\nq,a\nx,\n,\n,y\nq,b\n")
    with as_rows(path, skip_incomplete=True) as rows:
        assert rows.conversion is not None
        counts = rows.conversion.row_count, rows.conversion.incomplete_count, rows.conversion.blank_count
        assert counts == (2, 2, 0)  # a line of nothing but commas is a blank line


def test_a_file_without_a_whole_record_has_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="file has no record with a prompt and an answer"):
        rows_of_records(tmp_path, [{"question": "q", "answer": None}], skip_incomplete=True)


def test_blank_records_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, {"question": None, "answer": ""}, {}]))
    with as_rows(path) as rows:
        assert rows.conversion is not None
        assert (rows.conversion.row_count, rows.conversion.blank_count) == (1, 2)


def test_a_conversion_says_what_becomes_of_what_with_examples(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question;answer;topic\n" + "q;a;t\n" * 5)
    with as_rows(path, method="supervised") as rows:
        made = rows.conversion
    assert made is not None and (made.source, made.row_count) == ("CSV separated by semicolons", 5)
    assert list(made.parts) == [
        ("question", "the user's message"),
        ("answer", "the assistant's message"),
        ("answer", "the column 'answer'"),
        ("topic", "the column 'topic'"),
    ]
    before = {"question": "q", "answer": "a", "topic": "t"}
    assert list(made.examples) == [(before, answered("q", "a", answer="a", topic="t"))] * 2


def test_columns_that_cannot_stay_are_said_to_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",q,answer,messages\n1,x,y,z\n2,x,y,z\n")
    with as_rows(path, chosen=ChosenColumns(prompt_column="q")) as rows:
        assert rows.conversion is not None
        left_out = [column for column, became in rows.conversion.parts if "left out" in became]
        assert left_out == ["(no name)", "messages"] and rows.conversion.examples[0][1] == asked("x", answer="y")


# Real data


DATA = Path(__file__).parents[3].parent / "shared" / "data"


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.parametrize("method", ["reinforcement", "supervised"])
def test_grade_school_problems_become_rows_with_their_final_answers(method: str) -> None:
    rows = rows_of(real("gsm8k-test.jsonl"), method=method)
    assert len(rows) == 1319 and all(re.fullmatch(r"-?[0-9][0-9,.]*", row["answer"]) for row in rows)


def test_programming_problems_become_rows_once_somebody_says_which_column_asks() -> None:
    path = real("mbpp.jsonl")
    with pytest.raises(InvalidRequestError, match="none of them is known for a prompt"):
        rows_of(path)
    rows = rows_of(path, chosen=ChosenColumns(prompt_column="text"))
    assert len(rows) == 974 and all(row["test_list"] and row["code"] for row in rows)
