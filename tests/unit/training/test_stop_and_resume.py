"""Training that is stopped in the middle, and goes on from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import PROMPTS, Events, Load, reinforcement, run, supervised, write_rows

from zhub.errors import (
    ArtifactError,
)
from zhub.specs import (
    TrainSpec,
)
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapters import make_adapter
from zhub_workers.training.state import TrainState, read_state, write_state
from zhub_workers.training.train import train


@pytest.mark.parametrize("spec", [reinforcement(n_steps=1000), supervised(n_steps=1000)])
def test_a_stop_ends_training_within_a_step_and_keeps_what_there_is(
    load_adapted: Load, tmp_path: Path, spec: TrainSpec
) -> None:
    events: Events = []
    rows = write_rows(tmp_path / "t", PROMPTS, answer="ok")
    states: list[TrainState] = []
    with ComputeGroup().join(
        make_adapter(load_adapted("llama"), spec.hyperparameters),
        lambda: any(data is not None and data.get("step") == 3 for _, _, data in events),
    ) as member:
        result = train(
            spec,
            member=member,
            grading=Grading(spec.grader),
            training_path=rows,
            validation_path=None,
            on_event=lambda level, message, data: events.append((level, message, data)),
            on_checkpoint=lambda state, _: states.append(state),
        )
    assert result.stopped and result.steps == 3
    assert result.test is None and result.centroid is None
    assert states[-1].step == 3


def test_a_stop_before_the_first_answer_is_obeyed_too(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    result, _ = run(load_adapted("llama"), reinforcement(), rows, should_stop=lambda: True)
    assert result.stopped and result.steps == 0 and result.validation is None


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"updates_per_rollout": 2, "kl_coef": 0.05},
        {"adapter": "lora", "lora_rank": 2, "learning_rate": 0.01},
        {"adapter": "frames"},
        {"adapter": "core", "core_parameters": 8, "core_shared": True},
        {"sparsity": 0.5},
        {"parameterisation": "sigmoid"},
    ],
)
def test_a_resumed_job_walks_the_trajectory_of_one_that_never_stopped(
    load_adapted: Load, tmp_path: Path, asked: dict[str, Any]
) -> None:
    rows, adapted = write_rows(tmp_path / "t", PROMPTS), load_adapted("llama")
    spec = reinforcement(n_steps=9, checkpoint_interval=1, eval_interval=3, **asked)
    states: list[TrainState] = []
    whole, _ = run(adapted, spec, rows, states=states)
    for step in (2, 5):
        write_state(tmp_path / "state", states[step - 1], spec_digest="d")
        again: list[TrainState] = []
        resumed, _ = run(adapted, spec, rows, resumed=read_state(tmp_path / "state", spec_digest="d"), states=again)
        assert [state.step for state in again] == list(range(step + 1, 10))
        for name, value in states[-1].parameters.items():
            assert torch.equal(value, again[-1].parameters[name])
        assert all(torch.equal(whole.artifact[name], resumed.artifact[name]) for name in whole.artifact)
        assert whole.test == resumed.test and whole.trained_tokens == resumed.trained_tokens


def test_a_state_of_another_job_is_refused_and_nothing_in_it_is_unpickled(load_adapted: Load, tmp_path: Path) -> None:
    states: list[TrainState] = []
    run(load_adapted("llama"), reinforcement(n_steps=1), write_rows(tmp_path / "t", PROMPTS), states=states)
    write_state(tmp_path / "state", states[0], spec_digest="one")
    with pytest.raises(ArtifactError, match="not a checkpoint of this job"):
        read_state(tmp_path / "state", spec_digest="another")
    ran = tmp_path / "ran"
    torch.save({"x": Planted(str(ran))}, tmp_path / "pickle")
    with pytest.raises(ArtifactError, match="not a training state"):
        read_state(tmp_path / "pickle", spec_digest="one")
    assert not ran.exists()


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))
