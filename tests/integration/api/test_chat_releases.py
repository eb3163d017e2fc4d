"""Chat with releases: what serving is asked, who gets a canary, and what the answer says of the choice."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from classifying import Classifying, prompts
from fastapi import FastAPI
from scripted_serving import scripted

from zhub.answering import ChosenExpert
from zhub.generation import Ended, GenerationRequest, Started
from zhub.manifest import ROUTING_FILE, Z_FILE, FileEntry
from zhub.process.config import Settings

Ask = Callable[..., Any]
FILES = [FileEntry(name=name, size_bytes=1, sha256=name) for name in (Z_FILE, ROUTING_FILE)]
CHOSEN = ChosenExpert(name="main.a@v1", digest="d", weight=0.5, reason="said 'a'")
STARTED = Started(strategy="prompt", experts=[CHOSEN], reason="said 'a'", prompt_tokens=3, choice_s=0.25)


@pytest.fixture
def asked() -> list[bytes]:
    """What serving was asked."""
    return []


@pytest.fixture
def settings(settings: Settings, run_server: Callable[[FastAPI], str], asked: list[bytes]) -> Settings:
    serving = scripted([STARTED, Ended(finish_reason="stop", completion_tokens=2)], asked)
    return settings.model_copy(update={"serving_url": run_server(serving).removesuffix("/v1")})


@pytest.fixture
def releases(ask: Ask, publish_version: Callable[..., str]) -> list[str]:
    """Two versions of the release ``support``, of which ``@prod`` points to the first."""
    first, second = (publish_version(name, files=FILES) for name in ("a", "b"))
    experts = [{"model": first, "weight": 0.5, "description": "sums"}, {"model": second}]
    body = {"name": "support", "experts": experts}
    names = [ask("post", "/releases", body | {"strategy": strategy})["id"] for strategy in ("prompt", "mixture")]
    ask("put", "/releases/main.support/aliases/prod", {"version": names[0]})
    return names


def chat(client: openai.OpenAI, model: str = "main.support@prod", **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "x"}]
    return client.chat.completions.create(model=model, messages=messages, **options).to_dict()


def test_serving_is_asked_to_choose_as_the_release_says(
    client: openai.OpenAI, releases: list[str], asked: list[bytes]
) -> None:
    chat(client)
    (request,) = map(GenerationRequest.model_validate_json, asked)
    assert (request.release, request.router, request.experts) == (releases[0], "prompt", [])
    parts = [(part.name, part.weight, part.description) for part in request.candidates or []]
    assert parts == [("main.a@v1", 0.5, "sums"), ("main.b@v1", 1.0, "b")]


def test_the_answer_says_which_release_chose_whom_why_and_in_what_time(
    client: openai.OpenAI, releases: list[str]
) -> None:
    answer = chat(client)
    routing = answer["routing"]
    assert (routing["release"], routing["strategy"], routing["choice_s"]) == (releases[0], "prompt", 0.25)
    assert [(part["name"], part["weight"], part["reason"]) for part in answer["experts"]] == [
        ("main.a@v1", 0.5, "said 'a'")
    ]


@pytest.mark.parametrize(
    "strategy,router,experts", [("centroid", "centroid", 0), ("mixture", None, 2), ("base", None, 0)]
)
def test_a_request_may_ask_for_another_strategy(
    client: openai.OpenAI,
    releases: list[str],
    asked: list[bytes],
    strategy: str,
    router: str | None,
    experts: int,
) -> None:
    chat(client, extra_body={"strategy": strategy})
    (request,) = map(GenerationRequest.model_validate_json, asked)
    assert (request.router, len(request.experts), request.candidates is None) == (router, experts, router is None)


def test_a_classifier_is_for_releases_that_have_one(client: openai.OpenAI, releases: list[str]) -> None:
    with pytest.raises(openai.BadRequestError, match=r"main\.support@v1 has no classifier"):
        chat(client, extra_body={"strategy": "classifier"})
    with pytest.raises(openai.BadRequestError, match="'auto' has no classifier"):
        chat(client, model="auto:tiny", extra_body={"strategy": "classifier"})


def test_serving_is_asked_to_ask_the_classifier_what_each_of_its_answers_means(
    client: openai.OpenAI, asked: list[bytes], ask: Ask, classifying: Classifying, make_file: Callable[..., str]
) -> None:
    known = ("sums", "words", "songs")
    files = {name: make_file(classifying.caller, prompts(name), f"{name}.jsonl") for name in known}
    versions = {name: classifying.publish(name, file_id) for name, file_id in files.items()}
    made = ask("post", "/classification_datasets", {"name": "which", "experts": list(versions.values())})
    classifying.make_rows()
    file_id = ask("get", f"/classification_datasets/{made['id']}")["file"]
    which = classifying.publish("which", file_id)
    later = classifying.publish("sums", None)
    ask("patch", "/experts/main.words", {"name": "phrases"})
    experts = [{"model": later}, {"model": "main.phrases@v1"}]
    body = {"name": "s", "experts": experts, "strategy": "centroid", "classifier": which}
    ask("post", "/releases", body)
    chat(client, model="main.s@v1", extra_body={"strategy": "classifier"})
    request = GenerationRequest.model_validate_json(asked[-1])
    assert request.router == "classifier" and request.classifier is not None
    assert request.classifier.expert.name == which
    assert [(label.label, label.candidate) for label in request.classifier.labels] == [
        ("sums", later), ("words", "main.phrases@v1"), ("songs", None)
    ]  # fmt: skip
    chat(client, model="main.s@v1")
    assert GenerationRequest.model_validate_json(asked[-1]).classifier is None, "another strategy does not need it"


def test_an_unknown_strategy_is_refused_by_its_name(client: openai.OpenAI, releases: list[str]) -> None:
    with pytest.raises(openai.BadRequestError, match="strategy"):
        chat(client, extra_body={"strategy": "best"})


def test_a_user_has_the_same_version_always_and_without_one_the_requests_id_decides(
    client: openai.OpenAI, ask: Ask, releases: list[str], asked: list[bytes]
) -> None:
    ask("put", "/releases/main.support/aliases/prod", {"version": releases[1], "share": 0.5})
    for _ in range(2):
        for number in range(12):
            chat(client, user=f"user-{number}")
        for number in range(12):
            chat(client, extra_headers={"x-request-id": f"request-{number}"})
    got = [GenerationRequest.model_validate_json(body).release for body in asked]
    assert got[:24] == got[24:]
    assert set(got[:12]) == set(got[12:24]) == set(releases)
