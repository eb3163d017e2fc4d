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
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from zhub.datasets.splits import Split
from zhub.errors import NonFiniteLossError
from zhub.recipes import DpoHyperparameters, FewShotHyperparameters, ReinforcementHyperparameters
from zhub_workers.compute.group import Stopped
from zhub_workers.compute.losses import ADVANTAGES, Loss, NextToken, PolicyGradient, Preference
from zhub_workers.compute.requests import Differentiate, Generate, Gradient, Logprobs, Tokens
from zhub_workers.evaluation.grading import EncodedRow
from zhub_workers.model.adapters import SvfAdapter, Values
from zhub_workers.model.rollout import Completion
from zhub_workers.training import trust_region
from zhub_workers.training.course import MAX_ROLLBACKS
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.state import TrainState
from zhub_workers.training.step_plan import dense_steps, is_checkpointed, is_validated, rate_share

OnCheckpoint = Callable[[TrainState, Mapping[str, float]], None]

NEGLIGIBLE_KL = 1e-4  # nats a token: the gradient of a divergence below it is rounding, which Adam would blow up


class Trainer:
    """Trains one expert. ``state`` is what it has become so far; each method is a part of the algorithm."""

    def __init__(self, job: TrainingJob, state: TrainState, on_checkpoint: OnCheckpoint) -> None:
        assert not isinstance(job.hyper, FewShotHyperparameters)  # which has no parameters to train
        self.job = job
        self.state = state
        self._hyper = job.hyper
        self._member = job.member
        self._adapter = job.member.adapter
        self._optimizer = make_optimizer(state, self._hyper.learning_rate, job.member.base.device)
        self._on_checkpoint = on_checkpoint
        self._checkpointed_step = state.step
        self._updates_after_step = state.updates  # of the last whole step

    def run(self, rows: Mapping[Split, Sequence[EncodedRow]]) -> None:
        """Take the remaining steps, with their validations and checkpoints."""
        hyper, state = self._hyper, self.state
        for step in range(state.step + 1, hyper.n_steps + 1):
            if hyper.patience and state.scores_since_best >= hyper.patience:
                message = f"Validation has not improved {hyper.patience} times: training ends early."
                self.job.on_event("info", message, None)
                break
            if state.course.rollbacks > MAX_ROLLBACKS:
                message = (
                    f"The policy has collapsed {state.course.rollbacks} times: training ends early, with its best "
                    "expert. Look at what the grader rewards, or try a smaller step_kl."
                )
                self.job.on_event("warn", message, {"type": "collapsed"})
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
        state, hyper = self.state, self._hyper
        generator = torch.Generator()
        generator.set_state(state.generator)
        batch, order = deal(rows, state.order, hyper.batch_size, generator)  # P rows
        token_limit = self._member.token_limit
        course, anchor = replace(state.course), state.anchor
        try:
            if isinstance(hyper, ReinforcementHyperparameters):
                metrics = self.reinforce(hyper, batch, generator)
            else:
                metrics = self.imitate(batch)
        except Stopped:
            state.course, state.anchor = course, anchor
            raise
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
        rewards = torch.tensor([grade.reward for grade in grades]).view(len(batch), hyper.group_size)  # (P, G)
        advantages = ADVANTAGES[hyper.algorithm](rewards)  # (P, G)
        unread = sum(not grade.parsed for grade in grades) / len(grades)
        metrics = {
            "train_reward_mean": rewards.mean().item(),
            "unread": unread,
            "skipped": 1 - advantages.any(1).float().mean().item(),
            "train_loss": 0.0,
            "kl": 0.0,
            "tokens": float(_count([row.prompt for row in samples]) + _count([c.token_ids for c in completions])),
        }
        course = self.state.course
        verdict = course.note_answers(rewards.tolist(), unread)
        if verdict.collapse:
            self.roll_back(verdict.collapse)
            return metrics
        if verdict.is_best:
            self.state.anchor = self._copied_parameters()
        # A group without variance says nothing about its prompt, but the policy may be far from the base there too.
        teaches = advantages.any(1) | (hyper.kl_coef > 0) | (course.exploration > 0)  # (P,)
        chosen = teaches.repeat_interleave(hyper.group_size).nonzero().flatten().tolist()  # M positions among the N
        if not chosen:
            return metrics
        prompts = [samples[index].prompt for index in chosen]
        answers = [completions[index].token_ids for index in chosen]
        exploration = course.exploration * (1 - rewards.mean(1)).clamp(0, 1)  # (P,)
        loss = PolicyGradient(
            advantages.flatten()[chosen],
            token_count=_count(answers),
            kl_coef=hyper.kl_coef,
            clip_ratio=hyper.clip_ratio,
            exploration=exploration.repeat_interleave(hyper.group_size)[chosen],
            entropy=0.0 if math.isnan(course.entropy) else course.entropy,
        )
        return metrics | self.follow_policy_gradient(hyper, prompts, answers, loss)

    def sample(
        self, hyper: ReinforcementHyperparameters, rows: Sequence[EncodedRow], generator: torch.Generator
    ) -> list[Completion]:
        """Sample one answer of the expert to each row."""
        seeds = torch.randint(2**62, (len(rows),), generator=generator).tolist()
        prompts = [row.prompt for row in rows]
        return self._member.run(Generate(self.values(), prompts, hyper.max_new_tokens, hyper.temperature, seeds))

    def follow_policy_gradient(
        self, hyper: ReinforcementHyperparameters, prompts: Tokens, answers: Tokens, loss: PolicyGradient
    ) -> dict[str, float]:
        """Take ``updates_per_rollout`` updates on M answers; return the metrics of the first.

        The loss compares with the base for the divergence, and with the policy that sampled for clipping.
        """
        if hyper.kl_coef > 0:
            reference = self._member.run(Logprobs(None, prompts, answers, hyper.temperature))  # M of (t_i,)
            loss = replace(loss, reference=reference)
        first = self.differentiate(prompts, answers, loss, hyper.temperature)
        entropy = -float(torch.cat(list(first.logprobs)).mean())
        self.state.course.note_entropy(entropy)
        metrics = {"train_loss": first.loss, **first.sums, "entropy": entropy}
        if not loss.advantages.any() and not loss.explores and first.sums["kl"] < NEGLIGIBLE_KL:
            self._optimizer.zero_grad()
            return metrics
        metrics |= self.update(first, prompts, answers, hyper.temperature)
        # The policy that sampled is the one in training, at the first update: the ratio is one.
        loss = replace(loss, sampled=first.logprobs)
        for _ in range(hyper.updates_per_rollout - 1):
            gradient = self.differentiate(prompts, answers, loss, hyper.temperature)
            self.update(gradient, prompts, answers, hyper.temperature)
        return metrics

    def imitate(self, batch: Sequence[EncodedRow]) -> dict[str, float]:
        """Learn the targets of P rows; or of P pairs of answers, to prefer the first."""
        hyper = self._hyper
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
        length = self.update(gradient, prompts, answers, 1.0)
        return {"train_loss": gradient.loss, **gradient.sums, **length, "tokens": _count(prompts) + _count(answers)}

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

    def update(self, gradient: Gradient, prompts: Tokens, answers: Tokens, temperature: float) -> dict[str, float]:
        """Let Adam move the parameters by their ``grad``, as far as this step may; return how far that was.

        Raises:
            NonFiniteLossError: the loss or the gradient is NaN or infinite; nothing was changed.
        """
        state, hyper, step = self.state, self._hyper, self.state.step + 1
        group = self._optimizer.param_groups[0]
        group["lr"] = hyper.learning_rate * state.course.rate * rate_share(step, hyper)
        for name, kept in state.kept.items():
            grad = state.parameters[name].grad
            assert grad is not None
            grad.mul_(kept)
        norm = torch.nn.utils.clip_grad_norm_(group["params"], hyper.max_grad_norm)
        if not math.isfinite(gradient.loss) or not bool(torch.isfinite(norm)):
            raise NonFiniteLossError(step)
        before = self._copied_parameters()
        self._optimizer.step()
        self._optimizer.zero_grad()
        state.updates += 1
        self._zero_dropped()
        metrics = {"learning_rate": group["lr"]}
        if hyper.step_kl:
            length = self._shorten_step(before, gradient, prompts, answers, temperature)
            metrics = {"learning_rate": group["lr"] * length.share, "step_kl": length.divergence}
        return metrics

    def _shorten_step(
        self, before: Values, gradient: Gradient, prompts: Tokens, answers: Tokens, temperature: float
    ) -> trust_region.StepLength:
        """Bring the step from ``before`` to the present parameters within its bound, and set the next one's rate."""
        state, hyper = self.state, self._hyper
        bound = hyper.step_kl * state.course.caution * rate_share(state.step + 1, hyper) ** 2
        rows = trust_region.measured_rows(len(answers))
        measured = Logprobs(None, [prompts[row] for row in rows], [answers[row] for row in rows], temperature)
        logprobs = [gradient.logprobs[row] for row in rows]
        target = self._copied_parameters()

        @torch.no_grad()
        def divergence_of(share: float) -> float:
            for name, parameter in state.parameters.items():
                parameter.copy_(torch.lerp(before[name], target[name], share))
            after: list[Tensor] = self._member.run(replace(measured, values=self.values()))
            return trust_region.divergence(logprobs, after)

        length = trust_region.fit(divergence_of, bound)
        state.course.rate = trust_region.next_rate(state.course.rate, length, bound)
        return length

    def roll_back(self, collapse: str) -> None:
        """Go back to the best parameters so far, with a fresh optimiser, and say so."""
        state = self.state
        state.course.roll_back()
        with torch.no_grad():
            for name, value in state.anchor.items():
                state.parameters[name].copy_(value)
        self._zero_dropped()  # the best may be from before they were chosen
        for moment in (*state.first_moments.values(), *state.second_moments.values()):
            moment.zero_()
        state.updates = 0
        self._optimizer = make_optimizer(state, self._hyper.learning_rate, self._member.base.device)
        message = f"Collapse: {collapse}. Training goes on from the best parameters so far, with steps half as long."
        data = {"type": "rolled_back", "reason": collapse, "rollbacks": state.course.rollbacks}
        self.job.on_event("warn", message, data)

    def sparsify(self) -> None:
        """Choose the multipliers that a sparse expert goes on training; the others become and stay zero."""
        assert isinstance(self._adapter, SvfAdapter)  # no other hyper-parameters have a sparsity
        self.state.kept = self._adapter.largest(self.state.parameters, 1 - self._hyper.sparsity)
        self._zero_dropped()

    def validate(self, rows: Sequence[EncodedRow]) -> float:
        """Score the present step on validation rows, and keep it if it is the best so far; return its mean reward."""
        state = self.state
        rewards = self.job.score(self._adapter.imported(state.current), rows)
        still_dense = self._hyper.sparsity > 0 and not state.kept
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

    def _copied_parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.state.parameters.items()}

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
    names = {
        "train_reward_mean": "reward",
        "train_reward_best": "best reward",
        "train_loss": "loss",
        "valid_reward_mean": "validation reward",
    }
    shown = [f"{names[key]} {metrics[key]:.3f}" for key in names if key in metrics]
    return f"Step {step}/{steps}: {', '.join(shown)}."


def _count(sequences: Tokens) -> int:
    return sum(len(sequence) for sequence in sequences)
