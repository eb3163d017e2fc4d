"""The grammar of an answer that may call tools: text, or calls of them with arguments that fit their schemas.

Arguments are held to their schema whether a tool is ``strict`` or not; of one that is not, keywords that cannot be held
to are passed over.
"""

import json
from collections.abc import Mapping
from typing import Any

from zhub.errors import InvalidRequestError
from zhub.generation import GenerationRequest
from zhub_workers.serving.json_schemas import check_schema, with_options
from zhub_workers.serving.tool_calls import ToolFormat
from zhub_workers.serving.vocabulary import Vocabulary

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def tools_grammar(request: GenerationRequest, how: ToolFormat, vocabulary: Vocabulary) -> str:
    """The answer to a request with tools, in llguidance's Lark. With a schema, the answer's text fits that.

    Raises:
        InvalidRequestError: a schema is none, has no finite answer, or is too large; or the format cannot tell a call
            from an answer that is JSON.
    """
    several = request.parallel_tool_calls and how.several
    _check_together(request)
    rules = []
    for number, tool in enumerate(tool["function"] for tool in request.tools):
        opening = f'{{"name": {json.dumps(tool["name"])}, "{how.arguments}": '
        rules.append(f"call_{number}: {json.dumps(opening)} args_{number} {json.dumps('}')}")
        rules.append(f"args_{number}: %json {_arguments_schema(tool)}")
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(request.tools))))
    begin, end = _mark(how.begin, vocabulary), _mark(how.end, vocabulary)
    if how.is_list:
        calls = r'"[" call (", " call)* "]"' if several else '"[" call "]"'
    else:
        calls = rf'"\n" call "\n" {end}' if end else "call"
        calls += rf' ("\n" {begin} {calls})*' if several else ""
    if request.must_call_tool:
        return _lark([*rules, f"start: {begin} {calls}"])
    return _lark([*rules, *_or_text(request, begin, calls)])


def _or_text(request: GenerationRequest, begin: str, calls: str) -> list[str]:
    """The rules of an answer that is text, calls, or text and then calls."""
    if request.json_schema is not None:
        if not begin:
            raise InvalidRequestError(
                "This base writes calls of tools as bare JSON, which cannot be told from an answer that is JSON: leave "
                "out 'response_format', or set 'tool_choice' to 'required' or 'none'.",
                param="response_format",
            )
        schema = with_options(check_schema(request.json_schema, "response_format") or {"type": "object"})
        return [f"answer: %json {json.dumps(schema)}", f"start: answer | {begin} {calls}"]
    if not begin:
        return [r"TEXT: /[^{](.|\n)*/", f"start: TEXT | {calls}"]
    if begin.startswith("<["):
        return [r"TEXT: /(.|\n)*/", f"start: TEXT | TEXT {begin} {calls}"]
    return [r"TEXT: /(.|\n)*/", f"head[lazy]: TEXT {begin}", f"start: TEXT | head {calls}"]


def _lark(rules: list[str]) -> str:
    return "\n".join(["%llguidance {}", *rules])


def _mark(text: str, vocabulary: Vocabulary) -> str:
    """A mark as the grammar names it: by its number where it is a token of its own, so that no text can make it."""
    token = vocabulary.id_of(text)
    return f"<[{token}]>" if token is not None else json.dumps(text) if text else ""


def _check_together(request: GenerationRequest) -> None:
    """Refuse tools whose schemas are each within the bounds, and together are not."""
    every = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in request.tools}
    check_schema(json.dumps({"$defs": every}), "tools")


def _arguments_schema(tool: Mapping[str, Any]) -> str:
    schema = check_schema(json.dumps(tool.get("parameters") or NO_ARGUMENTS), "tools")
    if schema.get("type", "object") != "object":
        raise InvalidRequestError(
            f"The parameters of the tool '{tool['name']}' must be a schema of type object, found {schema['type']!r}.",
            param="tools",
        )
    if "$ref" not in schema:
        schema = {"type": "object", **schema}
    return json.dumps(with_options(schema, lenient=not tool.get("strict")))
