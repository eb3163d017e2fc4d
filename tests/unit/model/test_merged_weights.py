"""The weights of an expert are merged once, however often the same expert is followed."""

from collections.abc import Callable, Iterator

import pytest
import torch
from following import as_z, logits, random_delta
from torch import Tensor

from zhub_workers.compute.group import ComputeGroup
from zhub_workers.compute.losses import NextToken
from zhub_workers.compute.requests import Differentiate, Generate, Logprobs
from zhub_workers.model import adapted as adapted_module
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import SvfAdapter
from zhub_workers.model.svf import adapt_weight

Load = Callable[[str], AdaptedModel]


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The multipliers of every matrix that is merged, one after the other."""
    made: list[Tensor] = []

    def counted(weight: Tensor, q: Tensor, delta: Tensor, *, right: bool) -> Tensor:
        made.append(delta)
        return adapt_weight(weight, q, delta, right=right)

    monkeypatch.setattr(adapted_module, "adapt_weight", counted)
    yield made


def test_a_step_merges_its_expert_once_to_sample_to_differentiate_and_to_measure(
    load_adapted: Load, merges: list[Tensor]
) -> None:
    adapted = load_adapted("llama")
    adapter = SvfAdapter(adapted, list(adapted.layers), sigmoid=False)
    delta = random_delta(adapted, 1)
    prompts, answers = [[1, 2, 3], [4, 5]], [[6, 7], [8, 9]]
    with ComputeGroup().join(adapter, lambda: False) as member:
        member.run(Generate(delta, prompts, max_new_tokens=2))
        member.run(Differentiate(delta, prompts, answers, NextToken(token_count=4)))
        member.run(Logprobs(None, prompts, answers))
        member.run(Logprobs({name: values.clone() for name, values in delta.items()}, prompts, answers))
    assert len(merges) == len(adapted.layers)


def test_weights_that_are_kept_are_those_of_the_expert_in_every_state(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    first, second = random_delta(adapted, 1), random_delta(adapted, 2)
    fresh = {}
    for seed, delta in ((1, first), (2, second)):
        with adapted.merged(as_z(delta)):
            fresh[seed] = logits(adapted)
        adapted.drop_merged()
    for seed, delta in ((1, first), (1, first), (2, second), (1, first)):
        with adapted.training(delta):  # its factored form, of matrices that cannot be divided by, rounds otherwise
            assert torch.allclose(logits(adapted), fresh[seed], atol=1e-4)
        with adapted.merged(as_z(delta)):
            assert torch.equal(logits(adapted), fresh[seed])


def test_an_expert_that_is_moved_in_place_is_another(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    delta = random_delta(adapted, 1)
    z = as_z(delta)
    with adapted.merged(z):
        before = logits(adapted)
    for multipliers in z.values():
        multipliers.mul_(1.5)
    with adapted.merged(z):
        moved = logits(adapted)
    adapted.drop_merged()
    with adapted.merged(z):
        assert torch.equal(logits(adapted), moved)
    assert not torch.allclose(moved, before, atol=1e-2)


def test_matrices_that_an_expert_leaves_out_are_the_bases(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    delta = random_delta(adapted, 1)
    few = dict(list(delta.items())[:2])
    with adapted.merged(as_z(few)):
        expected = logits(adapted)
    with adapted.merged(as_z(delta)):
        assert not torch.allclose(logits(adapted), expected, atol=1e-3)
    with adapted.merged(as_z(few)):
        assert torch.equal(logits(adapted), expected)


def test_a_job_that_leaves_gives_the_memory_of_its_weights_back(load_adapted: Load, merges: list[Tensor]) -> None:
    adapted = load_adapted("llama")
    adapter = SvfAdapter(adapted, list(adapted.layers), sigmoid=False)
    delta = random_delta(adapted, 1)
    for _ in range(2):
        with ComputeGroup().join(adapter, lambda: False) as member:
            member.run(Generate(delta, [[1, 2]], max_new_tokens=1))
    assert len(merges) == 2 * len(adapted.layers)
