"""Jobs that train together in one process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_training import CONTAINS_E, PROMPTS, Load, reinforcement, run, write_rows

from zhub.errors import (
    RewardError,
)
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.training.train import TrainResult


def together(jobs: list[Callable[[ComputeGroup], TrainResult]]) -> list[TrainResult | BaseException]:
    """Run jobs in threads of one group and wait for all of them."""
    group = ComputeGroup()

    def outcome(job: Callable[[ComputeGroup], TrainResult]) -> TrainResult | BaseException:
        try:
            return job(group)
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(outcome, jobs))


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt_oss"])
def test_jobs_that_train_together_become_what_each_becomes_alone(load_adapted: Load, tmp_path: Path, kind: str) -> None:
    rows, adapted = write_rows(tmp_path / "t", PROMPTS), load_adapted(kind)
    contains_a = CONTAINS_E.model_copy(update={"reference": "a"})
    specs = [
        reinforcement(n_steps=6),
        reinforcement(contains_a, seed=3, n_steps=4),
        reinforcement(seed=9, n_steps=6, targets="mlp"),
    ]
    alone = [run(adapted, spec, rows)[0] for spec in specs]
    results = together([partial(lambda spec, group: run(adapted, spec, rows, group=group)[0], spec) for spec in specs])
    for single, packed in zip(alone, results, strict=True):
        assert isinstance(packed, TrainResult)
        assert single.artifact.keys() == packed.artifact.keys()
        # Rounding of another grouping of the same products, grown by Adam's first steps.
        assert all(torch.allclose(single.artifact[name], packed.artifact[name], atol=5e-3) for name in single.artifact)


def test_a_job_that_fails_or_stops_leaves_the_others_as_they_would_be(load_adapted: Load, tmp_path: Path) -> None:
    rows, adapted = write_rows(tmp_path / "t", PROMPTS), load_adapted("llama")
    alone, _ = run(adapted, reinforcement(n_steps=6), rows)
    lacking = CONTAINS_E.model_copy(update={"reference": "{{item.answer}}"})
    turns = iter(range(10**9))

    def diverging(group: ComputeGroup) -> TrainResult:
        spec = reinforcement(seed=1, n_steps=6, learning_rate=1.0, max_grad_norm=1e6, kl_coef=10.0)
        return run(adapted, spec, rows, group=group)[0]

    healthy, failed, stopped, _ = together(
        [
            lambda group: run(adapted, reinforcement(n_steps=6), rows, group=group)[0],
            lambda group: run(adapted, reinforcement(lacking), rows, group=group)[0],
            lambda group: run(adapted, reinforcement(seed=2), rows, should_stop=lambda: next(turns) > 40, group=group)[
                0
            ],
            diverging,
        ]
    )
    assert isinstance(failed, RewardError)
    assert isinstance(stopped, TrainResult) and stopped.stopped
    assert isinstance(healthy, TrainResult)
    assert all(torch.allclose(alone.artifact[name], healthy.artifact[name], atol=5e-3) for name in alone.artifact)
