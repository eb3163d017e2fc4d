"""Few-shot adaptation: what is searched, what is kept, and what is said of it."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from tiny_training import CONTAINS_E, PROMPTS, Load, few_shot, run, supervised, write_rows
from torch import Tensor

from zhub.errors import TrainingError
from zhub.graders import StringCheckGrader, TextSimilarityGrader
from zhub.specs import TrainSpec
from zhub_workers.compute import batches
from zhub_workers.compute.group import Stopped
from zhub_workers.evaluation.grading import Grading, encode_rows
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.mixing import Mixer
from zhub_workers.model.rollout import generate
from zhub_workers.training.few_shot import FewShotSearch, choose_shots
from zhub_workers.training.splits import split_dataset
from zhub_workers.training.state import TrainState, read_state, write_state
from zhub_workers.training.train import TrainResult
from zhub_workers.training.warm_start import Start

Starts = list[Start]
# Not all right or all wrong, so that a search does not end because all rewards are alike.
LIKE_BOTH = TextSimilarityGrader(
    type="text_similarity",
    name="like both",
    input="{{sample.output_text}}",
    reference="eoxe",
    evaluation_metric="fuzzy_match",
)
REFERENCE = StringCheckGrader(
    type="string_check", name="answer", input="{{sample.output_text}}", reference="{{item.want}}", operation="eq"
)


@pytest.fixture(scope="module")
def starts(load_adapted: Load, tmp_path_factory: pytest.TempPathFactory) -> list[Start]:
    """Two experts: one that has learned to say what has an e, and one that has learned to say something else."""
    learned = []
    for answer in ("ee", "ox"):
        rows = write_rows(tmp_path_factory.mktemp("taught") / "rows", PROMPTS, answer=answer)
        result, _ = run(load_adapted("llama"), supervised(general_questions=0), rows)
        assert result.best_step > 0
        learned.append(Start(f"main.{answer}@v1", f"digest of {answer}", result.artifact, None))
    return learned


@pytest.fixture
def adapted(load_adapted: Load) -> AdaptedModel:
    return load_adapted("llama")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows", PROMPTS)


def long_search(**asked: Any) -> TrainSpec:
    wide = {"granularity": "layer", "elite_share": 0.5, "deviation": 2.0, "min_weight": -4.0, "max_weight": 4.0}
    return few_shot(**{"n_steps": 4, "eval_interval": 2, **wide, **asked}).model_copy(update={"grader": LIKE_BOTH})


def reward_on_shots(adapted: AdaptedModel, rows: Path, seed: int, shots: int, z: dict[str, Tensor]) -> float:
    """Slowly: the model's weights are made, and each shot is answered alone."""
    encoded = encode_rows(
        adapted.base, split_dataset(rows, None)["train"], with_target=False, should_stop=lambda: False
    )
    chosen = choose_shots(encoded, shots, seed)
    with adapted.merged(z):
        answers = [
            generate(adapted.base, [shot.prompt], max_new_tokens=4, temperature=0.0, seeds=[0])[0].text
            for shot in chosen
        ]
    return fmean(grade.reward for grade in Grading(CONTAINS_E)(answers, chosen))


def mixed(result: TrainResult, starts: list[Start]) -> dict[str, Tensor]:
    """The z that the lineage says was mixed, by the formula."""
    assert result.mixture is not None
    mixer = Mixer([start.z for start in starts], result.mixture.granularity, "cpu")
    z = {}
    for name, ones in starts[0].z.items():
        z[name] = torch.ones_like(ones)
        for expert, start in zip(result.mixture.experts, starts, strict=True):
            assert (expert.name, expert.digest) == (start.name, start.digest)
            z[name] += expert.weights[mixer.groups[mixer.group(name)]] * (start.z[name] - 1)
    return z


@pytest.mark.parametrize("granularity", ["global", "layer", "matrix"])
def test_what_is_published_is_the_mixture_that_its_lineage_names(
    adapted: AdaptedModel, starts: Starts, rows: Path, granularity: str
) -> None:
    result, _ = run(adapted, few_shot(granularity=granularity), rows, starts=starts)
    assert result.validation is not None and result.test is not None and result.best_step != 0
    for name, z in mixed(result, starts).items():
        assert torch.allclose(result.artifact[name], z, atol=1e-6), name


def test_the_best_on_the_shots_is_no_worse_than_the_base_and_each_expert_alone(
    adapted: AdaptedModel, starts: Starts, rows: Path
) -> None:
    states = list[TrainState]()
    run(adapted, few_shot(checkpoint_interval=1), rows, starts=starts, states=states)
    alone = [reward_on_shots(adapted, rows, 7, 6, dict(start.z)) for start in starts]
    base = reward_on_shots(adapted, rows, 7, 6, {})
    leader = reward_on_shots(adapted, rows, 7, 6, states[-1].current)
    assert leader == states[-1].search["leader_score"][0] >= max(*alone, base)
    assert len({base, *alone, leader}) > 1, "the experts must matter for this to mean anything"


def test_a_seed_finds_the_same_however_the_population_is_split(
    adapted: AdaptedModel, starts: Starts, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = long_search()
    whole, _ = run(adapted, spec, rows, starts=starts)
    again, _ = run(adapted, spec, rows, starts=starts)
    monkeypatch.setattr(batches, "MAX_GENERATION_ROWS", 7)
    split, _ = run(adapted, spec, rows, starts=starts)
    assert whole.mixture == again.mixture == split.mixture
    assert whole.test == again.test == split.test


def test_a_resumed_search_goes_on_as_one_that_never_stopped(
    adapted: AdaptedModel, starts: Starts, rows: Path, tmp_path: Path
) -> None:
    spec = long_search(checkpoint_interval=1)
    states = list[TrainState]()
    whole, _ = run(adapted, spec, rows, starts=starts, states=states)
    for step in (1, 3):
        write_state(tmp_path / "state", states[step - 1], spec_digest="d")
        resumed_from, again = read_state(tmp_path / "state", spec_digest="d"), list[TrainState]()
        resumed, _ = run(adapted, spec, rows, starts=starts, resumed=resumed_from, states=again)
        assert [state.step for state in again] == list(range(step + 1, 5))
        assert resumed.mixture == whole.mixture and resumed.trained_tokens == whole.trained_tokens
        assert resumed.test == whole.test and resumed.best_step == whole.best_step


def test_a_search_that_is_interrupted_while_it_validates_goes_on_as_one_that_never_was(
    adapted: AdaptedModel, starts: Starts, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, states = long_search(checkpoint_interval=1), list[TrainState]()
    whole, _ = run(adapted, spec, rows, starts=starts)

    def interrupted(search: FewShotSearch) -> float:
        if search.state.step == 2:
            raise Stopped
        return validate(search)

    validate = FewShotSearch.validate
    with monkeypatch.context() as patched:
        patched.setattr(FewShotSearch, "validate", interrupted)
        stopped, _ = run(adapted, spec, rows, starts=starts, states=states)
    assert stopped.stopped and states[-1].step == 2
    resumed, _ = run(adapted, spec, rows, starts=starts, resumed=states[-1])
    assert (resumed.mixture, resumed.best_step, resumed.test) == (whole.mixture, whole.best_step, whole.test)


def test_a_search_that_is_stopped_leaves_its_last_whole_step(adapted: AdaptedModel, starts: Starts, rows: Path) -> None:
    states, asked = list[TrainState](), [0]

    def stop_later() -> bool:
        asked[0] += 1
        return asked[0] > 250

    spec = long_search(n_steps=1000)
    result, events = run(adapted, spec, rows, starts=starts, states=states, should_stop=stop_later)
    steps = [data["step"] for _, _, data in events if data is not None and data.get("type") == "metrics"]
    assert result.stopped and result.mixture is None and 0 < result.steps == steps[-1] == states[-1].step


def test_each_step_reports_the_mean_and_the_best_of_its_population(
    adapted: AdaptedModel, starts: Starts, rows: Path
) -> None:
    _, events = run(adapted, long_search(), rows, starts=starts)
    metrics = [data for _, _, data in events if data is not None and data.get("type") == "metrics" and data["step"]]
    assert [data["step"] for data in metrics] == list(range(1, 5))
    assert all(0 <= data["train_reward_mean"] <= data["train_reward_best"] <= 1 for data in metrics)
    best = [data["train_reward_best"] for data in metrics]
    assert best == sorted(best)
    assert [data["step"] for data in metrics if "valid_reward_mean" in data] == [2, 4]


def test_a_grader_that_rewards_all_alike_ends_the_search_and_leaves_the_base(
    adapted: AdaptedModel, starts: Starts, rows: Path
) -> None:
    nothing = CONTAINS_E.model_copy(update={"reference": "never said", "operation": "eq"})
    spec = few_shot(n_steps=50).model_copy(update={"grader": nothing})
    result, events = run(adapted, spec, rows, starts=starts)
    warnings = [message for level, message, _ in events if level == "warn"]
    assert any("All 8 mixtures of step 1 have the reward 0.000" in warning for warning in warnings)
    assert result.steps == 1 and result.best_step == 0
    assert all(torch.equal(z, torch.ones_like(z)) for z in result.artifact.values())
    assert result.mixture is not None and not any(any(e.weights.values()) for e in result.mixture.experts)


def test_without_steps_the_best_of_what_there_is_is_taken(adapted: AdaptedModel, starts: Starts, rows: Path) -> None:
    result, events = run(adapted, few_shot(n_steps=0), rows, starts=starts)
    (told,) = [message for _, message, _ in events if message.startswith("Rewards on the 6 shots: the base ")]
    assert all(start.name in told for start in starts) and "equal parts" in told
    assert result.steps == 0 and result.best_step == -1 and result.mixture is not None


def test_the_gradient_start_follows_the_expert_that_makes_right_answers_likelier(
    adapted: AdaptedModel, starts: Starts, tmp_path: Path
) -> None:
    """Beside its own opposite: equal parts of the two are the base."""
    rows, expert = write_rows(tmp_path / "rows", PROMPTS, want="ee"), starts[0]
    opposite = Start("main.opposite@v1", "opposite", {name: 2 - z for name, z in expert.z.items()}, None)
    spec = few_shot(n_steps=0, start="gradient").model_copy(update={"grader": REFERENCE})
    _, events = run(adapted, spec, rows, starts=[expert, opposite])
    (told,) = [message for _, message, _ in events if message.startswith("Rewards on the")]
    parts = (part.rsplit(" ", 1) for part in told.partition(": ")[2].rstrip(".").split(", "))
    rewards = {name: float(reward) for name, reward in parts}
    assert rewards["the gradient mixture"] == rewards[expert.name] > rewards["the base"]
    assert rewards["the gradient mixture"] > rewards[opposite.name]


def test_fewer_rows_than_shots_are_refused(adapted: AdaptedModel, starts: Starts, rows: Path) -> None:
    with pytest.raises(TrainingError, match=r"\d+ rows to train on, and 90 shots were asked for"):
        run(adapted, few_shot(shots=90), rows, starts=starts)


def test_a_mixture_that_blows_up_counts_as_wrong_and_fails_nobody(
    adapted: AdaptedModel, starts: Starts, rows: Path
) -> None:
    tame = starts[0]
    wild = Start("main.wild@v1", "wild", {name: torch.full_like(z, 1e30) for name, z in tame.z.items()}, None)
    result, _ = run(adapted, few_shot(n_steps=2), rows, starts=[tame, wild])
    assert result.steps == 2 and all(bool(torch.isfinite(z).all()) for z in result.artifact.values())


def test_a_mixture_that_only_the_shots_like_is_not_published(
    adapted: AdaptedModel, starts: Starts, rows: Path, tmp_path: Path
) -> None:
    """The validation file wants what the shots do not."""
    wanted = StringCheckGrader(
        type="string_check", name="it", input="{{sample.output_text}}", reference="{{item.want}}", operation="like"
    )
    shots, held_out = write_rows(tmp_path / "shots", PROMPTS[:40], want="ee"), PROMPTS[40:]
    others = write_rows(tmp_path / "others", held_out, want="zzz")
    spec = few_shot().model_copy(update={"grader": wanted})
    result, events = run(adapted, spec, shots, others, starts=starts)
    (start,) = [data for _, message, data in events if message.startswith("Rewards on the") and data is not None]
    assert start["train_reward_best"] > 0 and result.best_step == 0
    assert all(torch.equal(z, torch.ones_like(z)) for z in result.artifact.values())


def test_an_expert_that_no_mixture_beat_is_named(adapted: AdaptedModel, starts: Starts, rows: Path) -> None:
    result, events = run(adapted, few_shot(n_steps=0), rows, starts=starts[:1])
    assert result.mixture is not None and result.mixture.experts[0].weights == {"all": 1.0}
    assert f"No mixture beat {starts[0].name} alone, so the new expert equals it." in [
        message for _, message, _ in events
    ]
    assert all(torch.equal(result.artifact[name], z) for name, z in starts[0].z.items())
