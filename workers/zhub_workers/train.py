"""Training of one expert, from the rows of a dataset to a measured z. Knows no database, no object store, no Ray."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhub.errors import NonFiniteLossError, TrainingError
from zhub.manifest import Evaluation
from zhub.rows import Row, Split, prompt_position, split_rows, unique_rows
from zhub.specs import ReinforcementHyperparameters, SupervisedHyperparameters, TrainSpec
from zhub_workers.adapted import AdaptedModel
from zhub_workers.evaluate import EncodedRow, Stopped, compare, encode_rows, evaluate, reward
from zhub_workers.reinforce import group_advantages, policy_gradient_loss
from zhub_workers.rollout import generate, token_logprobs
from zhub_workers.routing import Centroid, make_centroid, prompt_embeddings

OnEvent = Callable[[str, str, dict[str, Any] | None], None]
ShouldStop = Callable[[], bool]

MIN_PROMPTS = 10  # distinct ones: fewer cannot be split into train, validation and test
MAX_TEST_ROWS = 2000  # a 95 % interval of ±2 points; more would only cost time
MAX_ROUTING_PROMPTS = 512
EVALUATION_BATCH_ROWS = 256
FINAL_LEARNING_RATE = (
    0.1  # share of the first rate, at the end of the cosine; arXiv:2501.06252 decays to 0 or does not say
)
# The usual bound: it cuts outliers and leaves ordinary steps alone. The authors' 1e-3 (arXiv:2501.06252, table 6) cuts
# every step to one length, so that a batch with hardly any signal counts as much as a clear one.
MAX_GRAD_NORM = 1.0
ACTIVATION_BUDGET_BYTES = 2 << 30  # of one micro-batch, where the device does not say what it has


@dataclass(frozen=True)
class TrainResult:
    """What came out. ``z`` maps each matrix to its multipliers, float32 on the CPU: ones where no step beat the base.

    ``validation`` chose ``best_step``, so it flatters the expert; ``test`` was looked at once. Both, and ``centroid``,
    are None where training was ``stopped`` before they could be made; ``z`` is then the best until there.
    ``trained_tokens`` counts prompts and answers of every training step, not those of evaluations.
    """

    z: dict[str, Tensor]
    best_step: int
    steps: int
    stopped: bool
    trained_tokens: int
    validation: Evaluation | None
    test: Evaluation | None
    centroid: Centroid | None


def train(
    spec: TrainSpec,
    *,
    adapted: AdaptedModel,
    training_path: Path,
    validation_path: Path | None,
    on_event: OnEvent,
    should_stop: ShouldStop,
) -> TrainResult:
    """Train, keep the step that is best on validation rows and better than the base, and test it once.

    The same spec and files give the same z on one machine's CPU. ``on_event(level, message, data)`` gets the metrics
    of every step as ``data["type"] == "metrics"``. ``should_stop`` is asked before every token, and once true it must
    stay true.

    Raises:
        TrainingError: too few distinct prompts, or a row that cannot be used; see also its subclasses
            PromptTooLongError, RewardError, NonFiniteLossError.
    """
    hyper = spec.hyperparameters
    z, best_step = {name: 1 + zeros.cpu() for name, zeros in adapted.zero_delta().items()}, 0
    steps = trained_tokens = 0
    validation: Evaluation | None = None
    try:
        splits = split_dataset(training_path, validation_path)
        rows: dict[Split, list[EncodedRow]] = {
            "train": encode(adapted, spec, splits["train"], should_stop),
            "validation": encode(adapted, spec, _sample(splits["validation"], hyper.eval_samples), should_stop),
            "test": encode(adapted, spec, _sample(splits["test"], MAX_TEST_ROWS), should_stop),
        }
        sizes = ", ".join(f"{len(splits[name])} {name}" for name in ("train", "validation", "test"))
        on_event("info", f"Rows: {sizes}.", {"type": "rows", **{name: len(splits[name]) for name in splits}})

        def score(candidate: Mapping[str, Tensor] | None, split: Split) -> list[float]:
            return evaluate(
                adapted,
                candidate,
                rows[split],
                spec.grader,
                max_new_tokens=hyper.max_new_tokens,
                batch_rows=EVALUATION_BATCH_ROWS,
                should_stop=should_stop,
            )

        base_rewards = score(None, "validation")
        best_rewards, best_mean = base_rewards, _mean(base_rewards)
        validation = compare(base_rewards, best_rewards, "validation")
        on_event("info", f"Base: validation reward {best_mean:.3f}.", _metrics(0, valid_reward_mean=best_mean))

        generator = torch.Generator().manual_seed(spec.seed)
        batches = _batches(rows["train"], hyper.batch_size, generator)
        delta = {name: zeros.requires_grad_() for name, zeros in adapted.zero_delta().items()}
        optimizer = torch.optim.Adam(delta.values(), lr=hyper.learning_rate)
        for step in range(1, hyper.n_steps + 1):
            if should_stop():
                raise Stopped
            started = time.perf_counter()
            optimizer.zero_grad()
            if isinstance(hyper, ReinforcementHyperparameters):
                metrics = _reinforce(adapted, spec, hyper, delta, next(batches), generator, should_stop)
            else:
                metrics = _imitate(adapted, delta, next(batches))
            _update(optimizer, hyper, step, metrics["train_loss"])
            steps, trained_tokens = step, trained_tokens + int(metrics["tokens"])
            if step % hyper.eval_interval == 0 or step == hyper.n_steps:
                candidate = {name: (1 + values.detach()).cpu() for name, values in delta.items()}
                rewards = score(candidate, "validation")
                metrics["valid_reward_mean"] = _mean(rewards)
                if metrics["valid_reward_mean"] > best_mean:
                    z, best_step, best_rewards, best_mean = candidate, step, rewards, metrics["valid_reward_mean"]
                    validation = compare(base_rewards, best_rewards, "validation")
            metrics["seconds"] = time.perf_counter() - started
            on_event("info", _line(step, hyper.n_steps, metrics), _metrics(step, **metrics))

        if best_step == 0:
            on_event("warn", "No step beat the base model on validation rows, so the expert equals the base.", None)
        base_test = score(None, "test")
        test = compare(base_test, score(z, "test") if best_step else base_test, "test")
        centroid = make_centroid(_embeddings(adapted, rows["train"]), _embeddings(adapted, rows["validation"]))
    except Stopped:
        on_event("info", f"Stopped after step {steps}.", None)
        return TrainResult(z, best_step, steps, True, trained_tokens, validation, None, None)
    return TrainResult(z, best_step, steps, False, trained_tokens, validation, test, centroid)


def split_dataset(training_path: Path, validation_path: Path | None) -> dict[Split, list[Row]]:
    """Return the rows of each split; no prompt is in two of them.

    With a validation file, its prompts are halved into validation and test by their hash, and every row of the
    training file that has another prompt is trained on.

    Raises:
        TrainingError: fewer than MIN_PROMPTS distinct prompts, or a validation file with a single one.
    """
    training = _read(training_path)
    prompts = {prompt_position(row.prompt) for row in training}
    if len(prompts) < MIN_PROMPTS:
        raise TrainingError(
            f"The training file has {len(prompts)} distinct prompts. At least {MIN_PROMPTS} are needed, "
            "so that the expert can be measured on prompts it never saw."
        )
    if validation_path is None:
        return split_rows(training)
    held_out = _read(validation_path)
    positions = sorted({prompt_position(row.prompt) for row in held_out})
    if len(positions) < 2:
        raise TrainingError(
            f"The validation file has {len(positions)} distinct prompts. At least 2 are needed: one half chooses the "
            "best step, the other measures it."
        )
    # The hash's own middle keeps a prompt in its half in every version of the file; a lopsided file is cut at its
    # median.
    middle = 0.5 if positions[0] < 0.5 <= positions[-1] else positions[len(positions) // 2]
    splits: dict[Split, list[Row]] = {
        "train": [row for row in training if prompt_position(row.prompt) not in set(positions)],
        "validation": [row for row in held_out if prompt_position(row.prompt) < middle],
        "test": [row for row in held_out if prompt_position(row.prompt) >= middle],
    }
    if not splits["train"]:
        raise TrainingError(
            "Every prompt of the training file is in the validation file too: none is left to train on."
        )
    return splits


def encode(adapted: AdaptedModel, spec: TrainSpec, rows: Sequence[Row], should_stop: ShouldStop) -> list[EncodedRow]:
    """Render rows for this recipe, see ``encode_rows``."""
    return encode_rows(adapted.base, rows, with_target=spec.recipe == "supervised", should_stop=should_stop)


def _reinforce(
    adapted: AdaptedModel,
    spec: TrainSpec,
    hyper: ReinforcementHyperparameters,
    delta: Mapping[str, Tensor],
    batch: Sequence[EncodedRow],
    generator: torch.Generator,
    should_stop: ShouldStop,
) -> dict[str, float]:
    """Sample a group of answers to each prompt, grade them, and leave the policy gradient in ``delta``."""
    samples = [row for row in batch for _ in range(hyper.group_size)]
    prompts = [row.prompt for row in samples]
    seeds = torch.randint(2**62, (len(samples),), generator=generator).tolist()
    with adapted.merged({name: 1 + values.detach() for name, values in delta.items()}):
        completions = generate(
            adapted.base,
            prompts,
            max_new_tokens=hyper.max_new_tokens,
            temperature=hyper.temperature,
            seeds=seeds,
            should_stop=should_stop,
        )
    if should_stop():
        raise Stopped
    rewards = torch.tensor([reward(spec.grader, c.text, s.row) for c, s in zip(completions, samples, strict=True)])
    advantages = group_advantages(rewards.view(len(batch), hyper.group_size)).view(-1).to(adapted.base.device)
    answers = [completion.token_ids for completion in completions]
    answer_tokens = _count(answers)
    # Without the penalty an answer as good as its group's others has no gradient, so it need not be scored.
    scored = [i for i in range(len(samples)) if hyper.kl_coef > 0 or bool(advantages[i] != 0)]
    total_loss = total_kl = 0.0
    for part in _micro_batches(adapted, prompts, answers, scored):
        part_prompts, part_answers = [prompts[i] for i in part], [answers[i] for i in part]
        reference = None
        if hyper.kl_coef > 0:
            with torch.no_grad():
                reference, _ = token_logprobs(adapted.base, part_prompts, part_answers, temperature=hyper.temperature)
        with adapted.training(delta):
            logprobs, mask = token_logprobs(adapted.base, part_prompts, part_answers, temperature=hyper.temperature)
            loss, divergence = policy_gradient_loss(
                logprobs, reference, advantages[part], mask, kl_coef=hyper.kl_coef, token_count=answer_tokens
            )
            torch.autograd.backward(loss)
        total_loss += loss.item()
        total_kl += divergence.item()
    return {
        "train_reward_mean": rewards.mean().item(),
        "train_loss": total_loss,
        "kl": total_kl,
        "tokens": _count(prompts) + answer_tokens,
    }


def _imitate(adapted: AdaptedModel, delta: Mapping[str, Tensor], batch: Sequence[EncodedRow]) -> dict[str, float]:
    """Leave the gradient of the next-token loss in ``delta``: mean over the targets' tokens, never the prompts'."""
    prompts, targets = [row.prompt for row in batch], [row.target for row in batch]
    target_tokens = _count(targets)
    total_loss = 0.0
    for part in _micro_batches(adapted, prompts, targets, range(len(batch))):
        with adapted.training(delta):
            logprobs, _ = token_logprobs(adapted.base, [prompts[i] for i in part], [targets[i] for i in part])
            loss = -logprobs.sum() / target_tokens
            torch.autograd.backward(loss)
        total_loss += loss.item()
    return {"train_loss": total_loss, "tokens": _count(prompts) + target_tokens}


def _update(
    optimizer: torch.optim.Optimizer,
    hyper: ReinforcementHyperparameters | SupervisedHyperparameters,
    step: int,
    loss: float,
) -> None:
    """Take one step down the gradient, at this step's learning rate.

    Raises:
        NonFiniteLossError: the loss or the gradient is NaN or infinite; nothing was changed.
    """
    group = optimizer.param_groups[0]
    done = (step - 1) / hyper.n_steps
    cosine = (1 + math.cos(math.pi * done)) / 2
    group["lr"] = hyper.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)
    if all(parameter.grad is None for parameter in group["params"]):
        return  # every group was rewarded alike
    norm = torch.nn.utils.clip_grad_norm_(group["params"], MAX_GRAD_NORM)
    if not math.isfinite(loss) or not bool(torch.isfinite(norm)):
        raise NonFiniteLossError(step)
    optimizer.step()


def _micro_batches(
    adapted: AdaptedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]], rows: Sequence[int]
) -> Iterator[list[int]]:
    """Cut rows into pieces whose activations fit, rows of like length and of one prompt together."""
    limit = _token_budget(adapted)
    order = sorted(rows, key=lambda i: (len(prompts[i]), prompts[i], len(answers[i])))
    part: list[int] = []
    longest_prompt = longest_answer = 0
    for i in order:
        longest_prompt = max(longest_prompt, len(prompts[i]))
        longest_answer = max(longest_answer, len(answers[i]))
        if part and (len(part) + 1) * (longest_prompt + longest_answer) > limit:
            yield part
            part, longest_prompt, longest_answer = [], len(prompts[i]), len(answers[i])
        part.append(i)
    if part:
        yield part


def _token_budget(adapted: AdaptedModel) -> int:
    """How many tokens may go through forward and backward at once.

    A layer keeps 34 bytes per token and unit of width in 16 bit (Korthikanti et al., arXiv:2205.05198, less the
    attention scores, which are not kept); the logits three float32 copies.
    """
    config = adapted.base.model.config.get_text_config()
    wide = adapted.base.model.dtype.itemsize / 2
    per_token = 34 * wide * config.hidden_size * config.num_hidden_layers + 12 * config.vocab_size
    budget = ACTIVATION_BUDGET_BYTES
    if adapted.base.device.type == "cuda":
        budget = torch.cuda.mem_get_info(adapted.base.device)[0] // 2
    return max(1, int(budget / per_token))


def _batches(rows: Sequence[EncodedRow], size: int, generator: torch.Generator) -> Iterator[list[EncodedRow]]:
    """Deal the rows out in shuffled epochs, for ever; no row twice in a batch."""
    size = min(size, len(rows))
    order: list[int] = []
    while True:
        if len(order) < size:
            dealt = set(order)
            fresh = torch.randperm(len(rows), generator=generator).tolist()
            # Those left over from the last epoch come first, and not again in the same batch.
            order += [i for i in fresh if i not in dealt] + [i for i in fresh if i in dealt]
        yield [rows[i] for i in order[:size]]
        order = order[size:]


def _read(path: Path) -> list[Row]:
    with path.open("rb") as file:
        return list(unique_rows(file))


def _sample(rows: list[Row], count: int) -> list[Row]:
    """The first by hash: a random sample, and the same one in every job on these rows."""
    return sorted(rows, key=lambda row: (prompt_position(row.prompt), row.line))[:count]


def _embeddings(adapted: AdaptedModel, rows: Sequence[EncodedRow]) -> Tensor:
    # By hash, because a file may be sorted by subject.
    chosen = sorted(rows, key=lambda row: prompt_position(row.row.prompt))[:MAX_ROUTING_PROMPTS]
    return prompt_embeddings(adapted.base, [row.prompt for row in chosen])


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
