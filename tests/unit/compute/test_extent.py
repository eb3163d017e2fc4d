"""What a batch of answers takes: the tokens that are read for it, and the copies of its prompts."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from zhub_workers.compute.extent import Extent
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel, Batching
from zhub_workers.model.rollout import token_logprobs

Load = Callable[[str], AdaptedModel]
START = [3, *range(5, 44)]
PROMPTS = [START + [end, 4] for end in range(10, 15)]
ANSWER = [7, 8, 9, 2]


def extent_of(base: BaseModel, prompts: list[list[int]], copied_token: float = 0.0, owners: int = 1) -> int:
    extent = Extent(base, copied_token)
    for owner in range(owners):
        for prompt in prompts:
            extent.add(owner, prompt, len(ANSWER))
    return extent.tokens


def tokens_read(base: BaseModel, prompts: list[list[int]]) -> int:
    """Tokens of all forwards that score these prompts, each with answers of its own."""
    read: list[int] = []
    embeddings = base.model.get_input_embeddings()
    handle = embeddings.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    answers = [[7, 8, 20 + row, 2] for row in range(len(prompts))]
    with torch.no_grad():
        token_logprobs(base, prompts, answers)
    handle.remove()
    return sum(read)


@pytest.mark.parametrize(
    "prompts",
    [PROMPTS, PROMPTS[:2], PROMPTS[:1] * 6, PROMPTS * 3, [[3, 4], [5, 6, 4]]],
    ids=["one start", "too few for it", "one prompt", "groups", "nothing in common"],
)
def test_it_counts_what_scoring_reads_and_the_last_token_of_each_answer(
    load_adapted: Load, prompts: list[list[int]]
) -> None:
    base = load_adapted("llama").base
    assert extent_of(base, prompts) == tokens_read(base, prompts) + len(prompts)


def test_copies_of_prompts_count_by_their_share_and_never_make_it_more_than_rows_apart(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    rows, width = 12, len(PROMPTS[0])
    alone = extent_of(base, PROMPTS[:1] * rows)
    assert extent_of(base, PROMPTS[:1] * rows, 0.1) == math.ceil(alone + 0.1 * rows * width)
    assert extent_of(base, PROMPTS[:1] * rows, 5.0) == rows * (width + len(ANSWER))


def test_what_prompts_have_in_common_counts_for_each_owner(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    assert extent_of(base, PROMPTS, owners=2) == 2 * extent_of(base, PROMPTS)


@pytest.mark.parametrize("way", ["together", "padded", "selected", "continued"])
def test_a_base_that_reads_each_row_whole_takes_padded_rows(load_adapted: Load, way: str) -> None:
    base = replace(load_adapted("llama").base, batching=replace(Batching(), **{way: False}))
    assert extent_of(base, PROMPTS * 3) == 15 * (len(PROMPTS[0]) + len(ANSWER))
