"""Calls of tools, in the format of the base's chat template: told to the model, held to by grammar, and read back."""

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
import torch
from tool_templates import HERMES, LLAMA, MISTRAL, TEMPLATES, tool_tokenizer

from zhub.errors import InvalidRequestError
from zhub.generation import GenerationRequest, ToolCall
from zhub.specs import BaseModelSource
from zhub_workers.model.base_model import Prompts, render_prompt
from zhub_workers.serving import tool_calls
from zhub_workers.serving.grammars import answer_grammar
from zhub_workers.serving.tool_calls import ToolCallReader, ToolFormat, format_for, template_messages, tool_format
from zhub_workers.serving.vocabulary import Vocabulary

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"$ref": "#/$defs/days"}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
USER = [{"role": "user", "content": "hi"}]
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
FORMATS = {"hermes": tool_calls.HERMES, "llama": tool_calls.LLAMA, "mistral": tool_calls.MISTRAL}
# With marks that are text, that are tokens, and that are special tokens.
BASES = {
    "hermes, marks of text": (HERMES, (), False),
    "hermes, marks of tokens": (HERMES, ("<tool_call>", "</tool_call>"), False),
    "mistral": (MISTRAL, ("[TOOL_CALLS]",), True),
    "llama": (LLAMA, (), False),
}


def request(**more: Any) -> GenerationRequest:
    return GenerationRequest(base=BaseModelSource(name="tiny", files=[]), basis=None, **({"messages": USER} | more))


def answer(tokenizer: Any, asked: GenerationRequest, seed: int, first: bytes = b"", tokens: int = 1000) -> str:
    """Draw evenly among what the grammar allows, after ``first``, at most ``tokens``."""
    vocabulary = Vocabulary(tokenizer, frozenset({tokenizer.eos_token_id}))
    grammar = answer_grammar(asked, format_for(tokenizer, asked), vocabulary)
    assert grammar is not None
    state, chance, drawn = grammar.start(), random.Random(seed), list[int]()
    start = [vocabulary.tokens.index(bytes([byte])) for byte in first]
    for token in start:
        assert state.allowed(len(vocabulary.tokens))[token]
        state.accept(token)
    while not state.is_finished and len(drawn) < tokens:
        token = chance.choice(torch.nonzero(state.allowed(len(vocabulary.tokens))).flatten().tolist())
        state.accept(token)
        drawn += [token] if token not in vocabulary.stop_ids else []
    text: str = tokenizer.decode([*start, *drawn], skip_special_tokens=False)
    return text


def read(how: ToolFormat, text: str, chunk: int = 1) -> tuple[str, list[ToolCall]]:
    reader = ToolCallReader(how, index=2)
    shown = "".join(reader.feed(text[at : at + chunk]) for at in range(0, len(text), chunk))
    rest, calls = reader.finish()
    return shown + rest, calls


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_is_told_by_the_template(name: str) -> None:
    assert tool_format(tool_tokenizer(TEMPLATES[name])) == FORMATS[name]


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message.content }}{% endfor %}",
        HERMES.replace("</tool_call>", "</tool_call> <function=name>"),
        MISTRAL + "[ARGS]",
    ],
)
def test_a_base_whose_template_has_no_known_format_refuses_tools_by_name(template: str) -> None:
    tokenizer = tool_tokenizer(template)
    assert format_for(tokenizer, request()) is None
    for asked, param in (
        (request(tools=[NOW]), "tools"),
        (request(messages=[{"role": "tool", "content": "1", "tool_call_id": "a"}]), "messages"),
        (request(messages=[{"role": "assistant", "content": "", "tool_calls": [CALL]}]), "messages"),
    ):
        with pytest.raises(InvalidRequestError, match=f"'{param}' cannot be used with tiny") as caught:
            format_for(tokenizer, asked)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_model_is_told_the_tools_the_calls_and_their_results(name: str) -> None:
    tokenizer = tool_tokenizer(TEMPLATES[name])
    conversation: list[dict[str, Any]] = [
        *USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": CALL["id"]},
    ]
    ids = render_prompt(Prompts(tokenizer, None), template_messages(conversation), [WEATHER])
    text = tokenizer.decode(ids)
    assert "The weather in a city." in text and '{"city": "Ulm"}' in text and "sunny" in text
    plain = tokenizer.decode(render_prompt(Prompts(tokenizer, None), USER))
    assert "weather" not in plain and "tool" not in plain.lower()


@pytest.mark.parametrize("arguments", ["", "{"])
def test_arguments_of_a_call_are_an_object_or_refused(arguments: str) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    if not arguments:
        assert template_messages([message])[0]["tool_calls"][0]["function"]["arguments"] == {}
        return
    with pytest.raises(InvalidRequestError, match="not a JSON object") as caught:
        template_messages([*USER, message])
    assert caught.value.param == "messages.1.tool_calls"


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_that_must_be_is_read_back_with_arguments_that_fit(name: str, parallel: bool) -> None:
    template, added, special = BASES[name]
    tokenizer = tool_tokenizer(template, added, special=special)
    how = tool_format(tokenizer)
    assert how is not None
    counts = []
    for seed in range(4):
        asked = request(tools=[WEATHER, NOW], must_call_tool=True, parallel_tool_calls=parallel)
        text, calls = read(how, answer(tokenizer, asked, seed))
        assert text == "" and calls
        counts.append(len(calls))
        for call in calls:
            schema = {"weather": WEATHER["function"]["parameters"], "now": {"maxProperties": 0}}[call.name]
            jsonschema.validate(json.loads(call.arguments), schema)
            assert call.index == 2
    assert max(counts) > 1 if parallel and how.several else max(counts) == 1


@pytest.mark.parametrize("name", BASES)
def test_an_answer_with_tools_may_be_text(name: str) -> None:
    template, added, special = BASES[name]
    tokenizer = tool_tokenizer(template, added, special=special)
    how = tool_format(tokenizer)
    assert how is not None
    texts = [read(how, answer(tokenizer, request(tools=[NOW]), seed, b"We", tokens=30)) for seed in range(4)]
    assert all(text.startswith("We") for text, _ in texts) and not any(calls for _, calls in texts)


def test_text_is_free_until_it_begins_a_call(vocabulary: Vocabulary) -> None:
    tokenizer = tool_tokenizer(HERMES)
    grammar = answer_grammar(request(tools=[NOW]), tool_calls.HERMES, vocabulary)
    assert grammar is not None
    state = grammar.start()
    for token in tokenizer('a <tool "b"> {<tool_call>', add_special_tokens=False)["input_ids"]:
        assert state.allowed(len(vocabulary.tokens))[token]
        state.accept(token)
    allowed = {vocabulary.tokens[int(token)] for token in torch.nonzero(state.allowed(len(vocabulary.tokens)))}
    assert allowed == {b"\n"}


def test_an_answer_with_tools_and_a_schema_is_one_or_the_other() -> None:
    tokenizer = tool_tokenizer(HERMES, ("<tool_call>", "</tool_call>"))
    kinds = set()
    for seed in range(12):
        text, calls = read(
            tool_calls.HERMES, answer(tokenizer, request(tools=[NOW], json_schema='{"enum": [1]}'), seed)
        )
        kinds.add((text, len(calls) > 0))
    assert kinds == {("1", False), ("", True)}
    llama = tool_tokenizer(LLAMA)
    with pytest.raises(InvalidRequestError, match="cannot be told from an answer that is JSON"):
        answer(llama, request(tools=[NOW], json_schema="{}"), 0)


def test_what_a_strict_tool_cannot_be_held_to_is_refused_and_of_another_passed_over() -> None:
    tokenizer = tool_tokenizer(LLAMA)
    odd = {"type": "object", "properties": {"a": {"type": "string", "format": "colour", "maxLength": 3}}}
    loose = {"type": "function", "function": {"name": "f", "parameters": odd}}
    strict = {"type": "function", "function": {**loose["function"], "strict": True}}  # type: ignore[dict-item]
    assert read(tool_calls.LLAMA, answer(tokenizer, request(tools=[loose], must_call_tool=True), 0))[1]
    with pytest.raises(InvalidRequestError, match="colour") as caught:
        answer(tokenizer, request(tools=[strict], must_call_tool=True), 0)
    assert caught.value.param == "tools"


def test_tools_beyond_the_bounds_and_parameters_that_are_no_object_are_refused(vocabulary: Vocabulary) -> None:
    wide = {"type": "object", "properties": {f"p{number}": {} for number in range(600)}}
    many = [{"type": "function", "function": {"name": f"f{number}", "parameters": wide}} for number in range(4)]
    word = [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]
    for tools, match in ((many, "more than 2,000 schemas"), (word, "of the tool 'f' must be a schema of type object")):
        with pytest.raises(InvalidRequestError, match=match) as caught:
            answer_grammar(request(tools=tools), tool_calls.HERMES, vocabulary)
        assert caught.value.param == "tools"


TEXTS: Sequence[tuple[str, str, str, list[str]]] = [
    ("hermes", "plain <tool", "plain <tool", []),
    ("hermes", "a <b> c", "a <b> c", []),
    ("hermes", 'Look.\n<tool_call>\n{"name": "f", "arguments": {"x": "<tool_call>"}}\n</tool_call>', "Look.\n",
     ['{"x": "<tool_call>"}']),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "f", "arg',
     '<tool_call>\n{"name": "f", "arg', ["{}"]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>',
     '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', []),
    ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
     '<tool_call>{"name": 3, "arguments": {}}</tool_call>', []),
    ("llama", 'It is {"name": "f", "parameters": {}}', 'It is {"name": "f", "parameters": {}}', []),
    ("llama", ' {"name": "f", "parameters": {"é": 1}}', "", ['{"é": 1}']),
    ("llama", '{"name": "f", "para', '{"name": "f", "para', []),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": [1]}}]', "",
     ["{}", '{"a": [1]}']),
    ("mistral", "[TOOL", "[TOOL", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "shown", "arguments"), TEXTS)
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_an_answer_is_divided_into_text_and_calls_however_it_comes(
    name: str, text: str, shown: str, arguments: list[str], chunk: int
) -> None:
    found, calls = read(FORMATS[name], text, chunk)
    assert (found, [call.arguments for call in calls]) == (shown, arguments)


def test_text_before_a_call_is_shown_as_it_comes() -> None:
    reader = ToolCallReader(tool_calls.HERMES)
    assert [reader.feed(piece) for piece in ("Hello", " <tool", "s> ", "<tool_call>", "{")] == [
        "Hello",
        " ",
        "<tools> ",
        "",
        "",
    ]
