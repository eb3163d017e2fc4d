"""Answers through the API, plain and streamed, from a serving that says what a test wants it to say."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from scripted_serving import BROKEN, scripted

from zhub.generation import Ended, Failed, Line, Started, Text
from zhub.process.config import Settings

Client = openai.OpenAI
STARTED = Started(strategy="base", experts=[], reason="by name", prompt_tokens=3)
ENDED = Ended(finish_reason="stop", completion_tokens=2)
# What serving says before it breaks off, by how it does.
BREAKS: dict[str, tuple[list[Line | str], int, str]] = {
    "connection": ([STARTED, Text(text="40"), BROKEN], 503, "Serving does not answer any more"),
    "end": ([STARTED, Text(text="40")], 503, "went away in the middle"),
    "garbage": ([STARTED, Text(text="40"), '{"type": "te'], 503, "no line of an answer"),
    "failure": ([STARTED, Text(text="40"), Failed(code="internal_error", message="a bug")], 503, "a bug"),
    "logits": ([STARTED, Text(text="40"), Failed(code="non_finite_logits", message="not finite")], 400, "not finite"),
}


@pytest.fixture
def script() -> list[Line | str]:
    """What serving answers with: lines, texts that are none, and BROKEN."""
    return []


@pytest.fixture
def settings(settings: Settings, run_server: Callable[[FastAPI], str], script: list[Line | str]) -> Settings:
    return settings.model_copy(update={"serving_url": run_server(scripted(script, [])).removesuffix("/v1")})


def ask(client: Client, **options: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], **options)


@pytest.mark.parametrize(
    "text", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0c\x1c\x1d\x1e", "a\r\nb\rc", "\U0001f600"]
)
def test_an_answer_is_whole_whatever_line_breaks_unicode_knows_in_it(
    client: Client, checked_file: str, script: list[Line | str], text: str
) -> None:
    script += [STARTED, Text(text=text), ENDED]
    plain = ask(client).choices[0]
    assert (plain.message.content, plain.finish_reason) == (text, "stop")
    chunks = [chunk.choices[0] for chunk in ask(client, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == text
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize("how", BREAKS)
def test_a_plain_answer_that_breaks_off_is_an_error(
    client: Client, checked_file: str, script: list[Line | str], how: str
) -> None:
    lines, status, message = BREAKS[how]
    script += lines
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        ask(client)
    assert caught.value.status_code == status


@pytest.mark.parametrize("how", BREAKS)
def test_a_stream_that_breaks_off_ends_with_an_error_event(
    client: Client, checked_file: str, script: list[Line | str], how: str
) -> None:
    lines, _status, message = BREAKS[how]
    script += lines
    pieces = []
    with pytest.raises(openai.APIError, match=message):
        pieces += [chunk.choices[0].delta.content for chunk in ask(client, stream=True)]
    events = events_of(client)
    assert [event["choices"][0]["delta"]["content"] for event in events[:-1]] == ["", "40"]
    assert message in events[-1]["error"]["message"] and events[-1]["error"]["code"]


@pytest.mark.parametrize("lines", [[], [ENDED], [BROKEN], ["x\n"]], ids=["nothing", "end", "break", "garbage"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_does_not_begin_is_an_error_of_its_status(
    client: Client, checked_file: str, script: list[Line | str], lines: Sequence[Line | str], stream: bool
) -> None:
    script += lines
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, stream=stream)
    assert caught.value.status_code == 503


def events_of(client: Client) -> list[Any]:
    """The events of a streamed answer as they are sent."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
    headers = {"authorization": f"Bearer {client.api_key}"}
    text = httpx.post(f"{client.base_url}chat/completions", json=body, headers=headers, timeout=20).text
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def test_the_metrics_tell_how_requests_are_answered(
    client: Client, checked_file: str, script: list[Line | str]
) -> None:
    def told() -> dict[str, float]:
        text = httpx.get(f"{str(client.base_url).removesuffix('/v1/')}/metrics").text
        families = [family for family in text_string_to_metric_families(text) if family.name.startswith("zhub_chat")]
        samples = [sample for family in families for sample in family.samples]
        return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}

    script += [
        STARTED,
        Text(text="40"),
        Ended(index=0, finish_reason="stop", completion_tokens=2),
        Ended(index=1, finish_reason="stop", completion_tokens=5, cached_tokens=2),
    ]
    before = told()
    ask(client, n=2)
    after = told()
    grown = {name: value - before.get(name, 0) for name, value in after.items() if "_created" not in name}
    # Other tests of this process have counted other strategies.
    assert {name: value for name, value in grown.items() if "_total" in name and value} == {
        "zhub_chat_tokens_total prompt": 3,
        "zhub_chat_tokens_total completion": 7,
        "zhub_chat_tokens_total cached": 2,
        "zhub_chat_requests_total base": 1,
    }
    assert grown["zhub_chat_first_token_seconds_count"] == 1
    assert grown["zhub_chat_token_seconds_count"] == 2
