"""Shadows at work: a version answers beside an alias, nobody gets its answers, and the two are compared."""

import json
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from zhub.answering import ChosenExpert
from zhub.errors import NotReadyError
from zhub.generation import Ended, Failed, GenerationRequest, Line, Started, Text
from zhub.manifest import ROUTING_FILE, Z_FILE, FileEntry
from zhub.process.config import Settings
from zhub.registry import resolve as version_resolve
from zhub_api import shadowing

Ask = Callable[..., Any]
FILES = [FileEntry(name=name, size_bytes=1, sha256=name) for name in (Z_FILE, ROUTING_FILE)]
ALIAS = "/releases/main.support/aliases/prod"


class ByRelease:
    """Serving that answers by the release that it is asked for, with its text."""

    def __init__(self) -> None:
        self.texts: dict[str | None, str] = {}
        self.experts: dict[str | None, str] = {}
        self.asked: list[GenerationRequest] = []

    def lines(self, asked: GenerationRequest) -> list[Line]:
        text = self.texts[asked.release]
        name = self.experts.get(asked.release, "main.a@v1")
        chosen = [ChosenExpert(name=name, digest="d", weight=1.0)]
        started = Started(strategy="centroid", experts=chosen, reason="r", prompt_tokens=3)
        if text == "fails":
            return [started, Failed(code="internal_error", message="it failed")]
        return [started, Text(text=text), Ended(finish_reason="stop", completion_tokens=len(text))]


@pytest.fixture
def serving() -> ByRelease:
    return ByRelease()


@pytest.fixture
def settings(settings: Settings, run_server: Callable[[FastAPI], str], serving: ByRelease) -> Settings:
    app = FastAPI()

    @app.post("/generate")
    async def generate(request: Request) -> StreamingResponse:
        asked = GenerationRequest.model_validate_json(await request.body())
        serving.asked.append(asked)
        return StreamingResponse(line.model_dump_json() + "\n" for line in serving.lines(asked))

    return settings.model_copy(update={"serving_url": run_server(app).removesuffix("/v1")})


@pytest.fixture
def versions(ask: Ask, publish_version: Callable[..., str], serving: ByRelease) -> list[str]:
    """Two versions of the release ``support``: ``@prod`` points to the first, and the second is its shadow."""
    pinned = [publish_version(name, files=FILES) for name in ("a", "b")]
    body = {"name": "support", "experts": [{"model": name} for name in pinned]}
    names = [ask("post", "/releases", body | {"strategy": strategy})["id"] for strategy in ("centroid", "prompt")]
    ask("put", ALIAS, {"version": names[0]})
    ask("put", f"{ALIAS}/shadow", {"version": names[1]})
    serving.texts = dict.fromkeys(names, "40")
    return names


def chat(client: openai.OpenAI, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "x"}]
    return client.chat.completions.create(**({"model": "main.support@prod", "messages": messages} | options))


def settled(ask: Ask, **wanted: int) -> dict[str, Any]:
    """The trial once its counts are these."""
    for _ in range(500):
        found: dict[str, Any] = ask("get", f"{ALIAS}/shadow")
        if all(found[name] == value for name, value in wanted.items()):
            return found
        time.sleep(0.01)
    raise AssertionError(f"{wanted}, found {json.dumps(found)}")


@pytest.mark.parametrize("stream", [False, True])
def test_the_live_answer_is_given_and_the_shadow_compared(
    client: openai.OpenAI, ask: Ask, versions: list[str], serving: ByRelease, stream: bool
) -> None:
    serving.texts[versions[1]] = "41!"
    answer = chat(client, temperature=0, stream=stream)
    texts = [piece.choices[0].delta.content for piece in answer] if stream else [answer.choices[0].message.content]
    assert "".join(filter(None, texts)) == "40"
    found = settled(ask, answered=1)
    assert (found["same_experts"], found["comparable"], found["alike"], found["failed"]) == (1, 1, 0, 0)
    assert found["tokens"] == {"live": 2, "shadow": 3}
    live, shadow = serving.asked
    assert (live.release, live.router) == (versions[0], "centroid")
    assert (shadow.release, shadow.router) == (versions[1], "prompt")
    assert shadow.messages == live.messages


def test_answers_that_are_drawn_at_random_are_not_compared_by_their_text(
    client: openai.OpenAI, ask: Ask, versions: list[str], serving: ByRelease
) -> None:
    serving.experts[versions[1]] = "main.b@v1"
    chat(client, temperature=0)
    chat(client)
    found = settled(ask, answered=2)
    assert (found["comparable"], found["alike"], found["same_experts"]) == (1, 1, 0)


def test_what_a_shadow_fails_at_is_counted_and_nobody_else_notices(
    client: openai.OpenAI, ask: Ask, versions: list[str], serving: ByRelease
) -> None:
    serving.texts[versions[1]] = "fails"
    assert chat(client).choices[0].message.content == "40"
    assert settled(ask, failed=1)["answered"] == 0


def test_what_a_busy_process_leaves_out_is_counted_with_the_next_answer(
    client: openai.OpenAI, ask: Ask, versions: list[str], monkeypatch: pytest.MonkeyPatch, app: FastAPI
) -> None:
    monkeypatch.setattr(app.state.shadowing._places, "_per_org", 0)
    chat(client)
    monkeypatch.setattr(app.state.shadowing._places, "_per_org", shadowing.PER_ORG)
    chat(client)
    assert settled(ask, left_out=1)["answered"] == 1


def test_a_version_by_its_name_another_strategy_and_text_completions(
    client: openai.OpenAI, ask: Ask, versions: list[str], serving: ByRelease
) -> None:
    chat(client, model=versions[0])
    chat(client, extra_body={"strategy": "centroid"})
    assert len(serving.asked) == 2
    client.completions.create(model="main.support@prod", prompt="2 + 2 =", temperature=0)
    assert settled(ask, answered=1)["alike"] == 1


def test_a_shadow_that_cannot_be_asked_refuses_no_live_request(
    client: openai.OpenAI, ask: Ask, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = version_resolve.resolve

    def refused(session: Any, caller: Any, model: str, *args: Any, **options: Any) -> Any:
        if model == versions[1]:
            raise NotReadyError("The base model is still 'decomposing'.")
        return resolve(session, caller, model, *args, **options)

    monkeypatch.setattr(version_resolve, "resolve", refused)
    assert chat(client).choices[0].message.content == "40"
    assert settled(ask, failed=1)["answered"] == 0
