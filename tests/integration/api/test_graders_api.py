"""Graders through the API, with the unmodified client."""

from collections.abc import Callable
from typing import Any

import openai
import psutil
import pytest
from fastapi import FastAPI
from suites import GRADER

PYTHON = {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return 1 / item['n']\n"}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": GRADER, "own": PYTHON},
    "calculate_output": "0.5 * exact + own",
}


@pytest.fixture
def run(client: openai.OpenAI) -> Callable[..., Any]:
    def call(grader: Any, model_sample: str = "4", **item: Any) -> Any:
        return client.fine_tuning.alpha.graders.run(grader=grader, model_sample=model_sample, item=item)

    return call


def test_a_grader_is_checked_and_comes_back_complete(client: openai.OpenAI) -> None:
    answer = client.fine_tuning.alpha.graders.validate(grader=PYTHON)  # type: ignore[arg-type]
    assert answer.grader is not None
    assert answer.grader.to_dict() == PYTHON | {"image_tag": None, "timeout_s": 5.0}


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        (GRADER | {"type": "strin_check"}, "grader.type"),
        (GRADER | {"input": "{{item.answer}}"}, "grader.input"),
        (PYTHON | {"source": "def grade(sample): return 1"}, "grader.source"),
        (MULTI | {"calculate_output": "own + other"}, "grader"),
    ],
)
def test_a_grader_that_cannot_work_is_refused_with_its_field(client: openai.OpenAI, grader: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.alpha.graders.validate(grader=grader)
    assert (refused.value.param, refused.value.code) == (param, "invalid_grader")


@pytest.mark.parametrize(("answer", "reward"), [("4", 1.0), ("5", 0.0)])
def test_an_answer_is_graded(run: Callable[..., Any], answer: str, reward: float) -> None:
    found = run(GRADER, answer, answer="4")
    assert (found.reward, found.sub_rewards) == (reward, {})
    assert (found.metadata.name, found.metadata.type) == ("exact", "string_check")
    assert not any(value for name, value in found.metadata.errors.to_dict().items())


def test_a_users_code_is_run_and_combined(run: Callable[..., Any]) -> None:
    found = run(MULTI, answer="4", n=4)
    assert (found.reward, found.sub_rewards) == (0.75, {"exact": 1.0, "own": 0.25})


@pytest.mark.parametrize(
    ("grader", "item", "flag", "message"),
    [
        (PYTHON, {"n": 0}, "python_grader_runtime_error", "ZeroDivisionError"),
        (PYTHON | {"source": "def grade(s, i): return 'x'"}, {}, "python_grader_runtime_error", "expected a finite"),
        (
            PYTHON | {"source": "def grade(s, i):\n  while True: pass", "timeout_s": 0.3},
            {},
            "unresponsive_reward_error",
            "longer than 0.3 s",
        ),
        (GRADER, {}, "invalid_variable_error", "no column 'item.answer'"),
        (GRADER | {"input": "{{sample.output_json.a}}"}, {"answer": "4"}, "sample_parse_error", "output_json"),
    ],
)
def test_a_grader_that_fails_says_how(
    run: Callable[..., Any], grader: Any, item: dict[str, Any], flag: str, message: str
) -> None:
    found = run(grader, **item)
    assert found.reward == 0.0
    assert found.metadata.errors.to_dict()[flag] is True
    assert message in found.metadata.to_dict()["detail"]


def test_a_judge_that_is_away_is_told(run: Callable[..., Any], make_base_model: Callable[..., Any]) -> None:
    make_base_model()
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "tiny",
        "input": [{"role": "user", "content": "Rate {{sample.output_text}}."}],
    }
    found = run(judge)  # serving is at a port where nothing listens
    assert (found.reward, found.metadata.errors.model_grader_server_error) == (0.0, True)
    with pytest.raises(openai.BadRequestError, match="unheard-of"):
        run(judge | {"model": "unheard-of"})


def test_an_answer_that_is_too_long_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="model_sample"):
        run(GRADER, "x" * 100_001, answer="4")


def test_graders_need_the_scope_of_jobs(
    open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str]
) -> None:
    client = open_client(make_key(scopes=["files:read"]))
    with pytest.raises(openai.PermissionDeniedError):
        client.fine_tuning.alpha.graders.validate(grader=GRADER)  # type: ignore[arg-type]


def test_the_sandbox_starts_when_it_is_needed_and_ends_with_the_api(
    app: FastAPI,
    run_server: Callable[[FastAPI], str],
    open_client: Callable[..., openai.OpenAI],
    run: Callable[..., Any],
) -> None:
    def sandboxes() -> int:
        return sum("zhub.sandbox" in " ".join(child.cmdline()) for child in psutil.Process().children())

    before = sandboxes()
    run(GRADER, answer="4")
    assert sandboxes() == before
    run(PYTHON, n=1)
    assert sandboxes() > before
    app.state.sandboxes.close()
    assert sandboxes() == before
