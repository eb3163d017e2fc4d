"""A job whose rows are divided between processes, here threads with models of their own."""

import json
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zhub.errors import OutOfMemoryError
from zhub.graders import StringCheckGrader
from zhub.recipes import Recipe
from zhub.specs import BaseModelSource, BasisReference, StoredFile, TrainSpec
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub_workers.compute import batches
from zhub_workers.compute.group import ComputeGroup, Stopped
from zhub_workers.compute.losses import Loss, NextToken, PolicyGradient, Preference
from zhub_workers.compute.requests import Differentiate, Generate, Logprobs, Request
from zhub_workers.compute.sharded import Ask, Shard, ShardedMember, ShardLostError, divide
from zhub_workers.compute.vectors import Vectors
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.training.train import TrainResult, train

Load = Callable[[str], AdaptedModel]
CONTAINS_E = StringCheckGrader(
    type="string_check", name="has an e", input="{{sample.output_text}}", reference="e", operation="like"
)
PROMPTS = [[1, 5 + n % 7, 9, 4] for n in range(6)]
ANSWERS = [[6 + n % 5, 11, 2][: 1 + n % 3] for n in range(6)]


class ThreadShards:
    """Shards in threads of this process. Each of ``losses`` names (shard, question) that a shard dies at."""

    def __init__(self, shards: Sequence[Shard], losses: Sequence[tuple[int, int]] = ()) -> None:
        self._shards = shards
        self._losses = losses
        self._asked = [0] * len(shards)
        self._away: dict[int, int] = {}
        self._threads = ThreadPoolExecutor(max(1, len(shards)))
        self.kinds: list[type[Request[Any]]] = []

    def ready(self) -> Sequence[Ask]:
        """A shard that was lost is back after two questions to the others."""
        for index in list(self._away):
            self._away[index] -= 1
            if not self._away[index]:
                del self._away[index]
        return [self._ask(index) for index in range(len(self._shards)) if index not in self._away]

    def pulse(self) -> int:
        return sum(shard.pulse() for shard in self._shards)

    def _ask(self, index: int) -> Ask:
        def ask(request: Request[Any]) -> "Future[Any]":
            return self._threads.submit(self._answer, index, request)

        return ask

    def _answer(self, index: int, request: Request[Any]) -> Any:
        self.kinds.append(type(request))
        self._asked[index] += 1
        if (index, self._asked[index]) in self._losses:
            self._away[index] = 3
            raise ShardLostError
        return self._shards[index].ask(request)


def spec(recipe: Recipe = "reinforcement", **asked: Any) -> TrainSpec:
    small = {"batch_size": 6, "n_steps": 4, "eval_interval": 2, "max_new_tokens": 4}
    return TrainSpec(
        expert="e",
        base=BaseModelSource(name="tiny"),
        basis=BasisReference(weights_fingerprint="", basis_fingerprint="", key_prefix=""),
        training_file=StoredFile(name="rows.jsonl", key="k", sha256="0" * 64, size_bytes=1),
        validation_file=None,
        recipe=recipe,
        hyperparameters=resolve_hyperparameters(recipe, small | asked, train_rows=80),
        grader=CONTAINS_E if recipe == "reinforcement" else None,
        seed=7,
    )


def shards_of(load: Load, made: TrainSpec, count: int, losses: Sequence[tuple[int, int]] = ()) -> ThreadShards:
    limit = made.hyperparameters.micro_batch_tokens
    members = [Shard(make_adapter(load("llama"), made.hyperparameters), token_limit=limit) for _ in range(count)]
    return ThreadShards(members, losses)


def run(load: Load, made: TrainSpec, rows: Path, shards: ThreadShards | None = None) -> TrainResult:
    adapter = make_adapter(load("llama"), made.hyperparameters)
    with ComputeGroup().join(adapter, lambda: False) as local:
        return train(
            made,
            member=local if shards is None else ShardedMember(local, shards),
            grading=Grading(made.grader),
            training_path=rows,
            validation_path=None,
            on_event=lambda _level, _message, _data: None,
            on_checkpoint=lambda _state, _metrics: None,
        )


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts"
    texts = [f"say {letter}{number}" for letter in "abcdefgh" for number in range(10)]
    path.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": text}]}) for text in texts))
    return path


def assert_close(one: TrainResult, other: TrainResult) -> None:
    assert one.best_step == other.best_step > 0
    for name, z in one.artifact.items():
        # Rounding of sums in another grouping, grown by Adam's first steps.
        torch.testing.assert_close(other.artifact[name], z, rtol=0, atol=2e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_a_job_becomes_the_same_however_many_share_its_rows(load_adapted: Load, prompts: Path, count: int) -> None:
    shards = shards_of(load_adapted, spec(), count)
    assert_close(run(load_adapted, spec(), prompts), run(load_adapted, spec(), prompts, shards))
    assert set(shards.kinds) == {Generate, Logprobs, Differentiate}


def test_a_lora_is_shared_too(load_adapted: Load, prompts: Path) -> None:
    made = spec(adapter="lora", lora_rank=2, n_steps=2)
    alone = run(load_adapted, made, prompts)
    together = run(load_adapted, made, prompts, shards_of(load_adapted, made, 1))
    assert alone.artifact.keys() == together.artifact.keys()
    for name, tensor in alone.artifact.items():
        torch.testing.assert_close(together.artifact[name], tensor, rtol=0, atol=2e-4)


def test_shards_that_die_in_the_middle_of_a_step_change_nothing(load_adapted: Load, prompts: Path) -> None:
    # Together, one after the other, and again as soon as it is back.
    losses = [(0, 2), (1, 2), (0, 5), (1, 9), (0, 9), (0, 10)]
    shards = shards_of(load_adapted, spec(), 2, losses)
    assert_close(run(load_adapted, spec(), prompts), run(load_adapted, spec(), prompts, shards))
    assert min(shards._asked) >= 10


@pytest.mark.parametrize(
    "loss",
    [
        PolicyGradient(torch.linspace(-1, 1, 6), token_count=12.0),
        Preference(0.5, 3.0, [torch.tensor([-3.0 - row]) for row in range(6)]),  # pairs: parted, they have no loss
    ],
)
def test_the_gradient_of_shards_is_that_of_all_rows(load_adapted: Load, loss: Loss) -> None:
    made = spec()
    adapter = make_adapter(load_adapted("llama"), made.hyperparameters)
    values = {name: torch.full_like(zero, 0.01) for name, zero in adapter.initial(0).items()}
    with ComputeGroup().join(adapter, lambda: False) as local:
        request = Differentiate(values, PROMPTS, ANSWERS, loss)
        alone = local.run(request)
        together = ShardedMember(local, shards_of(load_adapted, made, 2)).run(request)
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)
    for name, gradient in alone.values.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(together.values[name], gradient, rtol=1e-5, atol=1e-6 * scale)


def test_a_job_stops_while_its_shards_compute(load_adapted: Load) -> None:
    made = spec()
    adapter = make_adapter(load_adapted("llama"), made.hyperparameters)
    unheard: Future[Any] = Future()

    class Busy:
        """A shard that gets on for ever."""

        beats = 0

        def ready(self) -> Sequence[Ask]:
            return [lambda _request: unheard]

        def pulse(self) -> int:
            self.beats += 1
            return self.beats

    busy = Busy()
    with ComputeGroup().join(adapter, lambda: busy.beats > 3) as local, pytest.raises(Stopped):
        ShardedMember(local, busy).run(Generate(None, PROMPTS, max_new_tokens=2))


def test_memory_that_runs_out_in_a_shard_is_told(load_adapted: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spec(micro_batch_tokens=100)
    adapter = make_adapter(load_adapted("llama"), made.hyperparameters)
    values = adapter.initial(0)
    shards = shards_of(load_adapted, made, 1)
    score = batches._score

    def short_of_memory(requests: Any, part: Any, assign: Any) -> Any:
        if len(part) > 1:
            raise MemoryError
        return score(requests, part, assign)

    monkeypatch.setattr(batches, "_score", short_of_memory)
    with ComputeGroup().join(adapter, lambda: False, token_limit=100) as local:
        member = ShardedMember(local, shards)
        member.run(Differentiate(values, PROMPTS, ANSWERS, NextToken(12.0)))
        assert member.token_limit < 100


def test_an_error_in_a_shard_is_the_jobs(load_adapted: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spec()
    adapter = make_adapter(load_adapted("llama"), made.hyperparameters)

    def no_memory(*_arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(batches, "_score", no_memory)
    with ComputeGroup().join(adapter, lambda: False) as local, pytest.raises(OutOfMemoryError):
        ShardedMember(local, shards_of(load_adapted, made, 1)).run(Logprobs(None, PROMPTS, ANSWERS))


@given(st.integers(0, 50), st.integers(1, 3), st.integers(1, 9), st.integers(0, 5))
def test_rows_are_divided_without_a_gap_evenly_and_in_units(units: int, unit: int, count: int, first: int) -> None:
    rows = slice(first, first + units * unit)
    parts = divide(rows, unit, count)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows.start, rows.stop))
    sizes = [(part.stop - part.start) // unit for part in parts]
    assert max(sizes) - min(sizes) <= 1 and len(parts) <= count
    assert all((part.stop - part.start) % unit == 0 for part in parts)


def test_a_part_of_a_loss_is_that_of_its_rows() -> None:
    logprobs, mask = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.ones(4, 3)
    reference = list(torch.randn(4, 3, generator=torch.Generator().manual_seed(2)))
    losses: list[Loss] = [
        PolicyGradient(torch.tensor([1.0, -1.0, 2.0, 0.5]), 12.0, 0.1, reference, 0.2, reference[::-1]),
        Preference(0.3, 2.0, reference),
        NextToken(12.0),
    ]
    for loss in losses:
        whole, _ = loss(logprobs, mask, range(4))
        parts = [loss.part(slice(at, at + 2))(logprobs[at : at + 2], mask[at : at + 2], range(2))[0] for at in (0, 2)]
        assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_vectors_travel_at_the_cost_of_their_numbers() -> None:
    wide = torch.arange(80_000.0).view(100, 800)
    views = Vectors([row[: 1 + index % 3] for index, row in enumerate(wide)])
    sent = pickle.dumps(views)
    received = pickle.loads(sent)
    assert isinstance(received, Vectors) and pickle.loads(pickle.dumps(Vectors())) == []
    assert all(torch.equal(one, other) for one, other in zip(views, received, strict=True))
    assert len(sent) < 4 * sum(map(len, views)) + 2000
