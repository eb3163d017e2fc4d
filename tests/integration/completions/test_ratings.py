"""Feedback on stored completions: the completion is its sample, and shows what it was rated."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused
from sqlalchemy import Engine, select
from storing import ENDED, Storing, started

from zhub.database.sessions import system_session
from zhub.generation import Ended, Line, Text
from zhub.models import Expert, ExpertVersion

Ask = Callable[..., Any]


@pytest.fixture
def rate(ask: Ask) -> Ask:
    """POST /v1/chat/completions/{id}/feedback."""

    def post(completion: str, score: float, **options: Any) -> Any:
        return ask("post", f"/chat/completions/{completion}/feedback", {"score": score} | options)

    return post


def rating(client: openai.OpenAI, completion: str) -> Any:
    return client.chat.completions.retrieve(completion).to_dict()["rating"]


def test_feedback_on_a_completion_has_it_as_its_sample(storing: Storing, ask: Ask, rate: Ask) -> None:
    stored, other = storing.stored(answer="3"), storing.stored()
    made = rate(stored, -1, reference="2", comment="Off by one.")
    assert {name: made[name] for name in ("completion_id", "choice", "model", "completion", "score")} == {
        "completion_id": stored, "choice": 0, "model": "tiny", "completion": "3", "score": -1,
    }  # fmt: skip
    assert made["messages"] == [{"role": "user", "content": "1 + 1 ="}]
    assert (made["reference"], made["comment"]) == ("2", "Off by one.")
    on_other = rate(other, 1)
    assert ask("get", "/feedback")["data"] == [on_other, made]
    assert ask("get", f"/feedback?completion={stored}")["data"] == [made]


def test_a_completion_shows_the_mean_of_its_best_rated_choice(
    storing: Storing, client: openai.OpenAI, rate: Ask, ask: Ask, script: list[Line | str]
) -> None:
    script[:] = [
        started(), Text(text="3"), Text(index=1, text="2"), ENDED,
        Ended(index=1, finish_reason="stop", completion_tokens=1),
    ]  # fmt: skip
    stored = storing.wait(storing.ask(n=2).id)
    assert rating(client, stored) is None
    bad = rate(stored, -1)
    assert rating(client, stored) == {"mean": -1, "choice": 0, "count": 1}
    for score in (1, 0.5):
        assert rate(stored, score, choice=1)["completion"] == "2"
    assert rating(client, stored) == {"mean": 0.75, "choice": 1, "count": 3}
    for piece in ask("get", "/feedback")["data"][:2]:
        ask("delete", f"/feedback/{piece['id']}")
    assert rating(client, stored) == {"mean": -1, "choice": 0, "count": 1}
    ask("delete", f"/feedback/{bad['id']}")
    assert rating(client, stored) is None
    error = refused(lambda: rate(stored, 1, choice=2))
    assert (error.status_code, error.param) == (400, "choice") and "has 2 of them" in error.message


def test_it_counts_as_feedback_on_the_version_that_answered_alone(
    storing: Storing, ask: Ask, rate: Ask, publish_version: Ask, script: list[Line | str], system_engine: Engine
) -> None:
    name = publish_version()
    with system_session(system_engine) as session:
        digest = session.scalars(select(ExpertVersion.digest)).one()
    script[:] = [started((name, digest)), Text(text="2"), ENDED]
    stored = storing.wait(storing.ask(model=name).id)
    assert rate(stored, 0.5)["model"] == name
    rate(storing.stored(), 1)
    assert ask("get", f"/experts/{name}")["feedback"] == {"count": 1, "mean_score": 0.5}
    with system_session(system_engine) as session:
        assert session.scalars(select(Expert.feedback_count)).one() == 1


def test_what_feedback_says_is_redacted_too(storing: Storing, rate: Ask) -> None:
    made = rate(storing.stored(), 1, reference="ann@example.com", comment="ask bob@example.com")
    assert (made["reference"], made["comment"]) == ("[EMAIL]", "ask [EMAIL]")


def test_the_same_key_on_the_same_completion_adds_nothing(storing: Storing, client: openai.OpenAI, ask: Ask) -> None:
    first, second = storing.stored(), storing.stored()

    def give(completion: str, score: float = 1) -> Any:
        options: Any = {"headers": {"Idempotency-Key": "once"}}
        path = f"/chat/completions/{completion}/feedback"
        return client.post(path, body={"score": score}, cast_to=object, options=options)

    made = give(first)
    assert give(first) == made and ask("get", "/feedback")["data"] == [made]
    for other in (lambda: give(second), lambda: give(first, 0)):
        assert refused(other).status_code == 422


@pytest.mark.parametrize(
    ("body", "param"), [({"score": 2}, "score"), ({"score": 1, "choice": -1}, "choice"), ({}, "score")]
)
def test_what_is_no_rating_is_refused_by_name(storing: Storing, ask: Ask, body: dict[str, Any], param: str) -> None:
    stored = storing.stored()
    error = refused(lambda: ask("post", f"/chat/completions/{stored}/feedback", body))
    assert (error.status_code, error.param) == (400, param)
