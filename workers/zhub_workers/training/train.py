"""One training job from its files to a measured expert; the algorithm itself is in ``trainer``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from zhub.datasets.splits import Split
from zhub.errors import LongRow, PromptTooLongError, TrainingError
from zhub.manifest import Evaluation, Mixture
from zhub.recipes import ReinforcementHyperparameters
from zhub.specs import TrainSpec
from zhub_workers.compute.group import Member, Stopped
from zhub_workers.evaluation.answer_pairs import AnswerPair
from zhub_workers.evaluation.grading import EncodedRow, Grading, compare, cut, render_rows
from zhub_workers.model.routing import Centroid, make_centroid
from zhub_workers.training.few_shot import FewShotSearch
from zhub_workers.training.forgetting import KeptAnswers, measure_general
from zhub_workers.training.job import OnEvent, TrainingJob
from zhub_workers.training.outcome import measure_on_test
from zhub_workers.training.preflight import check_tokenizer, preflight
from zhub_workers.training.splits import sample, split_dataset
from zhub_workers.training.state import TrainState
from zhub_workers.training.trainer import OnCheckpoint, Trainer
from zhub_workers.training.warm_start import Start, choose

MAX_TEST_ROWS = 2000  # a 95 % interval of ±2 points; more would only cost time


@dataclass(frozen=True)
class TrainResult:
    """What came out. ``artifact`` holds what the adapter exports, float32 on the CPU: the base where no step beat it.

    ``validation`` chose ``best_step``, so it flatters the expert; ``test`` was looked at once. Both, and ``centroid``,
    are None where training was ``stopped`` before they could be made; the artifact is then the best until there.
    ``general`` has the evaluations on the general suite, and ``answers`` what base and expert answered to it and to
    the test rows.
    ``parent_digest`` names the version that training began from, None for the base; ``mixture`` those that were mixed.
    ``trained_tokens`` counts prompts and answers of every training step, not those of evaluations.
    """

    artifact: dict[str, Tensor]
    best_step: int
    steps: int
    stopped: bool
    trained_tokens: int
    parent_digest: str | None
    validation: Evaluation | None = None
    test: Evaluation | None = None
    general: Sequence[Evaluation] = ()
    answers: Sequence[AnswerPair] = ()
    centroid: Centroid | None = None
    mixture: Mixture | None = None


def train(
    spec: TrainSpec,
    *,
    member: Member,
    grading: Grading,
    training_path: Path,
    validation_path: Path | None,
    on_event: OnEvent,
    on_checkpoint: OnCheckpoint,
    starts: Sequence[Start] = (),
    resumed: TrainState | None = None,
    kept_answers: KeptAnswers | None = None,
) -> TrainResult:
    """Train, keep the step that is best on validation rows and better than the base, and test it once.

    Training begins from one of ``starts``, see ``TrainSpec.starts``, or from the base; a few-shot search mixes them.

    The same spec and files give the same artifact on one machine's CPU, whether in one go or ``resumed`` from any
    state that ``on_checkpoint`` was given; beside other members of a group, or with shards, up to rounding.
    ``on_event(level, message, data)`` gets the metrics of every step as ``data["type"] == "metrics"``. When the job
    should stop, the last whole step is given to ``on_checkpoint``. ``kept_answers`` has those of bases to the general
    suite.

    Raises:
        TrainingError: too few distinct prompts, or a row that cannot be used; see also its subclasses
            PromptTooLongError, RewardError, ConstantRewardError, NonFiniteLossError, OutOfMemoryError.
    """
    job = TrainingJob(spec, member, grading, on_event)
    state: TrainState | None = resumed
    trainer: Trainer | FewShotSearch | None = None
    try:
        rows = read_rows(job, training_path, validation_path)
        if state is None:
            check_tokenizer(job, rows["train"])
            state = first_state(job, starts, rows)
            check_reward(job, state, rows["train"])
        else:
            on_event("info", f"Resumed after step {state.step}.", None)
        base_mean = fmean(state.base_rewards)
        metrics = {"type": "metrics", "step": 0, "valid_reward_mean": base_mean}
        on_event("info", f"Base: validation reward {base_mean:.3f}.", metrics)
        if spec.recipe == "few_shot":
            search = trainer = FewShotSearch(job, state, on_checkpoint, starts, rows)
            search.run()
            return replace(measured_result(job, state, rows, kept_answers), mixture=search.mixture())
        trainer = Trainer(job, state, on_checkpoint)
        trainer.run(rows)
        return measured_result(job, state, rows, kept_answers)
    except Stopped:
        if trainer is not None:
            trainer.checkpoint_on_stop()
        return stopped_result(job, state)


def read_rows(job: TrainingJob, training_path: Path, validation_path: Path | None) -> dict[Split, list[EncodedRow]]:
    """The rows of each split, encoded; validation and test are cut to the number that is measured."""
    splits = split_dataset(training_path, validation_path, duplicates=job.hyper.duplicates)
    sizes = ", ".join(f"{len(splits[name])} {name}" for name in ("train", "validation", "test"))
    job.on_event("info", f"Rows: {sizes}.", {"type": "rows", **{name: len(splits[name]) for name in splits}})
    splits["validation"] = sample(splits["validation"], job.hyper.eval_samples)
    splits["test"] = sample(splits["test"], MAX_TEST_ROWS)
    with_target = job.spec.recipe in ("supervised", "dpo")
    encoded = {
        name: render_rows(job.member.base, rows, with_target=with_target, should_stop=job.member.should_stop)
        for name, rows in splits.items()
    }
    limit = job.member.base.context_length
    return encoded if limit is None else fit_rows(job, encoded, limit, has_validation_file=validation_path is not None)


def fit_rows(
    job: TrainingJob, rows: Mapping[Split, Sequence[EncodedRow]], limit: int, *, has_validation_file: bool
) -> dict[Split, list[EncodedRow]]:
    """The rows of each split within ``limit`` tokens: those that are longer are refused, left out, or cut.

    Raises:
        PromptTooLongError: they are refused; with all of them.
        TrainingError: they are left out, and a split has no others.
    """
    how = job.hyper.long_rows
    too_long = [
        LongRow(row.row.line, row.tokens, in_validation_file=has_validation_file and name != "train")
        for name, of_split in rows.items()
        for row in of_split
        if row.tokens > limit
    ]
    too_long.sort(key=lambda row: (row.in_validation_file, row.line))
    if too_long and how == "refuse":
        raise PromptTooLongError(too_long[0].line, too_long[0].tokens, limit, too_long)
    if too_long:
        done = "left out" if how == "skip" else "cut"
        message = f"{len(too_long):,} rows with more than {limit:,} tokens are {done}, the first: {too_long[0]}."
        job.on_event("warn", message, {"type": "long_rows", "count": len(too_long), "done": how})
    fitting: dict[Split, list[EncodedRow]] = {}
    for name, of_split in rows.items():
        kept = [row for row in of_split if how == "cut" or row.tokens <= limit]
        fitting[name] = [row if row.tokens <= limit else cut(row, limit) for row in kept]
        if of_split and not kept:
            raise TrainingError(f"All {len(of_split):,} rows for {name} have more than {limit:,} tokens: none is left.")
    return fitting


def first_state(job: TrainingJob, starts: Sequence[Start], rows: Mapping[Split, Sequence[EncodedRow]]) -> TrainState:
    """The state before the first step: of the base, or of the expert that training begins from."""
    adapter = job.member.adapter
    state = base_state(job, job.score(None, rows["validation"]))
    if job.spec.recipe == "few_shot":
        return replace(state, parameters={}, first_moments={}, second_moments={})
    beginning = choose(job, starts, state, rows)
    if beginning is None:
        return state
    # Of multipliers, the parameters are the values.
    state.parameters |= adapter.imported(beginning.start.z)
    state.current = adapter.exported(adapter.values(state.parameters))
    state.parent = beginning.start.digest
    if fmean(beginning.rewards) > fmean(state.base_rewards):
        state.best, state.best_rewards = adapter.exported(state.parameters), beginning.rewards
    return state


def base_state(job: TrainingJob, base_rewards: list[float]) -> TrainState:
    """Fresh parameters that leave the base as it is, and the optimiser and random numbers before their first use."""
    adapter, seed = job.member.adapter, job.spec.seed
    parameters = adapter.initial(seed)
    exported = adapter.exported(adapter.values(parameters))
    return TrainState(
        step=0,
        updates=0,
        parameters=parameters,
        first_moments={name: torch.zeros_like(value) for name, value in parameters.items()},
        second_moments={name: torch.zeros_like(value) for name, value in parameters.items()},
        current=exported,
        generator=torch.Generator().manual_seed(seed).get_state(),
        order=[],
        kept={},
        best=exported,
        best_step=0,
        best_rewards=base_rewards,
        base_rewards=base_rewards,
        scores_since_best=0,
        trained_tokens=0,
    )


def check_reward(job: TrainingJob, state: TrainState, rows: Sequence[EncodedRow]) -> None:
    """Before reinforcement, check that answers get different rewards; see ``preflight``."""
    hyper = job.hyper
    if isinstance(hyper, ReinforcementHyperparameters) and hyper.preflight_prompts:
        report = preflight(job, hyper, state, rows)
        job.on_event("info", str(report), {"type": "preflight", **report.__dict__})
        if report.advice is not None:
            job.on_event("warn", report.advice, None)


def measured_result(
    job: TrainingJob,
    state: TrainState,
    rows: Mapping[Split, Sequence[EncodedRow]],
    kept_answers: KeptAnswers | None,
) -> TrainResult:
    """The result of a finished training, measured on the test rows and on the general suite."""
    if state.best_step == 0:
        what = "the base model" if state.is_base else "the expert that training began from"
        message = f"No step beat {what} on validation rows, so the new expert equals it."
        job.on_event("warn", message, None)
    test, answers = measure_on_test(job, state, rows["test"])
    general = measure_general(job, state, kept_answers)
    return replace(
        unmeasured_result(state, stopped=False),
        validation=compare(state.base_rewards, state.best_rewards, "validation"),
        test=test,
        general=general.evaluations,
        answers=[*answers, *general.pairs],
        centroid=make_centroid(job.embeddings(rows["train"]), job.embeddings(rows["validation"])),
    )


def stopped_result(job: TrainingJob, state: TrainState | None) -> TrainResult:
    """The result of a training that was stopped; ``state`` is None if that was before the first state."""
    if state is None:
        return TrainResult({}, best_step=0, steps=0, stopped=True, trained_tokens=0, parent_digest=None)
    job.on_event("info", f"Stopped after step {state.step}.", None)
    return unmeasured_result(state, stopped=True)


def unmeasured_result(state: TrainState, *, stopped: bool) -> TrainResult:
    return TrainResult(
        state.best,
        best_step=state.best_step,
        steps=state.step,
        stopped=stopped,
        trained_tokens=state.trained_tokens,
        parent_digest=None if state.is_base else state.parent or None,
    )
