"""A base model tried as training and serving would use it, in seconds, before anything relies on it.

What cannot work is refused, with a remedy; what works in part is registered with its limitations, which the code that
uses the base honours: ``BaseModel.batching`` says how its rows are read, and the API refuses trainings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers

from zhub.errors import InvalidRequestError, NonFiniteLogitsError, UnsupportedModelError
from zhub.registry.limitations import Limitation, LimitationName
from zhub_workers.model.adapting import EXPERTS, try_adapting
from zhub_workers.model.base_model import BaseModel, render_prompt
from zhub_workers.model.reading import FAILURES, sample_rows, told, try_reading
from zhub_workers.model.routing import prompt_embeddings

OF_WAYS: dict[str, LimitationName] = {
    "together": "no_batching",
    "padded": "no_padding",
    "selected": "no_row_selection",
    "continued": "no_continuation",
}
QUESTIONS = ("What is 2 + 3?", "Name a colour.")
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
OTHER_TEMPLATE = "Add the model with another one: --chat-template FILE, or chat_template.jinja in its directory."


@dataclass(frozen=True)
class Trial:
    """What was found: the base with the batching that it allows, and what it cannot do."""

    base: BaseModel
    limitations: list[Limitation]


def try_base(base: BaseModel, name: str) -> Trial:
    """Render messages, read rows in all ways, and follow experts, each compared with a slow and certain way.

    Args:
        name: what users call the base.

    Raises:
        UnsupportedModelError: it cannot even serve. Says which check failed, and what to do.
    """
    _check_messages(base, name)
    try:
        reading = try_reading(base)
    except NonFiniteLogitsError as exc:
        raise UnsupportedModelError(
            f"{name}: its logits are NaN or infinite for ordinary tokens. Its weights are damaged, or do not belong to "
            "its config.json: add it again from its original files."
        ) from exc
    except FAILURES as exc:
        raise UnsupportedModelError(
            f"{name}: {type(base.model).__name__} of transformers {transformers.__version__} cannot read a few tokens "
            f"one after the other with a cache: {told(exc)}. Check config.json against the "
            "model's page, or add another model."
        ) from exc
    base = replace(base, batching=reading.batching)
    limitations = []
    if reason := reading.cached or _reason_against_training(base):
        limitations.append(Limitation(name="serve_only", reason=reason))
    for way, reason in reading.refused.items():
        # Where rows are read one at a time, no other way of batching is asked for.
        if base.batching.together or way == "together":
            limitations.append(Limitation(name=OF_WAYS[way], reason=reason))
    return Trial(base, limitations)


def _check_messages(base: BaseModel, name: str) -> None:
    """Refuse a chat template that gives no prompt for a plain question."""
    try:
        prompts = [render_prompt(base, _asked(question)) for question in QUESTIONS]
    except (InvalidRequestError, *FAILURES) as exc:
        reason = told(exc.__cause__ or exc)
        if _renders_with_tools(base):
            reason = f"it needs tools, and zhub gives none ({reason})"
        raise UnsupportedModelError(
            f"{name}: its chat template refuses a question: {reason}. {OTHER_TEMPLATE}"
        ) from exc
    if not all(prompts) or prompts[0] == prompts[1]:
        raise UnsupportedModelError(f"{name}: its chat template leaves out what the user says. {OTHER_TEMPLATE}")
    rows = base.model.get_input_embeddings().weight.shape[0]
    if (largest := max(map(max, prompts))) >= rows:
        raise UnsupportedModelError(
            f"{name}: a prompt holds the token {largest}, and the model has {rows} embeddings. Add the tokenizer that "
            "it was trained with."
        )


def _asked(question: str) -> Sequence[Mapping[str, str]]:
    return [{"role": "user", "content": question}]


def _renders_with_tools(base: BaseModel) -> bool:
    messages: Any = _asked(QUESTIONS[0])
    try:
        base.tokenizer.apply_chat_template(messages, tools=[TOOL], add_generation_prompt=True, tokenize=False)
    except Exception:  # whatever a stranger's template raises
        return False
    return True


def _reason_against_training(base: BaseModel) -> str | None:
    length = min(map(len, rows := sample_rows(base)))
    try:
        if not bool(prompt_embeddings(base, rows).isfinite().all()):
            return "its hidden states, by which prompts find their expert, are not finite"
        return try_adapting(base, [row[:length] for row in rows[:EXPERTS]])
    except (*FAILURES, torch.OutOfMemoryError) as exc:
        return f"an expert cannot be trained: {told(exc)}"
