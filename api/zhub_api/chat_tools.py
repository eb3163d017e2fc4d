"""Tools of a chat request: what may be asked of them, and how an answer tells of its calls."""

import secrets
import string
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import BeforeValidator, ConfigDict, Field

from zhub.errors import InvalidRequestError
from zhub.generation import ToolCall

MAX_TOOLS = 128
# Templates of Mistral's refuse an id of another length when it comes back.
ID_CHARACTERS = 9
CHOICES = ("none", "auto", "required")


class Function(Schema):
    model_config = ConfigDict(extra="ignore")
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Schema):
    """A function that an answer may call."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["function"]
    function: Function


class FunctionName(Schema):
    model_config = ConfigDict(extra="ignore")
    name: str


class NamedTool(Schema):
    """The function that an answer must call."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["function"]
    function: FunctionName


def _of_known_kind(choice: Any) -> Any:
    if choice in (*CHOICES, None) or (isinstance(choice, Mapping) and choice.get("type") == "function"):
        return choice
    raise ValueError("must be 'none', 'auto', 'required', or name a function: {type: function, function: {name: …}}")


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoice = Annotated[Literal["none", "auto", "required"] | NamedTool, BeforeValidator(_of_known_kind)]


def for_serving(tools: list[Tool], choice: ToolChoice | None, parallel: bool | None) -> dict[str, Any]:
    """The fields of a GenerationRequest that say what the answer may call, and whether it must.

    Raises:
        InvalidRequestError: it must call a tool that there is not.
    """
    if choice == "none" or (not tools and choice in (None, "auto")):
        return {}
    if isinstance(choice, NamedTool):
        wanted = choice.function.name
        if wanted not in [tool.function.name for tool in tools]:
            raise _missing(f"'tool_choice' names the function '{wanted[:64]}', which is not one of 'tools'")
        tools = [tool for tool in tools if tool.function.name == wanted]
    if not tools:
        raise _missing("'tool_choice' is 'required', and there are no 'tools'")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequestError("'tools' has two functions of one name: rename one.", param="tools")
    return {
        "tools": [tool.model_dump(exclude_none=True) for tool in tools],
        "must_call_tool": choice not in (None, "auto"),
        "parallel_tool_calls": parallel is not False,
    }


def told_call(call: ToolCall) -> dict[str, Any]:
    """A call as a message tells it, with an id that no other has."""
    return {
        "id": "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_CHARACTERS)),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _missing(message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message}. Add it there, or choose 'auto'.", param="tool_choice")
