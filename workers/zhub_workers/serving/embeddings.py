"""Texts that are to be embedded by a base: where they lie as prompts, by which routing chooses an expert."""

from collections.abc import Sequence

from zhub.errors import InvalidRequestError
from zhub_workers.model.base_model import BaseModel, render_prompt


def inputs_to_embed(base: BaseModel, inputs: Sequence[str | Sequence[int]]) -> list[list[int]]:
    """The tokens of each input: texts are each the one message of a user, and token ids as they are.

    Raises:
        InvalidRequestError: an input has more tokens than the base reads, or a token that it does not have.
    """
    rendered = [
        render_prompt(base, [{"role": "user", "content": text}]) if isinstance(text, str) else list(text)
        for text in inputs
    ]
    size = base.model.get_input_embeddings().weight.shape[0]
    for index, ids in enumerate(rendered):
        if base.context_length is not None and len(ids) > base.context_length:
            raise InvalidRequestError(
                f"'input.{index}' has {len(ids)} tokens; this base model reads at most {base.context_length}. "
                "Shorten it, or cut it into several.",
                param=f"input.{index}",
                code="context_length_exceeded",
            )
        if unknown := [token for token in ids if not 0 <= token < size]:
            raise InvalidRequestError(
                f"'input.{index}' has the token {unknown[0]}, and those of this base model are the numbers 0 to "
                f"{size - 1}.",
                param=f"input.{index}",
            )
    return rendered
