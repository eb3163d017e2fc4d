"""Evaluations and feedback found by what they are about."""

import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from sqlalchemy import Engine, text
from suites import GRADER, right_in, run

from zhub.database.sessions import system_session
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]


@pytest.fixture
def evaluate(ask: Ask, suite_file: str) -> Callable[..., str]:
    """POST /v1/evaluations; return the id."""

    def post(model: str = "tiny", **options: Any) -> str:
        made = ask("post", "/evaluations", {"model": model, "file": suite_file, "grader": GRADER} | options)
        return str(made["id"])

    return post


def models(ask: Ask, query: str) -> list[str]:
    return [entry["model"] for entry in ask("get", f"/evaluations?{query}")["data"]]


def test_evaluations_are_found_by_their_model_status_and_time(
    ask: Ask,
    evaluate: Callable[..., str],
    publish_version: Callable[..., str],
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    first, second = publish_version(), publish_version(files=[])
    evaluate(first)
    run(system_engine, store, lambda _spec: right_in(10))
    with system_session(system_engine) as session:
        session.execute(text("UPDATE evaluations SET created_at = now() - interval '1 hour'"))
    evaluate(first, max_new_tokens=5)
    assert models(ask, f"model={first}") == [first, first]
    assert models(ask, "model=main.summer") == [first, first] and models(ask, f"model={second}") == []
    assert models(ask, "model=tiny") == ["tiny", "tiny"]
    assert set(models(ask, "status=queued")) == {first, "tiny"} == set(models(ask, "status=succeeded"))
    assert len(models(ask, "status=queued&status=succeeded")) == 4 and models(ask, "status=failed") == []
    assert len(models(ask, f"since={int(time.time()) - 600}")) == 2
    assert models(ask, f"order=asc&since={int(time.time()) - 7200}") == models(ask, "order=desc")[::-1]


@pytest.mark.parametrize(("words", "count"), [("SUITE.JSON", 1), ("exact", 1), ("tin", 1), ("nothing", 0)])
def test_a_search_for_evaluations_looks_in_the_names_of_file_grader_and_base(
    ask: Ask, evaluate: Callable[..., str], words: str, count: int
) -> None:
    evaluate()
    assert len(models(ask, f"search={words}")) == count


def test_evaluations_of_a_model_that_is_not_there_are_not_found(ask: Ask, evaluate: Callable[..., str]) -> None:
    evaluate()
    for model in ("main.spring", "main.spring@v1", "spring"):
        with pytest.raises(openai.NotFoundError):
            models(ask, f"model={model}")


def test_feedback_is_found_by_score_time_and_words(
    ask: Ask, publish_version: Callable[..., str], system_engine: Engine, caller: Caller, suite_file: str
) -> None:
    version = publish_version()

    def give(score: float, **parts: Any) -> str:
        body = {"model": version, "messages": [{"role": "user", "content": "1 + 1 ="}], "completion": "3"}
        return str(ask("post", "/feedback", body | {"score": score} | parts)["id"])

    def found(query: str) -> list[str]:
        return [piece["id"] for piece in ask("get", f"/feedback?{query}")["data"]]

    bad = give(-1, reference="Two.")
    with system_session(system_engine) as session:
        session.execute(text("UPDATE feedback SET created_at = now() - interval '1 hour'"))
    good = give(0.5, comment="Better, 100%")
    assert (found("min_score=0"), found("max_score=0"), found("min_score=-1&max_score=1")) == (
        [good],
        [bad],
        [good, bad],
    )
    assert found(f"since={int(time.time()) - 600}") == [good]
    assert (found("search=two."), found("search=100%25"), found("search=100_")) == ([bad], [good], [])
    assert found("search=1%20%2B%201&order=asc") == [bad, good]
