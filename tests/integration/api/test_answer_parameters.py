"""Every parameter of an answer by its value, on its way to serving and back, by the dialect's own client."""

import json
import socket
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused
from fastapi import FastAPI
from scripted_serving import WAITING, Listener, Script, scripted

from zhub.generation import (
    ChosenToken,
    Embeddings,
    Ended,
    Failed,
    GenerationRequest,
    LikelyToken,
    Started,
    Text,
    ToolCall,
)
from zhub.process.config import Settings

Client = openai.OpenAI
STARTED = Started(strategy="base", experts=[], reason="by name", prompt_tokens=7)
ENDED = Ended(finish_reason="stop", completion_tokens=2, cached_tokens=5)
MESSAGES: Any = [{"role": "user", "content": "x"}]
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL: Any = {"type": "function", "function": FUNCTION}
OTHER: Any = {"type": "function", "function": {"name": "now"}}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
SMILE = "\U0001f600".encode()
TOKENS = [
    ChosenToken(token=SMILE[:2], logprob=-0.5, likeliest=[LikelyToken(token=b"a", logprob=-0.25)]),
    ChosenToken(token=SMILE[2:], logprob=0.0),
]
CALL = ToolCall(name="weather", arguments='{"city": "Ulm"}')

# What a chat says, and what serving is asked of it.
TOLD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"n": 1, "temperature": 1.0, "top_p": 1.0, "logprobs": None, "json_schema": None, "tools": []}),
    ({"n": 3, "max_tokens": 9}, {"n": 3, "max_new_tokens": 9}),
    ({"max_completion_tokens": 8, "max_tokens": 9}, {"max_new_tokens": 8}),
    ({"temperature": 5e-324, "top_p": 5e-324}, {"temperature": 5e-324, "top_p": 5e-324}),
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
    ({"stop": "x"}, {"stop": ["x"]}),
    ({"stop": ["x", "", "y"]}, {"stop": ["x", "y"]}),
    ({"frequency_penalty": -2, "presence_penalty": 2}, {"frequency_penalty": -2.0, "presence_penalty": 2.0}),
    ({"logit_bias": {"5": 100, "7": -100}}, {"logit_bias": {5: 100.0, 7: -100.0}}),
    ({"logprobs": True}, {"logprobs": 0}),
    ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
    ({"logprobs": False, "top_logprobs": 0}, {"logprobs": None}),
    ({"response_format": {"type": "text"}}, {"json_schema": None}),
    ({"response_format": {"type": "json_object"}}, {"json_schema": "{}"}),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}},
     {"json_schema": json.dumps(SCHEMA)}),
    ({"tools": [TOOL, OTHER]}, {"tools": [TOOL, OTHER], "must_call_tool": False, "parallel_tool_calls": True}),
    ({"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
     {"tools": [TOOL], "must_call_tool": False, "parallel_tool_calls": False}),
    ({"tools": [TOOL], "tool_choice": "none"}, {"tools": []}),
    ({"tools": [], "tool_choice": "auto"}, {"tools": []}),
    ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [TOOL], "must_call_tool": True}),
    ({"tools": [OTHER, TOOL], "tool_choice": NAMED}, {"tools": [TOOL], "must_call_tool": True}),
]  # fmt: skip
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 33}, "n", "less than or equal to 32"),
    ({"n": 32, "max_tokens": 4096}, "n", "32 × 4,096 = 131,072 tokens, and one request may ask for 65,536"),
    ({"stop": ["x"] * 10_000}, "stop", "10,000 texts, .* at most 16"),
    ({"stop": "x" * 300}, "stop", "300 characters, and at most 256"),
    ({"frequency_penalty": 2.1}, "frequency_penalty", "less than or equal to 2"),
    ({"presence_penalty": -2.1}, "presence_penalty", "greater than or equal to -2"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
    ({"top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
    ({"logprobs": True, "tools": [TOOL]}, "logprobs", "may call tools"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "no 'json_schema'"),
    ({"response_format": {"type": "grammar"}}, "response_format.type", "grammar"),
    ({"tool_choice": "required"}, "tool_choice", "there are no 'tools'"),
    ({"tools": [OTHER], "tool_choice": NAMED}, "tool_choice", "'weather', which is not one of 'tools'"),
    ({"tool_choice": "maybe"}, "tool_choice", "must be 'none', 'auto', 'required', or name a function"),
    ({"tool_choice": {"type": "custom"}}, "tool_choice", "or name a function"),
    ({"tools": [TOOL, TOOL]}, "tools", "two functions of one name"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "'function'"),
    ({"tools": [OTHER] * 129}, "tools", "at most 128 items"),
    ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"messages": [{"role": "tool", "content": "1"}]}, "messages.0.tool_call_id", "which call it answers"),
]  # fmt: skip


@pytest.fixture
def script() -> Script:
    return []


@pytest.fixture
def asked() -> list[bytes]:
    """The bodies of what serving was asked."""
    return []


@pytest.fixture
def embedded() -> list[Embeddings | Failed]:
    return []


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def settings(
    settings: Settings,
    run_server: Callable[[FastAPI], str],
    script: Script,
    asked: list[bytes],
    embedded: list[Embeddings | Failed],
    listener: Listener,
) -> Settings:
    url = run_server(scripted(script, asked, embedded, listener)).removesuffix("/v1")
    return settings.model_copy(update={"serving_url": url})


def ask(client: Client, **options: Any) -> Any:
    return client.chat.completions.create(**({"model": "tiny", "messages": MESSAGES} | options))


def complete(client: Client, **options: Any) -> Any:
    return client.completions.create(**({"model": "tiny", "prompt": "Once"} | options))


def test_every_parameter_reaches_serving_as_it_was_meant(
    client: Client, checked_file: str, script: Script, asked: list[bytes], subtests: pytest.Subtests
) -> None:
    for options, told in TOLD:
        with subtests.test(options=options):
            script[:] = [STARTED, *(ENDED.model_copy(update={"index": index}) for index in range(told.get("n", 1)))]
            ask(client, **options)
            request = GenerationRequest.model_validate_json(asked[-1])
            assert {name: getattr(request, name) for name in told} == told
            assert request.org_id and request.messages == MESSAGES


def test_what_cannot_be_done_is_refused_by_its_name_and_numbers(
    client: Client, checked_file: str, asked: list[bytes], subtests: pytest.Subtests
) -> None:
    for options, param, match in REFUSED:
        with subtests.test(options=str(options)[:60]), pytest.raises(openai.BadRequestError, match=match) as caught:
            ask(client, **options)
        assert caught.value.param == param
    for bias in ({"5": 101}, {"-1": 1}, {"x": 1}, {str(token): 1 for token in range(1025)}):
        error = refused(lambda bias=bias: ask(client, logit_bias=bias))  # type: ignore[misc]
        assert error.status_code == 400 and str(error.param).startswith("logit_bias")
    assert asked == []


def test_a_conversation_with_calls_of_tools_reaches_serving_whole(
    client: Client, checked_file: str, script: Script, asked: list[bytes]
) -> None:
    script += [STARTED, ENDED]
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": "sunny"}], "tool_call_id": "a1b2c3d4e"},
    ]
    ask(client, messages=messages, tools=[TOOL])
    assert GenerationRequest.model_validate_json(asked[0]).messages == [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "a1b2c3d4e"},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_are_told_apart_and_counted_together(
    client: Client, checked_file: str, script: Script, stream: bool
) -> None:
    last = Ended(index=1, finish_reason="length", completion_tokens=9, cached_tokens=4)
    script += [STARTED, Text(text="a"), Text(index=1, text="x"), ENDED, Text(index=1, text="y"), last]
    if stream:
        chunks = list(ask(client, n=2, stream=True, stream_options={"include_usage": True}))
        texts, reasons = ["", ""], ["", ""]
        for chunk in chunks[:-1]:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            assert chunk.usage is None
        assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
        assert chunks[-1].choices == []
        usage = chunks[-1].usage
    else:
        answer = ask(client, n=2)
        texts = [choice.message.content for choice in answer.choices]
        reasons = [choice.finish_reason for choice in answer.choices]
        usage = answer.usage
    assert (texts, reasons) == (["a", "xy"], ["stop", "length"])
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 11, 18)
    assert usage.prompt_tokens_details.cached_tokens == 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_stream_of_several_answers_of_which_one_lacks_is_an_error(
    client: Client, checked_file: str, script: Script, stream: bool
) -> None:
    script += [STARTED, Text(text="a"), ENDED]
    with pytest.raises(openai.APIError, match="went away in the middle"):
        list(ask(client, n=2, stream=stream))


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_told_with_the_bytes_of_their_tokens(
    client: Client, checked_file: str, script: Script, stream: bool
) -> None:
    script += [STARTED, Text(text=SMILE.decode(), tokens=TOKENS), ENDED]
    answer = ask(client, logprobs=True, top_logprobs=1, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    first, second = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert bytes(first.bytes + second.bytes) == SMILE
    assert (first.logprob, second.logprob, first.token) == (-0.5, 0.0, "\ufffd")
    assert [(likely.token, likely.logprob) for likely in first.top_logprobs] == [("a", -0.25)]
    assert second.top_logprobs == []


def test_an_answer_that_is_not_asked_for_them_has_none(client: Client, checked_file: str, script: Script) -> None:
    script += [STARTED, Text(text="a"), ENDED]
    assert ask(client).choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_are_told_with_ids_of_their_own(
    client: Client, checked_file: str, script: Script, stream: bool
) -> None:
    script += [STARTED, Text(text="\n"), CALL, CALL.model_copy(update={"name": "now", "arguments": "{}"}), ENDED]
    if stream:
        choices = [chunk.choices[0] for chunk in ask(client, tools=[TOOL, OTHER], stream=True)]
        calls = [call for choice in choices for call in choice.delta.tool_calls or []]
        assert [call.index for call in calls] == [0, 1]
        reason = choices[-1].finish_reason
    else:
        choice = ask(client, tools=[TOOL, OTHER]).choices[0]
        calls, reason = choice.message.tool_calls, choice.finish_reason
        assert choice.message.content is None
    assert reason == "tool_calls"
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", '{"city": "Ulm"}'),
        ("now", "{}"),
    ]
    assert len({call.id for call in calls}) == 2 and all(len(call.id) == 9 and call.id.isalnum() for call in calls)


def test_what_serving_refuses_names_the_field_at_fault(client: Client, checked_file: str, script: Script) -> None:
    script += [Failed(code="unsupported_parameter", message="no tools here", param="tools")]
    error = refused(lambda: ask(client, tools=[TOOL]))
    assert (error.status_code, error.code, error.param) == (400, "unsupported_parameter", "tools")


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_is_gone_on_from(
    client: Client, checked_file: str, script: Script, asked: list[bytes], stream: bool
) -> None:
    letters = [ChosenToken(token=b"a", logprob=-1.0), ChosenToken(token=b"b", logprob=-2.0)]
    script += [STARTED, Text(text="ab", tokens=letters), Text(text=SMILE.decode(), tokens=TOKENS), ENDED]
    answer = complete(client, logprobs=1, stream=stream, max_tokens=4, seed=3)
    request = GenerationRequest.model_validate_json(asked[0])
    assert (request.prompt, request.messages, request.logprobs, request.max_new_tokens) == ("Once", [], 1, 4)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    told = [choice.logprobs for choice in choices if choice.logprobs]
    assert "".join(choice.text for choice in choices) == "ab" + SMILE.decode()
    assert [token for part in told for token in part.tokens] == ["a", "b", "\ufffd", "\ufffd\ufffd"]
    assert [at for part in told for at in part.text_offset] == [4, 5, 6, 6]
    assert [value for part in told for value in part.token_logprobs] == [-1.0, -2.0, -0.5, 0.0]
    assert told[-1].top_logprobs[-2:] == [{"a": -0.25}, {}]
    assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1], [2]], []])
def test_a_prompt_that_is_not_one_text_is_refused(client: Client, checked_file: str, prompt: Any) -> None:
    error = refused(lambda: complete(client, prompt=prompt))
    assert (error.status_code, error.param) == (400, "prompt")


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_texts_are_embedded(
    client: Client, checked_file: str, asked: list[bytes], embedded: list[Embeddings | Failed], encoding: Any
) -> None:
    embedded.append(Embeddings(vectors=[[0.5, -2.0], [1.0, 0.25]], prompt_tokens=9))
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="tiny", input=["a", "b"], **options)
    if encoding != "base64":
        assert [item.embedding for item in answer.data] == [[0.5, -2.0], [1.0, 0.25]]
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (9, 9)
    assert json.loads(asked[0])["inputs"] == ["a", "b"]


@pytest.mark.parametrize(("given", "inputs"), [("a", ["a"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])])
def test_inputs_may_be_tokens(
    client: Client, checked_file: str, asked: list[bytes], embedded: list[Embeddings | Failed], given: Any, inputs: Any
) -> None:
    embedded.append(Embeddings(vectors=[[0.5]] * len(inputs), prompt_tokens=1))
    client.embeddings.create(model="tiny", input=given)
    assert json.loads(asked[0])["inputs"] == inputs


def test_an_embedding_that_cannot_be_made_is_refused_by_its_name(
    client: Client, checked_file: str, embedded: list[Embeddings | Failed], asked: list[bytes]
) -> None:
    for given in ("", [], ["a", ""], ["a"] * 257):
        error = refused(lambda given=given: client.embeddings.create(model="tiny", input=given))  # type: ignore[misc]
        assert (error.status_code, error.param) == (400, "input")
    error = refused(lambda: client.embeddings.create(model="auto", input="a"))
    assert (error.status_code, error.param) == (400, "model") and "'tiny'" in error.message
    assert asked == []
    embedded.append(Failed(code="context_length_exceeded", message="too long", param="input.0"))
    error = refused(lambda: client.embeddings.create(model="tiny", input="a"))
    assert (error.status_code, error.code, error.param) == (400, "context_length_exceeded", "input.0")


@pytest.mark.parametrize("started", [[], [STARTED]])
@pytest.mark.parametrize("stream", [False, True])
def test_serving_is_left_when_the_client_leaves(
    client: Client, checked_file: str, script: Script, listener: Listener, started: Script, stream: bool
) -> None:
    script += [*started, WAITING]
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": stream})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {client.api_key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
        connection.sendall((head + body).encode())
        assert listener.waits.wait(60)
    assert listener.left.wait(60)
