"""Embeddings of texts are those that routing chooses by."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from served_engines import Served, text_of, until_end

from zhub.errors import InvalidRequestError
from zhub.generation import EmbeddingRequest, Failed
from zhub_workers.model.base_model import load_base_model, render_prompt
from zhub_workers.model.routing import prompt_embeddings
from zhub_workers.serving.embeddings import inputs_to_embed


@pytest.fixture(scope="module")
def base(model_directory: Callable[[str], Path]) -> Any:
    return load_base_model(model_directory("llama"))


def test_a_text_is_the_one_message_of_a_user_and_token_ids_are_as_they_are(base: Any) -> None:
    ids = render_prompt(base, [{"role": "user", "content": "add 3 and 4"}])
    assert inputs_to_embed(base, ["add 3 and 4", ids]) == [ids, ids]


def test_a_text_lies_where_routing_sees_it_as_a_prompt_and_answers_go_on_beside_it(
    model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    served = Served(tmp_path, model_directory("llama"))
    alone = text_of(served.ask(served.request("say a")))
    texts = ["add 3 and 4", "spell it", "add 3 and 4"]
    ids = [render_prompt(served.base, [{"role": "user", "content": text}]) for text in texts]
    answer: queue.Queue[Any] = queue.Queue()
    embedded: queue.Queue[Any] = queue.Queue()
    served.engine.submit(served.request("say a"), answer.put)
    served.engine.submit(EmbeddingRequest(base=served.source, inputs=list(texts)), embedded.put)
    line = embedded.get(timeout=60)
    torch.testing.assert_close(torch.tensor(line.vectors), prompt_embeddings(served.base, ids))
    assert line.vectors[0] == line.vectors[2] != line.vectors[1]
    assert line.prompt_tokens == sum(map(len, ids))
    assert text_of(until_end(answer)) == alone
    served.engine.submit(EmbeddingRequest(base=served.source, inputs=["a" * 100]), embedded.put)
    failed = embedded.get(timeout=60)
    assert isinstance(failed, Failed) and failed.code == "context_length_exceeded" and failed.param == "input.0"


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["a", "a" * 100], r"'input.1' has 10\d tokens; this base model reads at most 64"),
        ([[3, 10**6]], "token 1000000"),
    ],
)
def test_an_input_that_the_base_cannot_read_is_refused_by_its_numbers(base: Any, texts: Any, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        inputs_to_embed(base, texts)
    assert caught.value.param == f"input.{len(texts) - 1}"
