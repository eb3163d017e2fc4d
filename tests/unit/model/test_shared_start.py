"""What the prompts of a batch begin with in common is read once, and each row stays as it is alone."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from following import as_z, error, random_delta
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel, Batching
from zhub_workers.model.rollout import generate, token_logprobs
from zhub_workers.model.shared_start import LEAST_SAVED, saved_tokens, shared_length

Load = Callable[[str], AdaptedModel]
KINDS = ["llama", "gpt2", "neox", "mixtral"]
START = [3, *range(5, 44)]
ENDS = [[10, 11, 4], [20], [5, 6, 7, 8, 9, 4], [20]]
PROMPTS = [START + end for end in ENDS]
ANSWERS = [[5, 6, 2], [9], [30, 31, 32, 33, 2], [12, 2]]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}


@contextmanager
def shapes_read(base: BaseModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and columns of the tokens of each forward."""
    shapes: list[tuple[int, int]] = []

    def note(_module: object, _inputs: object, arguments: dict[str, Any]) -> None:
        shapes.append(tuple(arguments["input_ids"].shape))

    handle = base.model.register_forward_pre_hook(note, with_kwargs=True)
    yield shapes
    handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_each_prompt_alone(load_adapted: Load, kind: str) -> None:
    base = load_adapted(kind).base
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.3}
    alone = [generate(base, [prompt], seeds=[seed], **settings)[0] for seed, prompt in enumerate(PROMPTS)]
    with shapes_read(base) as shapes:
        together = generate(base, PROMPTS, seeds=range(4), **settings)
    assert shapes[:2] == [(1, len(START)), (3, 6)]
    assert together == alone


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_their_gradients_are_those_of_each_row_alone(load_adapted: Load, kind: str) -> None:
    adapted = load_adapted(kind)
    prompts, answers = PROMPTS * 2, ANSWERS + ANSWERS[::-1]

    def scored(batches: list[list[int]]) -> tuple[list[Tensor], dict[str, Tensor]]:
        delta = {name: values.requires_grad_() for name, values in random_delta(adapted, 1).items()}
        found: list[Tensor] = []
        with adapted.training(delta):
            for rows in batches:
                logprobs, mask = token_logprobs(adapted.base, [prompts[r] for r in rows], [answers[r] for r in rows])
                torch.autograd.backward(logprobs.square().sum())
                found += [own[kept.bool()].detach() for own, kept in zip(logprobs, mask, strict=True)]
        return found, {name: values.grad for name, values in delta.items() if values.grad is not None}

    alone, expected = scored([[row] for row in range(8)])
    with shapes_read(adapted.base) as shapes:
        together, found = scored([list(range(8))])
    assert shapes == [(1, len(START)), (3, 6), (8, 4)]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(together, alone, strict=True))
    assert found.keys() == expected.keys()
    assert max(error(found[name], expected[name]) for name in found) < 1e-3


def test_each_expert_reads_what_prompts_have_in_common_for_itself(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    experts = [random_delta(adapted, 1), random_delta(adapted, 2)]
    prompts, owners = [*PROMPTS[:3], *PROMPTS[1:3]], [0, 0, 0, 1, 1]
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0}
    stack = {name: torch.stack([own[name] for own in experts]) for name in experts[0]}
    with adapted.rows(stack) as assign, shapes_read(adapted.base) as shapes:
        mixed = generate(adapted.base, prompts, seeds=range(5), owners=owners, assign=assign, **settings)
    assert shapes[:2] == [(2, len(START)), (5, 6)]
    for row, owner in enumerate(owners):
        with adapted.merged(as_z(experts[owner])):
            assert generate(adapted.base, [prompts[row]], seeds=[row], **settings) == [mixed[row]]


def test_a_start_that_saves_little_is_read_with_each_prompt(load_adapted: Load) -> None:
    base = load_adapted("llama").base
    whole = tuple(START)
    assert shared_length(base, [(0, whole), (0, (*whole, 4))]) == 0
    enough = [(0, (*whole, end)) for end in range(1 + -(-LEAST_SAVED // len(START)))]
    assert saved_tokens(enough, len(START)) >= LEAST_SAVED
    assert shared_length(base, enough) == len(START)
    # The last token of each prompt stays: its logits are asked for.
    assert shared_length(base, [*enough, (0, whole)]) == len(START) - 1


@pytest.mark.parametrize("way", ["together", "padded", "selected", "continued"])
def test_a_base_whose_rows_cannot_be_batched_so_reads_each_prompt_whole(load_adapted: Load, way: str) -> None:
    base = replace(load_adapted("llama").base, batching=replace(Batching(), **{way: False}))
    assert shared_length(base, [(0, tuple(prompt)) for prompt in PROMPTS * 3]) == 0


@pytest.mark.parametrize(
    "model",
    [
        MistralForCausalLM(MistralConfig(**SMALL, intermediate_size=16, num_key_value_heads=2, sliding_window=8)),
        GPTNeoForCausalLM(
            GPTNeoConfig(hidden_size=16, num_layers=2, num_heads=2, vocab_size=32, attention_types=[[["local"], 2]])
        ),
        BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=32)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_base_that_counts_columns_reads_each_prompt_whole(load_adapted: Load, model: Any) -> None:
    arguments = frozenset(inspect.signature(model.forward).parameters)
    base = replace(load_adapted("llama").base, model=model, forward_arguments=arguments)
    assert shared_length(base, [(0, tuple(prompt)) for prompt in PROMPTS * 3]) == 0
