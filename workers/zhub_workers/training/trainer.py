"""The training algorithm: how the rows of a dataset move an expert, step by step.

A step deals a batch of rows, makes a loss of them in the way of its recipe, takes the gradient by the values that the
model follows, brings it back to the parameters, and lets Adam move them. Every few steps the expert is scored on
validation rows, and the best one so far is kept.

Shapes: a batch has P rows. ``reinforcement`` samples G answers to the prompt of each, N = P · G in all, of which the M
answers teach whose group was not rewarded alike. Answer i has ``t_i`` tokens.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from zhub.datasets.splits import Split
from zhub.errors import NonFiniteLossError
from zhub.specs import DpoHyperparameters, ReinforcementHyperparameters
from zhub_workers.compute.losses import ADVANTAGES, Loss, NextToken, PolicyGradient, Preference
from zhub_workers.compute.requests import Differentiate, Generate, Gradient, Logprobs, Tokens
from zhub_workers.evaluation.grading import EncodedRow
from zhub_workers.model.adapters import SvfAdapter, Values
from zhub_workers.model.rollout import Completion
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.state import TrainState
from zhub_workers.training.step_plan import dense_steps, is_checkpointed, is_validated, learning_rate

OnCheckpoint = Callable[[TrainState, Mapping[str, float]], None]


class Trainer:
    """Trains one expert. ``state`` is what it has become so far; each method is a part of the algorithm."""

    def __init__(self, job: TrainingJob, state: TrainState, on_checkpoint: OnCheckpoint) -> None:
        self.job = job
        self.state = state
        self._member = job.member
        self._adapter = job.member.adapter
        self._optimizer = make_optimizer(state, job.hyper.learning_rate, job.member.base.device)
        self._on_checkpoint = on_checkpoint
        self._checkpointed_step = state.step
        self._updates_after_step = state.updates  # of the last whole step

    def run(self, rows: Mapping[Split, Sequence[EncodedRow]]) -> None:
        """Take the remaining steps, with their validations and checkpoints."""
        hyper, state = self.job.hyper, self.state
        for step in range(state.step + 1, hyper.n_steps + 1):
            if hyper.patience and state.scores_since_best >= hyper.patience:
                message = f"Validation has not improved {hyper.patience} times: training ends early."
                self.job.on_event("info", message, None)
                break
            started = time.perf_counter()
            metrics = self.step(rows["train"])
            if is_validated(step, hyper):
                metrics["valid_reward_mean"] = self.validate(rows["validation"])
            metrics["seconds"] = time.perf_counter() - started
            data = {"type": "metrics", "step": step, **metrics}
            self.job.on_event("info", progress_line(step, hyper.n_steps, metrics), data)
            if is_checkpointed(step, hyper):
                self.checkpoint(metrics)

    def step(self, rows: Sequence[EncodedRow]) -> dict[str, float]:
        """Take one step and return its metrics. An interrupted step leaves the state of the step before."""
        state, hyper = self.state, self.job.hyper
        generator = torch.Generator()
        generator.set_state(state.generator)
        batch, order = deal(rows, state.order, hyper.batch_size, generator)  # P rows
        token_limit = self._member.token_limit
        if isinstance(hyper, ReinforcementHyperparameters):
            metrics = self.reinforce(hyper, batch, generator)
        else:
            metrics = self.imitate(batch)
        self._report_memory(token_limit)
        if hyper.sparsity and state.step + 1 == dense_steps(hyper):
            self.sparsify()
        state.current = self._adapter.exported(self.values())
        state.step, state.generator, state.order = state.step + 1, generator.get_state(), order
        state.trained_tokens += int(metrics["tokens"])
        self._updates_after_step = state.updates
        return metrics

    def reinforce(
        self, hyper: ReinforcementHyperparameters, batch: Sequence[EncodedRow], generator: torch.Generator
    ) -> dict[str, float]:
        """Sample a group of answers to each prompt, grade them, and follow the policy gradient."""
        samples = [row for row in batch for _ in range(hyper.group_size)]  # N rows, each group side by side
        completions = self.sample(hyper, samples, generator)  # N answers
        grades = self.job.grading([completion.text for completion in completions], samples)
        rewards = torch.tensor([grade.reward for grade in grades])  # (N,)
        advantages = ADVANTAGES[hyper.algorithm](rewards.view(len(batch), hyper.group_size))  # (P, G)
        # A group without variance says nothing about its prompt; where every reward counts by itself all of them do.
        taught = advantages.any(1).repeat_interleave(hyper.group_size)  # (N,)
        chosen = taught.nonzero().flatten().tolist()  # M positions among the N
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
        prompts = [samples[index].prompt for index in chosen]
        answers = [completions[index].token_ids for index in chosen]
        gradient = self.follow_policy_gradient(hyper, prompts, answers, advantages.view(-1)[chosen])
        return metrics | {"train_loss": gradient.loss, **gradient.sums}

    def sample(
        self, hyper: ReinforcementHyperparameters, rows: Sequence[EncodedRow], generator: torch.Generator
    ) -> list[Completion]:
        """Sample one answer of the expert to each row."""
        seeds = torch.randint(2**62, (len(rows),), generator=generator).tolist()
        prompts = [row.prompt for row in rows]
        return self._member.run(Generate(self.values(), prompts, hyper.max_new_tokens, hyper.temperature, seeds))

    def follow_policy_gradient(
        self, hyper: ReinforcementHyperparameters, prompts: Tokens, answers: Tokens, advantages: Tensor
    ) -> Gradient:
        """Take ``updates_per_rollout`` updates on M answers with their ``advantages (M,)``; return the first gradient.

        The loss compares with the base for the divergence, and with the policy that sampled for clipping.
        """

        def logprobs(values: Values | None) -> list[Tensor]:
            return self._member.run(Logprobs(values, prompts, answers, hyper.temperature))  # M of (t_i,)

        reference = logprobs(None) if hyper.kl_coef > 0 else None
        sampled = logprobs(self.values()) if hyper.updates_per_rollout > 1 else None
        gradients = []
        for update in range(hyper.updates_per_rollout):
            loss = PolicyGradient(
                advantages,
                token_count=_count(answers),
                kl_coef=hyper.kl_coef,
                reference=reference,
                clip_ratio=hyper.clip_ratio,
                # The policy that sampled is the one in training, at the first update: the ratio is one.
                sampled=sampled if update else None,
            )
            gradients.append(self.differentiate(prompts, answers, loss, hyper.temperature))
            self.update(gradients[-1])
        return gradients[0]

    def imitate(self, batch: Sequence[EncodedRow]) -> dict[str, float]:
        """Learn the targets of P rows; or of P pairs of answers, to prefer the first."""
        hyper = self.job.hyper
        loss: Loss
        if isinstance(hyper, DpoHyperparameters):
            prompts = [row.prompt for row in batch for _ in range(2)]
            answers = [answer for row in batch for answer in (row.target, row.rejected)]
            reference = self._member.run(Logprobs(None, prompts, answers))  # 2 P of (t_i,)
            loss = Preference(hyper.beta, len(batch), reference)
        else:
            prompts, answers = [row.prompt for row in batch], [row.target for row in batch]
            loss = NextToken(token_count=_count(answers))
        gradient = self.differentiate(prompts, answers, loss, 1.0)
        self.update(gradient)
        return {"train_loss": gradient.loss, **gradient.sums, "tokens": _count(prompts) + _count(answers)}

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """The present values that the model follows, without gradient: for SVF ``(r,)`` for each matrix."""
        return self._adapter.values(self.state.parameters)

    def differentiate(self, prompts: Tokens, answers: Tokens, loss: Loss, temperature: float) -> Gradient:
        """Compute the gradient by the values, return it, and carry it on to the ``grad`` of the parameters."""
        values = self._adapter.values(self.state.parameters)
        detached = {name: value.detach() for name, value in values.items()}
        gradient = self._member.run(Differentiate(detached, prompts, answers, loss, temperature))
        torch.autograd.backward(list(values.values()), [gradient.values[name] for name in values])
        return gradient

    def update(self, gradient: Gradient) -> None:
        """Let Adam move the parameters by their ``grad``, at this step's learning rate.

        Raises:
            NonFiniteLossError: the loss or the gradient is NaN or infinite; nothing was changed.
        """
        state, hyper, step = self.state, self.job.hyper, self.state.step + 1
        group = self._optimizer.param_groups[0]
        group["lr"] = learning_rate(step, hyper)
        for name, kept in state.kept.items():
            grad = state.parameters[name].grad
            assert grad is not None
            grad.mul_(kept)
        norm = torch.nn.utils.clip_grad_norm_(group["params"], hyper.max_grad_norm)
        if not math.isfinite(gradient.loss) or not bool(torch.isfinite(norm)):
            raise NonFiniteLossError(step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        state.updates += 1
        self._zero_dropped()

    def sparsify(self) -> None:
        """Choose the multipliers that a sparse expert goes on training; the others become and stay zero."""
        assert isinstance(self._adapter, SvfAdapter)  # no other hyper-parameters have a sparsity
        self.state.kept = self._adapter.largest(self.state.parameters, 1 - self.job.hyper.sparsity)
        self._zero_dropped()

    def validate(self, rows: Sequence[EncodedRow]) -> float:
        """Score the present step on validation rows, and keep it if it is the best so far; return its mean reward."""
        state = self.state
        rewards = self.job.score(self._adapter.imported(state.current), rows)
        still_dense = self.job.hyper.sparsity > 0 and not state.kept
        if fmean(rewards) > fmean(state.best_rewards) and not still_dense:
            state.best, state.best_step, state.best_rewards = state.current, state.step, rewards
            state.scores_since_best = 0
        else:
            state.scores_since_best += 1
        return fmean(rewards)

    def checkpoint(self, metrics: Mapping[str, float]) -> None:
        """Pass the state to ``on_checkpoint``; another process can resume from it."""
        self._on_checkpoint(self.state, metrics)
        self._checkpointed_step = self.state.step

    def checkpoint_on_stop(self) -> None:
        """Checkpoint the last whole step, unless that has happened already."""
        # In the middle of several updates on the same answers, the parameters are no step's.
        is_whole = self.state.updates == self._updates_after_step
        if is_whole and self.state.step > self._checkpointed_step:
            self.checkpoint({})

    @torch.no_grad()
    def _zero_dropped(self) -> None:
        """Keep the dropped parameters of a sparse expert at zero; Adam's momentum would move them."""
        for name, kept in self.state.kept.items():
            self.state.parameters[name].mul_(kept)

    def _report_memory(self, token_limit: int) -> None:
        """Tell the owner that memory ran out, if the limit is below ``token_limit``, that of before the step."""
        if self._member.token_limit < token_limit:
            message = f"Out of memory: micro-batches hold at most {self._member.token_limit:,} tokens from now on."
            data = {"type": "out_of_memory", "micro_batch_tokens": self._member.token_limit}
            self.job.on_event("warn", message, data)


def make_optimizer(state: TrainState, rate: float, device: torch.device) -> torch.optim.Adam:
    """Adam on the state's parameters and moments: it moves the state's own tensors."""
    for group in (state.parameters, state.first_moments, state.second_moments, state.kept):
        for name, value in group.items():
            group[name] = value.to(device)
    # By name, because the norm of the gradient is a sum in their order, and a resumed job's must be the same.
    parameters = [state.parameters[name].requires_grad_() for name in sorted(state.parameters)]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for name, parameter in state.parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.updates)),
            "exp_avg": state.first_moments[name],
            "exp_avg_sq": state.second_moments[name],
        }
    return optimizer


def deal(
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


def progress_line(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """The most important metrics in one line."""
    names = {"train_reward_mean": "reward", "train_loss": "loss", "valid_reward_mean": "validation reward"}
    shown = [f"{names[key]} {metrics[key]:.3f}" for key in names if key in metrics]
    return f"Step {step}/{steps}: {', '.join(shown)}."


def _count(sequences: Tokens) -> int:
    return sum(len(sequence) for sequence in sequences)
