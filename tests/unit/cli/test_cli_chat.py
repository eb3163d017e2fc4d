"""``zhub chat``: every option of an answer reaches the API, and only those that were given."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., int]
COMPLETIONS = "/v1/chat/completions"
ANSWER = {
    "choices": [{"message": {"content": "42"}, "finish_reason": "stop"}],
    "experts": [],
    "routing": {"strategy": "named", "reason": "asked for", "base_model": "zhub-tiny"},
}


def test_a_question_alone_sends_no_settings(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("POST", COMPLETIONS, ANSWER)
    assert zhub("chat", "6 * 7?") == 0
    (body,) = api.bodies("POST", COMPLETIONS)
    assert body["messages"] == [{"role": "user", "content": "6 * 7?"}]
    settings = {name: value for name, value in body.items() if name not in ("model", "messages", "experts")}
    assert set(settings.values()) <= {None}
    assert capsys.readouterr().out == "42\n"


def test_an_expert_that_is_deprecated_is_told_with_its_answer(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    warned = ANSWER["routing"] | {"warnings": ["main.x@v1 is deprecated: Use main.x@v2."]}  # type: ignore[operator]
    api.add("POST", COMPLETIONS, ANSWER | {"routing": warned})
    assert zhub("chat", "6 * 7?") == 0
    assert "warning: main.x@v1 is deprecated: Use main.x@v2." in capsys.readouterr().err


def test_every_option_is_sent_by_its_name_in_the_dialect(api: Any, zhub: Run) -> None:
    api.add("POST", COMPLETIONS, ANSWER)
    options = ("--temperature", "0.5", "--top-p", "0.9", "--max-tokens", "7", "--seed", "3", "--system", "Be short.")
    more = ("--stop", "a", "--stop", "b", "--mix", "main.x=0.5", "--mix", "y=2:0-3,5", "--user", "u1")
    assert zhub("chat", "6 * 7?", *options, *more, "--strategy", "mixture") == 0
    (body,) = api.bodies("POST", COMPLETIONS)
    assert body.pop("messages")[0] == {"role": "system", "content": "Be short."}
    assert json.loads(json.dumps(body)) == {
        "model": "auto",
        "experts": [{"model": "main.x", "weight": 0.5}, {"model": "y", "weight": 2.0, "layers": ["0-3", "5"]}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 7,
        "seed": 3,
        "stop": ["a", "b"],
        "strategy": "mixture",
        "user": "u1",
    }


def test_a_schema_is_sent_as_the_format_of_the_answer(api: Any, zhub: Run, tmp_path: Path) -> None:
    api.add("POST", COMPLETIONS, ANSWER)
    schema = {"type": "object", "required": ["city"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    assert zhub("chat", "Which?", "--schema", str(tmp_path / "schema.json")) == 0
    (body,) = api.bodies("POST", COMPLETIONS)
    assert "schema" not in body
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_a_schema_that_is_not_json_is_refused_with_its_path(
    zhub: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema.json").write_text("{")
    assert zhub("chat", "Which?", "--schema", str(tmp_path / "schema.json")) != 0
    assert "schema.json: the schema is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--temperature", "3"), ("--top-p", "2"), ("--max-tokens", "0")])
def test_a_setting_out_of_its_range_is_a_usage_error(zhub: Run, option: tuple[str, str]) -> None:
    assert zhub("chat", "6 * 7?", *option) == 2


def test_an_answer_is_stored_with_its_metadata_and_says_under_which_id(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("POST", COMPLETIONS, ANSWER | {"id": "chatcmpl-1"})
    assert zhub("chat", "6 * 7?", "--store", "--metadata", "team=a", "--metadata", "kind=b=c") == 0
    (body,) = api.bodies("POST", COMPLETIONS)
    assert (body["store"], body["metadata"]) == (True, {"team": "a", "kind": "b=c"})
    assert "Stored as chatcmpl-1." in capsys.readouterr().err
    assert zhub("chat", "6 * 7?", "--metadata", "team") == 2
