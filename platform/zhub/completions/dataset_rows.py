"""Stored completions as rows of a dataset: prompt and answer, and beside them how good it was and whose it is."""

import json
from collections.abc import Mapping
from typing import Any

from zhub.completions import texts
from zhub.datasets.rows import RowSyntaxError, parse_row
from zhub.ids import public_id
from zhub.models import StoredCompletion

KIND = "stored completion"


def row_of(completion: StoredCompletion, reference: str | None, method: str) -> bytes | None:
    """The line of a completion, without its end; None where it is no row: it has tools, or is too long.

    The answer that somebody said would have been right, the ``reference``, is the answer of the row in place of the one
    that was given. ``rating`` is always that of the one that was given. For ``supervised`` the answer is the last
    message, for ``reinforcement`` and ``few_shot`` the column ``answer``; ``dpo`` prefers it to the one that was given.
    """
    choice = completion.answer["choices"][completion.rated_choice or 0]["message"]
    given = choice.get("content")
    target = reference if reference is not None else given
    if not target or _has_tools(completion.request, choice):
        return None
    prompt, answer = texts.prompt(completion), {"role": "assistant", "content": target}
    if method == "dpo":
        if not given or given == target:
            return None
        told: dict[str, Any] = {"input": {"messages": prompt}, "preferred_output": [answer]}
        told["non_preferred_output"] = [{"role": "assistant", "content": given}]
    elif method in ("reinforcement", "few_shot"):
        told = {"messages": prompt, "answer": target}
    else:
        told = {"messages": [*prompt, answer]}
    row = told | _columns(completion)
    if reference is not None and method != "dpo":
        row["given"] = given
    line = json.dumps(row, ensure_ascii=False).encode()
    try:
        parse_row(1, line)
    except RowSyntaxError:
        return None
    return line


def _columns(completion: StoredCompletion) -> dict[str, Any]:
    """What graders may read beside prompt and answer."""
    columns: dict[str, Any] = {
        "completion_id": public_id(KIND, completion.id),
        "experts": [expert["name"] for expert in completion.answer["experts"]],
    }
    if completion.rating is not None:
        columns["rating"] = completion.rating
    if completion.labels:
        columns["metadata"] = completion.labels
    return columns


def _has_tools(request: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    """Whether tools were offered or called: no row tells of them, so that a training would learn something else."""
    messages = request["messages"]
    return bool(
        request.get("tools")
        or choice.get("tool_calls")
        or any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
    )
