"""Training of one expert, from the rows of a dataset to a measured artifact. Knows no database, no store, no Ray."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhub.datasets.splits import Split, prompt_position
from zhub.errors import NonFiniteLossError
from zhub.manifest import Evaluation
from zhub.specs import DpoHyperparameters, Hyperparameters, ReinforcementHyperparameters, TrainSpec
from zhub_workers.compute.batches import Gradient, Tokens
from zhub_workers.compute.group import Member, Stopped
from zhub_workers.compute.losses import ADVANTAGES, Loss, NextToken, PolicyGradient, Preference
from zhub_workers.evaluation.grading import EncodedRow, Grading, compare, encode_rows, greedy_grades, preferences
from zhub_workers.model.adapters import SvfAdapter, Values
from zhub_workers.model.routing import Centroid, make_centroid
from zhub_workers.training.preflight import preflight
from zhub_workers.training.splits import sample, split_dataset
from zhub_workers.training.state import TrainState
from zhub_workers.training.warm_start import Start, choose

OnEvent = Callable[[str, str, dict[str, Any] | None], None]
OnCheckpoint = Callable[[TrainState, Mapping[str, float]], None]

MAX_TEST_ROWS = 2000  # a 95 % interval of ±2 points; more would only cost time
MAX_ROUTING_PROMPTS = 512  # half as many route 2 of 100 prompts less right, on the shipped families
SIGNIFICANCE = 0.05
# Share of the first rate, at the end of the cosine; arXiv:2501.06252 decays to 0 or does not say.
FINAL_LEARNING_RATE = 0.1
DENSE_SHARE = 1 / 3  # of a sparse expert's steps are taken with all multipliers, to learn which matter


@dataclass(frozen=True)
class TrainResult:
    """What came out. ``artifact`` holds what the adapter exports, float32 on the CPU: the base where no step beat it.

    ``validation`` chose ``best_step``, so it flatters the expert; ``test`` was looked at once. Both, and ``centroid``,
    are None where training was ``stopped`` before they could be made; the artifact is then the best until there.
    ``parent_digest`` names the version that training began from, None for the base.
    ``trained_tokens`` counts prompts and answers of every training step, not those of evaluations.
    """

    artifact: dict[str, Tensor]
    best_step: int
    steps: int
    stopped: bool
    trained_tokens: int
    parent_digest: str | None
    validation: Evaluation | None
    test: Evaluation | None
    centroid: Centroid | None


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
) -> TrainResult:
    """Train, keep the step that is best on validation rows and better than the base, and test it once.

    Training begins from one of ``starts``, see ``TrainSpec.starts``, or from the base.

    The same spec and files give the same artifact on one machine's CPU, whether in one go or ``resumed`` from any
    state that ``on_checkpoint`` was given; beside other members of a group, or with shards, up to rounding.
    ``on_event(level, message, data)`` gets the metrics of every step as ``data["type"] == "metrics"``. When the job
    should stop, the last whole step is given to ``on_checkpoint``.

    Raises:
        TrainingError: too few distinct prompts, or a row that cannot be used; see also its subclasses
            PromptTooLongError, RewardError, ConstantRewardError, NonFiniteLossError, OutOfMemoryError.
    """
    hyper = spec.hyperparameters
    state = resumed
    written = 0 if resumed is None else resumed.step
    updates = 0 if resumed is None else resumed.updates  # when the last step was whole
    try:
        rows = _rows(spec, member, training_path, validation_path, on_event)
        if state is None:
            state = _first_state(spec, member, grading, starts, rows, on_event)
            if isinstance(hyper, ReinforcementHyperparameters) and hyper.preflight_prompts:
                begun = _detached(member, state) if state.parent else None
                report = preflight(member, begun, rows["train"], grading, hyper)
                on_event("info", str(report), {"type": "preflight", **report.__dict__})
        else:
            on_event("info", f"Resumed after step {state.step}.", None)
        base_mean = _mean(state.base_rewards)
        on_event("info", f"Base: validation reward {base_mean:.3f}.", _metrics(0, valid_reward_mean=base_mean))
        optimizer = _optimizer(state, hyper, member.base.device)
        for step in range(state.step + 1, hyper.n_steps + 1):
            if hyper.patience and state.scores_since_best >= hyper.patience:
                on_event("info", f"Validation has not improved {hyper.patience} times: training ends early.", None)
                break
            started = time.perf_counter()
            metrics = _step(spec, member, grading, state, optimizer, rows["train"], step, on_event)
            updates = state.updates
            due = step % hyper.eval_interval == 0 or step == hyper.n_steps
            if due:
                metrics["valid_reward_mean"] = _select(spec, member, grading, state, rows["validation"])
            metrics["seconds"] = time.perf_counter() - started
            on_event("info", _line(step, hyper.n_steps, metrics), _metrics(step, **metrics))
            if due if hyper.checkpoint_interval == 0 else step % hyper.checkpoint_interval == 0:
                on_checkpoint(state, metrics)
                written = step
        if state.best_step == 0:
            what = "the base model" if _is_base(state) else "the expert that training began from"
            on_event("warn", f"No step beat {what} on validation rows, so the new expert equals it.", None)
        validation = compare(state.base_rewards, state.best_rewards, "validation")
        test = _test(spec, member, grading, state, rows["test"], on_event)
        centroid = make_centroid(_embeddings(member, rows["train"]), _embeddings(member, rows["validation"]))
    except Stopped:
        if state is None:
            return TrainResult({}, 0, 0, True, 0, None, None, None, None)
        # In the middle of several updates on the same answers, the parameters are no step's.
        if state.step > written and state.updates == updates:
            on_checkpoint(state, {})
        on_event("info", f"Stopped after step {state.step}.", None)
        return _result(state, True, None, None, None)
    return _result(state, False, validation, test, centroid)


def _result(
    state: TrainState,
    stopped: bool,
    validation: Evaluation | None,
    test: Evaluation | None,
    centroid: Centroid | None,
) -> TrainResult:
    parent = None if _is_base(state) else state.parent or None
    counts = (state.best_step, state.step, stopped, state.trained_tokens)
    return TrainResult(state.best, *counts, parent, validation, test, centroid)


def _is_base(state: TrainState) -> bool:
    """Whether what would be published is the base: no step was better, nor the expert that training began from."""
    return state.best_step == 0 and (not state.parent or all(bool((z == 1).all()) for z in state.best.values()))


def _rows(
    spec: TrainSpec, member: Member, training_path: Path, validation_path: Path | None, on_event: OnEvent
) -> dict[Split, list[EncodedRow]]:
    splits = split_dataset(training_path, validation_path)
    sizes = ", ".join(f"{len(splits[name])} {name}" for name in ("train", "validation", "test"))
    on_event("info", f"Rows: {sizes}.", {"type": "rows", **{name: len(splits[name]) for name in splits}})
    splits["validation"] = sample(splits["validation"], spec.hyperparameters.eval_samples)
    splits["test"] = sample(splits["test"], MAX_TEST_ROWS)
    with_target = spec.recipe != "reinforcement"
    return {
        name: encode_rows(member.base, rows, with_target=with_target, should_stop=member.should_stop)
        for name, rows in splits.items()
    }


def _first_state(
    spec: TrainSpec,
    member: Member,
    grading: Grading,
    starts: Sequence[Start],
    rows: Mapping[Split, Sequence[EncodedRow]],
    on_event: OnEvent,
) -> TrainState:
    base_rewards = _scores(spec, member, None, rows["validation"], grading)
    parameters = member.adapter.initial(spec.seed)
    best, best_rewards = member.adapter.exported(member.adapter.values(parameters)), base_rewards
    begun = choose(
        starts,
        nearest=spec.hyperparameters.warm_start == "nearest",
        names=parameters,
        embeddings=lambda: _embeddings(member, rows["train"]),
        score=lambda z: _scores(spec, member, member.adapter.imported(z), rows["validation"], grading),
        base_rewards=base_rewards,
        on_event=on_event,
    )
    if begun is not None:
        # Of multipliers, the parameters are the values.
        parameters |= member.adapter.imported(begun.start.z)
        if _mean(begun.rewards) > _mean(base_rewards):
            best, best_rewards = member.adapter.exported(parameters), begun.rewards
    return TrainState(
        step=0,
        updates=0,
        parameters=parameters,
        first_moments={name: torch.zeros_like(value) for name, value in parameters.items()},
        second_moments={name: torch.zeros_like(value) for name, value in parameters.items()},
        current=member.adapter.exported(member.adapter.values(parameters)),
        generator=torch.Generator().manual_seed(spec.seed).get_state(),
        order=[],
        kept={},
        best=best,
        best_step=0,
        best_rewards=best_rewards,
        base_rewards=base_rewards,
        scores_since_best=0,
        trained_tokens=0,
        parent="" if begun is None else begun.start.digest,
    )


def _optimizer(state: TrainState, hyper: Hyperparameters, device: torch.device) -> torch.optim.Adam:
    """Adam on the state's parameters and moments: it moves the state's own tensors."""
    for group in (state.parameters, state.first_moments, state.second_moments, state.kept):
        for name, value in group.items():
            group[name] = value.to(device)
    # By name, because the norm of the gradient is a sum in their order, and a resumed job's must be the same.
    parameters = [state.parameters[name].requires_grad_() for name in sorted(state.parameters)]
    optimizer = torch.optim.Adam(parameters, lr=hyper.learning_rate)
    for name, parameter in state.parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.updates)),
            "exp_avg": state.first_moments[name],
            "exp_avg_sq": state.second_moments[name],
        }
    return optimizer


def _step(
    spec: TrainSpec,
    member: Member,
    grading: Grading,
    state: TrainState,
    optimizer: torch.optim.Adam,
    rows: Sequence[EncodedRow],
    step: int,
    on_event: OnEvent,
) -> dict[str, float]:
    """Take one step and bring ``state`` to it; a step that is interrupted leaves the state of the one before."""
    generator = torch.Generator()
    generator.set_state(state.generator)
    batch, order = _deal(rows, state.order, spec.hyperparameters.batch_size, generator)
    token_limit = member.token_limit
    if isinstance(spec.hyperparameters, ReinforcementHyperparameters):
        metrics = _reinforce(spec.hyperparameters, member, grading, state, optimizer, batch, generator, step)
    else:
        prompts, answers, loss = _imitation(spec.hyperparameters, member, batch)
        gradient = _gradient(member, state, prompts, answers, loss)
        _update(optimizer, state, spec.hyperparameters, gradient, step)
        metrics = {"train_loss": gradient.loss, **gradient.sums, "tokens": _count(prompts) + _count(answers)}
    if member.token_limit < token_limit:
        message = f"Out of memory: micro-batches hold at most {member.token_limit:,} tokens from now on."
        on_event("warn", message, {"type": "out_of_memory", "micro_batch_tokens": member.token_limit})
    if spec.hyperparameters.sparsity and step == _dense_steps(spec.hyperparameters):
        assert isinstance(member.adapter, SvfAdapter)  # no other hyper-parameters have a sparsity
        state.kept = member.adapter.largest(state.parameters, 1 - spec.hyperparameters.sparsity)
        _drop(state)
    state.current = member.adapter.exported(_detached(member, state))
    state.step, state.generator, state.order = step, generator.get_state(), order
    state.trained_tokens += int(metrics["tokens"])
    return metrics


def _reinforce(
    hyper: ReinforcementHyperparameters,
    member: Member,
    grading: Grading,
    state: TrainState,
    optimizer: torch.optim.Adam,
    batch: Sequence[EncodedRow],
    generator: torch.Generator,
    step: int,
) -> dict[str, float]:
    """Sample a group of answers to each prompt, grade them, and follow the policy gradient."""
    samples = [row for row in batch for _ in range(hyper.group_size)]
    seeds = torch.randint(2**62, (len(samples),), generator=generator).tolist()
    values = _detached(member, state)
    completions = member.generate(
        values,
        [row.prompt for row in samples],
        max_new_tokens=hyper.max_new_tokens,
        temperature=hyper.temperature,
        seeds=seeds,
    )
    grades = grading([completion.text for completion in completions], samples)
    rewards = torch.tensor([grade.reward for grade in grades])
    advantages = ADVANTAGES[hyper.algorithm](rewards.view(len(batch), hyper.group_size)).view(-1)
    # A group without variance says nothing about its prompt; where every reward counts by itself all of them do.
    taught = advantages.view(len(batch), -1).any(1).repeat_interleave(hyper.group_size)
    chosen = taught.nonzero().flatten().tolist()
    prompts = [samples[index].prompt for index in chosen]
    answers = [completions[index].token_ids for index in chosen]
    metrics = {
        "train_reward_mean": rewards.mean().item(),
        "unread": sum(not grade.parsed for grade in grades) / len(grades),
        "skipped": 1 - len(chosen) / len(samples),
        "train_loss": 0.0,
        "kl": 0.0,
        "tokens": float(_count([row.prompt for row in samples]) + _count([c.token_ids for c in completions])),
    }
    if not chosen:
        return metrics

    def logprobs(of: Values | None) -> list[Tensor]:
        return member.logprobs(of, prompts, answers, temperature=hyper.temperature)

    reference = logprobs(None) if hyper.kl_coef > 0 else None
    sampled = logprobs(values) if hyper.updates_per_rollout > 1 else None
    for update in range(hyper.updates_per_rollout):
        loss = PolicyGradient(
            advantages[chosen],
            token_count=_count(answers),
            kl_coef=hyper.kl_coef,
            reference=reference,
            clip_ratio=hyper.clip_ratio,
            # The policy that sampled is the one in training, at the first update: the ratio is one.
            sampled=sampled if update else None,
        )
        gradient = _gradient(member, state, prompts, answers, loss, temperature=hyper.temperature)
        _update(optimizer, state, hyper, gradient, step)
        if update == 0:
            metrics |= {"train_loss": gradient.loss, **gradient.sums}
    return metrics


def _imitation(
    hyper: Hyperparameters, member: Member, batch: Sequence[EncodedRow]
) -> tuple[list[list[int]], list[list[int]], Preference | NextToken]:
    """Prompts, answers and loss of a batch of targets, or of pairs where one answer is preferred."""
    if not isinstance(hyper, DpoHyperparameters):
        targets = [row.target for row in batch]
        return [row.prompt for row in batch], targets, NextToken(token_count=_count(targets))
    prompts = [row.prompt for row in batch for _ in range(2)]
    answers = [answer for row in batch for answer in (row.target, row.rejected)]
    reference = member.logprobs(None, prompts, answers)
    return prompts, answers, Preference(hyper.beta, len(batch), reference)


def _detached(member: Member, state: TrainState) -> dict[str, Tensor]:
    with torch.no_grad():
        return member.adapter.values(state.parameters)


def _gradient(
    member: Member, state: TrainState, prompts: Tokens, answers: Tokens, loss: Loss, *, temperature: float = 1.0
) -> Gradient:
    """Take the gradient by the values, and leave that by the parameters in their ``grad``."""
    values = member.adapter.values(state.parameters)
    detached = {name: value.detach() for name, value in values.items()}
    gradient = member.gradient(detached, prompts, answers, loss, temperature=temperature)
    torch.autograd.backward(list(values.values()), [gradient.values[name] for name in values])
    return gradient


def _update(
    optimizer: torch.optim.Adam, state: TrainState, hyper: Hyperparameters, gradient: Gradient, step: int
) -> None:
    """Move the parameters down their gradient, at this step's learning rate.

    Raises:
        NonFiniteLossError: the loss or the gradient is NaN or infinite; nothing was changed.
    """
    group = optimizer.param_groups[0]
    cosine = (1 + math.cos(math.pi * (step - 1) / hyper.n_steps)) / 2
    group["lr"] = hyper.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)
    for name, kept in state.kept.items():
        grad = state.parameters[name].grad
        assert grad is not None
        grad.mul_(kept)
    norm = torch.nn.utils.clip_grad_norm_(group["params"], hyper.max_grad_norm)
    if not math.isfinite(gradient.loss) or not bool(torch.isfinite(norm)):
        raise NonFiniteLossError(step)
    optimizer.step()
    optimizer.zero_grad()
    state.updates += 1
    _drop(state)


@torch.no_grad()
def _drop(state: TrainState) -> None:
    """Keep at zero what a sparse expert has given up; Adam's momentum would carry it on."""
    for name, kept in state.kept.items():
        state.parameters[name].mul_(kept)


def _dense_steps(hyper: Hyperparameters) -> int:
    return max(1, round(DENSE_SHARE * hyper.n_steps))


def _select(spec: TrainSpec, member: Member, grading: Grading, state: TrainState, rows: Sequence[EncodedRow]) -> float:
    """Score the present step on validation rows, and keep it if it is the best so far; return its mean reward."""
    rewards = _scores(spec, member, member.adapter.imported(state.current), rows, grading)
    dense = spec.hyperparameters.sparsity > 0 and not state.kept
    if _mean(rewards) > _mean(state.best_rewards) and not dense:
        state.best, state.best_step, state.best_rewards = state.current, state.step, rewards
        state.scores_since_best = 0
    else:
        state.scores_since_best += 1
    return _mean(rewards)


def _scores(
    spec: TrainSpec, member: Member, values: Values | None, rows: Sequence[EncodedRow], grading: Grading
) -> list[float]:
    if spec.recipe == "dpo":
        return preferences(member, values, rows)
    limit = spec.hyperparameters.max_new_tokens
    return [grade.reward for grade in greedy_grades(member, values, rows, grading, max_new_tokens=limit)]


def _test(
    spec: TrainSpec, member: Member, grading: Grading, state: TrainState, rows: Sequence[EncodedRow], on_event: OnEvent
) -> Evaluation:
    base = _scores(spec, member, None, rows, grading)
    best = member.adapter.imported(state.best)
    expert = base if _is_base(state) else _scores(spec, member, best, rows, grading)
    test = compare(base, expert, "test")
    if not _is_base(state) and test.p_value >= SIGNIFICANCE:
        on_event(
            "warn",
            f"On {test.base.n} test rows the expert ({test.expert.mean:.3f}) and the base ({test.base.mean:.3f}) "
            f"differ by no more than chance would (p = {test.p_value:.2f}): the expert is inside the noise.",
            {"type": "inside_the_noise", "p_value": test.p_value},
        )
    return test


def _deal(
    rows: Sequence[EncodedRow], order: Sequence[int], size: int, generator: torch.Generator
) -> tuple[list[EncodedRow], list[int]]:
    """The next batch of shuffled epochs, and what is left of the order; no row twice in a batch."""
    size = min(size, len(rows))
    left = list(order)
    if len(left) < size:
        fresh = torch.randperm(len(rows), generator=generator).tolist()
        # Those left over from the last epoch come first, and not again in the same batch.
        left += [i for i in fresh if i not in set(order)] + [i for i in fresh if i in set(order)]
    return [rows[i] for i in left[:size]], left[size:]


def _embeddings(member: Member, rows: Sequence[EncodedRow]) -> Tensor:
    # By hash, because a file may be sorted by subject.
    chosen = sorted(rows, key=lambda row: prompt_position(row.row.prompt))[:MAX_ROUTING_PROMPTS]
    return member.embeddings([row.prompt for row in chosen])


def _count(sequences: Sequence[Sequence[int]]) -> int:
    return sum(len(sequence) for sequence in sequences)


def _mean(rewards: Sequence[float]) -> float:
    return math.fsum(rewards) / len(rewards)


def _metrics(step: int, **values: float) -> dict[str, Any]:
    return {"type": "metrics", "step": step, **values}


def _line(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    names = {"train_reward_mean": "reward", "train_loss": "loss", "valid_reward_mean": "validation reward"}
    found = [f"{names[key]} {metrics[key]:.3f}" for key in names if key in metrics]
    return f"Step {step}/{steps}: {', '.join(found)}."
