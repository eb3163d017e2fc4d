"""Fields of a row that change its meaning are acted on or refused by their names."""

import io
import json
from typing import Any

import pytest

from zhub.datasets.row_fields import REFUSED_IN_MESSAGES, REFUSED_IN_ROWS
from zhub.datasets.rows import all_rows
from zhub.datasets.validation import validate
from zhub.errors import RowProblem, TrainingError

ASKED = {"role": "user", "content": "x"}
ANSWER = {"role": "assistant", "content": "y"}
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def problems(row: dict[str, Any]) -> list[RowProblem]:
    return validate(io.BytesIO(json.dumps(row).encode())).problems


def chat(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages)} | columns


def pair(**fields: Any) -> dict[str, Any]:
    return {"input": {"messages": [ASKED]}, "preferred_output": [ANSWER], "non_preferred_output": [ASKED]} | fields


@pytest.mark.parametrize("field", REFUSED_IN_MESSAGES)
@pytest.mark.parametrize("index", [0, 1])
def test_a_field_of_a_message_that_would_be_lost_is_refused_by_its_name(field: str, index: int) -> None:
    messages = [dict(ASKED), dict(ANSWER)]
    messages[index][field] = "value"
    (problem,) = problems(chat(*messages))
    assert problem.code == "unsupported_field" and f"messages[{index}].{field}" in problem.message


@pytest.mark.parametrize("content", [None, ""])
def test_a_call_of_a_tool_without_content_is_refused_as_such(content: str | None) -> None:
    (problem,) = problems(chat(ASKED, ANSWER | {"content": content, "tool_calls": CALLS}))
    assert "messages[1].tool_calls" in problem.message


@pytest.mark.parametrize("field", REFUSED_IN_ROWS)
def test_definitions_of_tools_are_refused_by_their_name(field: str) -> None:
    for row in (chat(ASKED, **{field: CALLS}), pair(input={"messages": [ASKED], field: CALLS})):
        (problem,) = problems(row)
        assert problem.code == "unsupported_field" and field in problem.message


@pytest.mark.parametrize("column", ["preferred_output", "non_preferred_output"])
def test_a_preferred_answer_that_calls_a_tool_is_refused(column: str) -> None:
    row = pair(preferred_output=[ANSWER], non_preferred_output=[ANSWER | {"content": "z"}])
    row[column] = [row[column][0] | {"tool_calls": CALLS}]
    (problem,) = problems(row)
    assert f"{column}[0].tool_calls" in problem.message


def test_an_image_is_refused_by_its_kind() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    (problem,) = problems(chat({"role": "user", "content": parts}))
    assert "image_url" in problem.message


@pytest.mark.parametrize(
    ("weights", "refused"),
    [
        ((None, None), None),
        ((0, 1), None),
        ((0, None), None),
        ((None, 1), None),
        ((None, 0), "messages[3].weight"),
        ((0, 0), "messages[3].weight"),
        ((1, 1), "messages[1].weight"),
        ((0, 0.5), "messages[3].weight"),
        ((0, True), "messages[3].weight"),
        (("0", 1), "messages[1].weight"),
    ],
)
def test_a_weight_is_done_or_refused(weights: tuple[Any, Any], refused: str | None) -> None:
    first, last = ({} if weight is None else {"weight": weight} for weight in weights)
    found = problems(chat(ASKED, ANSWER | first, ASKED, ANSWER | last))
    assert (found == []) if refused is None else (refused in found[0].message)


@pytest.mark.parametrize("empty", [None, [], ""])
def test_an_empty_field_changes_nothing_and_is_accepted(empty: Any) -> None:
    fields = dict.fromkeys(REFUSED_IN_MESSAGES, empty)
    assert problems(chat(ASKED | fields, ANSWER | fields, tools=empty)) == []


def test_a_field_that_means_nothing_to_a_model_is_accepted() -> None:
    assert problems(chat(ASKED | {"id": "7", "created_at": 1}, ANSWER, parallel_tool_calls=True, answer="y")) == []


def test_a_file_that_an_earlier_release_found_good_fails_by_its_line() -> None:
    lines = b"\n".join(json.dumps(chat(ASKED, ANSWER | fields)).encode() for fields in ({}, {"weight": 0}))
    with pytest.raises(TrainingError, match=r"line 2: 'messages\[1\].weight'"):
        list(all_rows(io.BytesIO(lines)))
