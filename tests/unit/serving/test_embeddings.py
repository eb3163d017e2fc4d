"""Embeddings of texts are those that routing chooses by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zhub.errors import InvalidRequestError
from zhub_workers.model.base_model import load_base_model, render_prompt
from zhub_workers.model.routing import prompt_embeddings
from zhub_workers.serving.embeddings import embed


@pytest.fixture(scope="module")
def base(model_directory: Callable[[str], Path]) -> Any:
    return load_base_model(model_directory("llama"))


def test_a_text_lies_where_routing_sees_it_as_a_prompt(base: Any) -> None:
    ids = render_prompt(base, [{"role": "user", "content": "add 3 and 4"}])
    embedded = embed(base, ["add 3 and 4", ids, "spell it"])
    torch.testing.assert_close(torch.tensor(embedded.vectors[0]), prompt_embeddings(base, [ids])[0])
    torch.testing.assert_close(torch.tensor(embedded.vectors[1]), torch.tensor(embedded.vectors[0]))
    assert embedded.vectors[2] != embedded.vectors[0]
    assert embedded.prompt_tokens == 2 * len(ids) + len(render_prompt(base, [{"role": "user", "content": "spell it"}]))


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["a", "a" * 100], r"'input.1' has 10\d tokens; this base model reads at most 64"),
        ([[3, 10**6]], "token 1000000"),
    ],
)
def test_an_input_that_the_base_cannot_read_is_refused_by_its_numbers(base: Any, texts: Any, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        embed(base, texts)
    assert caught.value.param == f"input.{len(texts) - 1}"
