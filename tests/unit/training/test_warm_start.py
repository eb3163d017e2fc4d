"""Training that begins from an expert: the one that was asked for, or the nearest that helps."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zhub.errors import TrainingError
from zhub.graders import StringCheckGrader
from zhub.specs import BaseModelSource, BasisReference, StoredFile, TrainSpec
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.routing import make_centroid, prompt_embeddings
from zhub_workers.training.state import TrainState, read_state, write_state
from zhub_workers.training.train import TrainResult, train
from zhub_workers.training.warm_start import SHORTLIST, Start, shortlist, z_cosine

Load = Callable[[str], AdaptedModel]
CONTAINS_E = StringCheckGrader(
    type="string_check", name="has an e", input="{{sample.output_text}}", reference="e", operation="like"
)
SAYINGS = [f"say {letter}{number}" for letter in "abcdefgh" for number in range(10)]
NUMBERS = [f"{a}+{b}={a + b}?" for a in range(10, 20) for b in range(10, 18)]


def spec(**asked: Any) -> TrainSpec:
    small = {"batch_size": 8, "n_steps": 4, "eval_interval": 2, "max_new_tokens": 4, "learning_rate": 0.05}
    return TrainSpec(
        expert="e",
        base=BaseModelSource(name="tiny"),
        basis=BasisReference(weights_fingerprint="", basis_fingerprint="", key_prefix=""),
        training_file=StoredFile(name="rows.jsonl", key="k", sha256="0" * 64, size_bytes=1),
        validation_file=None,
        recipe="reinforcement",
        hyperparameters=resolve_hyperparameters("reinforcement", small | asked, train_rows=80),
        grader=CONTAINS_E,
        seed=7,
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows"
    path.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": text}]}) for text in SAYINGS))
    return path


def run(
    adapted: AdaptedModel,
    made: TrainSpec,
    rows: Path,
    starts: Sequence[Start] = (),
    resumed: TrainState | None = None,
    states: list[TrainState] | None = None,
) -> tuple[TrainResult, list[str]]:
    messages: list[str] = []
    with ComputeGroup().join(make_adapter(adapted, made.hyperparameters), lambda: False) as member:
        result = train(
            made,
            member=member,
            grading=Grading(made.grader),
            training_path=rows,
            validation_path=None,
            on_event=lambda _level, message, _data: messages.append(message),
            on_checkpoint=lambda state, _: states.append(copy.deepcopy(state)) if states is not None else None,
            starts=starts,
            resumed=resumed,
        )
    return result, messages


def start(adapted: AdaptedModel, name: str, prompts: Sequence[str], z: dict[str, Tensor]) -> Start:
    """A version whose dataset had these prompts."""
    ids = [render_prompt(adapted.base, [{"role": "user", "content": prompt}]) for prompt in prompts]
    embeddings = prompt_embeddings(adapted.base, ids)
    return Start(name, f"digest of {name}", z, make_centroid(embeddings[::2], embeddings[1::2]))


@pytest.fixture(scope="module")
def trained(load_adapted: Load, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The z of an expert that has learnt the reward."""
    path = tmp_path_factory.mktemp("trained") / "rows"
    path.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": text}]}) for text in SAYINGS))
    result, _ = run(load_adapted("llama"), spec(n_steps=30, eval_interval=10), path)
    assert result.best_step > 0
    return result.artifact


def ones(adapted: AdaptedModel) -> dict[str, Tensor]:
    return {name: torch.ones(len(s)) for name, (_, s, _) in adapted.basis.factors.items()}


def worse(adapted: AdaptedModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: 1 + 3 * torch.randn(len(z), generator=generator) for name, z in ones(adapted).items()}


def test_training_begins_from_the_nearest_expert_that_helps(
    load_adapted: Load, rows: Path, trained: dict[str, Tensor]
) -> None:
    adapted = load_adapted("llama")
    starts = [
        start(adapted, "worse", SAYINGS, worse(adapted)),
        start(adapted, "trained", SAYINGS, trained),
        start(adapted, "foreign", NUMBERS, trained),
    ]
    result, messages = run(adapted, spec(warm_start="nearest"), rows, starts)
    assert result.parent_digest == "digest of trained"
    assert "Warm start: training begins from trained." in messages
    assert not any("foreign" in message for message in messages)
    assert result.validation is not None and result.validation.expert.mean > result.validation.base.mean


def test_where_no_expert_has_such_prompts_training_begins_from_the_base(
    load_adapted: Load, rows: Path, trained: dict[str, Tensor]
) -> None:
    adapted = load_adapted("llama")
    foreign = [start(adapted, "foreign", NUMBERS, trained)]
    result, messages = run(adapted, spec(warm_start="nearest"), rows, foreign)
    cold, _ = run(adapted, spec(), rows)
    assert result.parent_digest is None
    assert all(torch.equal(z, cold.artifact[name]) for name, z in result.artifact.items())
    assert any("no expert of the project has prompts like these" in message for message in messages)


def test_without_experts_it_says_so_too(load_adapted: Load, rows: Path) -> None:
    _, messages = run(load_adapted("llama"), spec(warm_start="nearest"), rows)
    assert any("no expert of the project has prompts like these" in message for message in messages)


def test_where_the_nearest_experts_do_not_help_training_begins_from_the_base(load_adapted: Load, rows: Path) -> None:
    adapted = load_adapted("llama")
    result, messages = run(
        adapted, spec(warm_start="nearest"), rows, [start(adapted, "worse", SAYINGS, worse(adapted))]
    )
    assert result.parent_digest is None and any("none beats it" in message for message in messages)


def test_training_begins_from_the_expert_that_was_asked_for(
    load_adapted: Load, rows: Path, trained: dict[str, Tensor]
) -> None:
    adapted = load_adapted("llama")
    states: list[TrainState] = []
    asked = [start(adapted, "trained", NUMBERS, trained)]  # whatever its prompts were
    result, messages = run(adapted, spec(learning_rate=1e-6, eval_interval=1), rows, asked, states=states)
    assert result.parent_digest == "digest of trained"
    for name, z in trained.items():
        torch.testing.assert_close(states[0].current[name], z, rtol=0, atol=1e-5)
    if result.best_step == 0:
        assert all(torch.equal(z, trained[name]) for name, z in result.artifact.items())
        assert any("No step beat the expert that training began from" in message for message in messages)


def test_an_expert_that_was_begun_from_a_bad_one_is_no_worse_than_the_base(load_adapted: Load, rows: Path) -> None:
    adapted = load_adapted("llama")
    asked = [start(adapted, "worse", SAYINGS, worse(adapted))]
    # Too small a rate to get anywhere.
    result, messages = run(adapted, spec(learning_rate=1e-9, preflight_prompts=0), rows, asked)
    assert result.validation is not None and result.validation.expert.mean == result.validation.base.mean
    assert (result.best_step, result.parent_digest) == (0, None)
    assert all(bool((z == 1).all()) for z in result.artifact.values())
    assert any("No step beat the base model" in message for message in messages)


def test_an_expert_that_changes_other_matrices_than_the_job_may_is_refused(
    load_adapted: Load, rows: Path, trained: dict[str, Tensor]
) -> None:
    adapted = load_adapted("llama")
    with pytest.raises(TrainingError, match="changes matrices that this job's targets and layers leave out"):
        run(adapted, spec(targets="mlp"), rows, [start(adapted, "trained", SAYINGS, trained)])


def test_a_resumed_job_knows_what_it_began_from(
    load_adapted: Load, rows: Path, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    adapted = load_adapted("llama")
    states: list[TrainState] = []
    made = spec(warm_start="nearest")
    whole, _ = run(adapted, made, rows, [start(adapted, "trained", SAYINGS, trained)], states=states)
    write_state(tmp_path / "state", states[0], spec_digest="d")
    resumed, _ = run(adapted, made, rows, resumed=read_state(tmp_path / "state", spec_digest="d"))
    assert resumed.parent_digest == whole.parent_digest == "digest of trained"
    assert all(torch.equal(z, whole.artifact[name]) for name, z in resumed.artifact.items())


def test_the_shortlist_holds_no_doubles_and_no_more_than_a_few(load_adapted: Load, trained: dict[str, Tensor]) -> None:
    adapted = load_adapted("llama")
    generator = torch.Generator().manual_seed(1)

    def other() -> dict[str, Tensor]:
        return {name: 1 + torch.randn(len(z), generator=generator) for name, z in trained.items()}

    double = {name: 1 + 1.2 * (z - 1) for name, z in trained.items()}
    starts = [
        start(adapted, f"e{n}", SAYINGS, z) for n, z in enumerate([trained, double, *(other() for _ in range(4))])
    ]
    ids = [render_prompt(adapted.base, [{"role": "user", "content": text}]) for text in SAYINGS]
    names = [start.name for start in shortlist(prompt_embeddings(adapted.base, ids), starts)]
    assert names == ["e0", "e2", "e3"] and len(names) == SHORTLIST


def test_the_cosine_of_two_experts_is_that_of_their_changes() -> None:
    z = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    other = {"a": torch.tensor([1.0, 0.5])}
    change, against = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, -0.5, 0.0])
    expected = float(torch.nn.functional.cosine_similarity(change, against, dim=0))
    assert z_cosine(z, other) == pytest.approx(expected)
    assert z_cosine(z, z) == pytest.approx(1)
    assert z_cosine(z, {"a": torch.ones(2)}) == 0
