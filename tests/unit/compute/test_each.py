"""Several requests that are computed together, each by a model of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor

from zhub.errors import NonFiniteLogitsError, PromptTooLongError
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.compute.requests import Each, Generate, Logprobs, Request
from zhub_workers.compute.sharded import Ask, Shard, ShardedMember
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import SvfAdapter

Load = Callable[[str], AdaptedModel]
PROMPTS = [[1, 5, 9, 4], [1, 6, 4], [1, 7, 9, 9, 4]]
ANSWERS = [[6, 11], [7], [8, 9, 11]]


class OneShard:
    """Another process, here in this one."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def ready(self) -> Sequence[Ask]:
        def ask(request: Request[Any]) -> "Future[Any]":
            future: Future[Any] = Future()
            future.set_result(self._shard.ask(request))
            return future

        return [ask]

    def pulse(self) -> int:
        return self._shard.pulse()


@pytest.fixture
def adapter(load_adapted: Load) -> SvfAdapter:
    adapted = load_adapted("llama")
    return SvfAdapter(adapted, list(adapted.layers), sigmoid=False)


def values_of(adapter: SvfAdapter, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    zeros = adapter.initial(0).items()
    return {name: 0.8 * torch.randn(len(zero), generator=generator) for name, zero in zeros}


def tokens(answers: Any) -> list[list[int]]:
    return [completion.token_ids for completion in answers]


def test_each_is_answered_as_it_is_alone(adapter: SvfAdapter) -> None:
    asked = [Generate(values, PROMPTS, 5) for values in (None, *(values_of(adapter, seed) for seed in range(4)))]
    scored = [Logprobs(generate.values, PROMPTS, ANSWERS) for generate in asked]
    with ComputeGroup().join(adapter, lambda: False) as member:
        together, alone = member.run(Each(asked)), [member.run(one) for one in asked]
        scored_together, scored_alone = member.run(Each(scored)), [member.run(one) for one in scored]
    assert [tokens(answers) for answers in together] == [tokens(answers) for answers in alone]
    assert len({str(tokens(answers)) for answers in alone}) > 1, "the models must differ for this to mean anything"
    for one, other in zip(scored_together, scored_alone, strict=True):
        assert not isinstance(one, NonFiniteLogitsError)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


def test_processes_divide_the_requests_between_them(load_adapted: Load, adapter: SvfAdapter) -> None:
    asked = [Generate(values_of(adapter, seed), PROMPTS, 5) for seed in range(5)]
    far = load_adapted("llama")
    shard = Shard(SvfAdapter(far, list(far.layers), sigmoid=False), token_limit=0)
    with ComputeGroup().join(adapter, lambda: False) as member:
        divided = ShardedMember(member, OneShard(shard)).run(Each(asked))
        whole = member.run(Each(asked))
    assert [tokens(answers) for answers in divided] == [tokens(answers) for answers in whole]


def test_one_whose_logits_are_not_finite_is_answered_with_that_and_the_others_as_ever(adapter: SvfAdapter) -> None:
    wild = {name: torch.full_like(values, 1e30) for name, values in values_of(adapter, 0).items()}
    asked = [Generate(values, PROMPTS, 5) for values in (values_of(adapter, 1), wild, values_of(adapter, 2))]
    with ComputeGroup().join(adapter, lambda: False) as member:
        first, blown, last = member.run(Each(asked))
        assert isinstance(blown, NonFiniteLogitsError)
        assert [tokens(first), tokens(last)] == [tokens(member.run(asked[0])), tokens(member.run(asked[2]))]


def test_what_fails_for_another_reason_fails_all(adapter: SvfAdapter) -> None:
    asked = [Generate(None, PROMPTS, 5), Generate(None, [[1] * 10_000], 5)]
    with ComputeGroup().join(adapter, lambda: False) as member, pytest.raises(PromptTooLongError):
        member.run(Each(asked))
