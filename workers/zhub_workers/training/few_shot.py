"""Few-shot adaptation: the weights of a mixture of experts, searched on a few training rows, the shots.

Source: few-shot adaptation, arXiv:2501.06252: the cross-entropy method over ``z = 1 + Σ α_k (z_k − 1)``. All mixtures
of a population answer all shots in one batch, each row following its own mixture, where the authors' code swaps the
model's weights for each. Ties of the reward are broken as there, by how sure a mixture is of its right answers.
Departures: the base, each expert alone and the search's first mean are candidates before anything is drawn; the best
candidate so far keeps its place in the population without being answered again; and what is published was chosen on
validation rows, which the search never sees, where theirs is chosen on the test set.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from zhub.datasets.splits import Split
from zhub.errors import NonFiniteLogitsError, TrainingError
from zhub.manifest import MixedExpert, Mixture
from zhub.recipes import FewShotHyperparameters
from zhub_workers.compute.losses import NextToken
from zhub_workers.compute.requests import Differentiate, Each, Generate, Logprobs
from zhub_workers.evaluation.grading import EncodedRow
from zhub_workers.model.base_model import render_target
from zhub_workers.model.gradient_mixture import loss_slopes, mixture_weights
from zhub_workers.model.mixing import Mixer
from zhub_workers.model.rollout import Completion
from zhub_workers.training import cem
from zhub_workers.training.cem import Score
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.outcome import expected_answer
from zhub_workers.training.state import TrainState
from zhub_workers.training.step_plan import is_checkpointed, is_validated
from zhub_workers.training.trainer import OnCheckpoint, progress_line
from zhub_workers.training.warm_start import Start

BEFORE_STEPS = -1  # the best step of a mixture that was there before the first one
CONFIDENCE_DIGITS = 3  # nats: below that it is the rounding of a batch's matrix products
FAILED = Score(-1.0, -math.inf)


@dataclass(frozen=True)
class Candidate:
    """Weights that are tried before anything is drawn."""

    name: str
    weights: Tensor  # (k, groups)


class FewShotSearch:
    """Searches one mixture. ``state.search`` holds what the search has come to.

    ``mean`` and ``deviation`` of the weights, the ``leader``, which is the best candidate on the shots, its
    ``leader_score``; the leader that was scored last on validation rows, ``validated``, and the one that would be
    published now, ``best``; and whether the last population was rewarded ``alike``, after which no step is taken.

    Raises:
        TrainingError: there are fewer training rows than shots.
    """

    def __init__(
        self,
        job: TrainingJob,
        state: TrainState,
        on_checkpoint: OnCheckpoint,
        experts: Sequence[Start],
        rows: dict[Split, list[EncodedRow]],
    ) -> None:
        assert isinstance(job.hyper, FewShotHyperparameters)
        self.job, self.state, self._hyper = job, state, job.hyper
        self._member = job.member
        self._experts = experts
        self._mixer = Mixer([expert.z for expert in experts], self._hyper.granularity, self._member.base.device)
        self._shots = choose_shots(rows["train"], self._hyper.shots, job.spec.seed)
        self._validation = rows["validation"]
        self._on_checkpoint = on_checkpoint
        self._checkpointed_step = state.step

    def run(self) -> None:
        """Search for the remaining steps, with their validations and checkpoints."""
        hyper, state = self._hyper, self.state
        if not state.search:
            self._begin()
        elif is_validated(state.step, hyper) and not self._is_validated():
            self.validate()  # which was interrupted
        for step in range(state.step + 1, hyper.n_steps + 1):
            if state.search["alike"]:
                break
            if hyper.patience and state.scores_since_best >= hyper.patience:
                message = f"Validation has not improved {hyper.patience} times: the search ends early."
                self.job.on_event("info", message, None)
                break
            started = time.perf_counter()
            metrics, rewards = self.step()
            if is_validated(step, hyper):
                metrics["valid_reward_mean"] = self.validate()
            metrics["seconds"] = time.perf_counter() - started
            data = {"type": "metrics", "step": step, **metrics}
            self.job.on_event("info", progress_line(step, hyper.n_steps, metrics), data)
            if is_checkpointed(step, hyper):
                self.checkpoint(metrics)
            if state.search["alike"]:
                self._tell_alike(step, rewards[0])
        self.validate()
        self._tell_alone()

    def step(self) -> tuple[dict[str, float], list[float]]:
        """Draw and score a population, and move to its elites; return the metrics and all rewards.

        An interrupted step leaves the state of the step before.
        """
        hyper, state, search = self._hyper, self.state, self.state.search
        generator = torch.Generator()
        generator.set_state(state.generator)
        drawn = cem.draw(
            search["mean"],
            search["deviation"],
            hyper.population - 1,
            generator,
            low=hyper.min_weight,
            high=hyper.max_weight,
        )
        scores, tokens = self._scores(drawn)
        candidates = torch.cat([search["leader"].unsqueeze(0), drawn])
        scores = [Score(*search["leader_score"].tolist()), *scores]
        order = cem.ranked(scores)
        search["mean"], search["deviation"] = cem.refitted(candidates[order[: hyper.elites]])
        self._lead(candidates[order[0]], scores[order[0]])
        state.step, state.generator = state.step + 1, generator.get_state()
        state.trained_tokens += tokens
        rewards = [max(0.0, score.reward) for score in scores]
        search["alike"] = torch.tensor([float(min(rewards) == max(rewards))], dtype=torch.float64)
        metrics = {
            "train_reward_mean": fmean(rewards),
            "train_reward_best": rewards[order[0]],
            "deviation": float(search["deviation"].mean()),
            "tokens": float(tokens),
        }
        return metrics, rewards

    def validate(self) -> float:
        """Score the leader on validation rows, and keep it if it is the best so far; return the best mean reward."""
        state, leader = self.state, self.state.search["leader"]
        if not self._is_validated():
            rewards = self.job.score(self._mixer.values(leader), self._validation)
            state.search["validated"] = leader
            if fmean(rewards) > fmean(state.best_rewards):
                state.best, state.best_rewards = state.current, rewards
                state.best_step = state.step or BEFORE_STEPS
                state.search["best"] = leader
                state.scores_since_best = 0
                return fmean(rewards)
        state.scores_since_best += 1
        return fmean(state.best_rewards)

    def checkpoint(self, metrics: dict[str, float]) -> None:
        """Pass the state to ``on_checkpoint``; another process can resume from it."""
        self._on_checkpoint(self.state, metrics)
        self._checkpointed_step = self.state.step

    def checkpoint_on_stop(self) -> None:
        """Checkpoint the last whole step, unless that has happened already."""
        if self.state.step > self._checkpointed_step:
            self.checkpoint({})

    def mixture(self) -> Mixture:
        """The lineage of what is published: whose multipliers were mixed, with which weights."""
        weights = self.state.search["best"].tolist()
        experts = [
            MixedExpert(name=start.name, digest=start.digest, weights=dict(zip(self._mixer.groups, row, strict=True)))
            for start, row in zip(self._experts, weights, strict=True)
        ]
        shots = [shot.row.line for shot in self._shots]
        return Mixture(granularity=self._hyper.granularity, experts=experts, shots=shots)

    def _begin(self) -> None:
        """Score what there is without a search, and begin at the best of it."""
        state = self.state
        candidates = self._first_candidates()
        scores, tokens = self._scores(torch.stack([candidate.weights for candidate in candidates]))
        leader = cem.ranked(scores)[0]
        mean = candidates[-1].weights
        state.search = {
            "mean": mean,
            "deviation": torch.full_like(mean, self._hyper.deviation),
            "validated": torch.zeros_like(mean),  # the base
            "best": torch.zeros_like(mean),
            "alike": torch.zeros(1, dtype=torch.float64),
        }
        self._lead(candidates[leader].weights, scores[leader])
        state.trained_tokens += tokens
        named = {candidate.name: max(0.0, score.reward) for candidate, score in zip(candidates, scores, strict=True)}
        told = ", ".join(f"{name} {reward:.3f}" for name, reward in named.items())
        metrics = {"train_reward_mean": fmean(named.values()), "train_reward_best": max(named.values())}
        self.job.on_event(
            "info", f"Rewards on the {len(self._shots)} shots: {told}.", {"type": "metrics", "step": 0, **metrics}
        )
        self.validate()
        state.scores_since_best = 0

    def _is_validated(self) -> bool:
        return torch.equal(self.state.search["leader"], self.state.search["validated"])

    def _tell_alike(self, step: int, reward: float) -> None:
        message = (
            f"All {self._hyper.population} mixtures of step {step} have the reward {reward:.3f} on the shots, which "
        )
        message += "no longer tell them apart" if step > 1 else "do not tell them apart"
        message += ": the search ends."
        if step == 1:
            message += " Take more shots, harder or easier ones, or a grader that gives partial credit."
        self.job.on_event("info" if step > 1 else "warn", message, {"type": "rewards_alike", "step": step})

    def _tell_alone(self) -> None:
        """Say so where what is published is one expert, as it is."""
        for start, alone in zip(self._experts, self._alone(), strict=True):
            if torch.equal(self.state.search["best"], alone):
                message = f"No mixture beat {start.name} alone, so the new expert equals it."
                self.job.on_event("warn", message, {"type": "one_alone", "model": start.name})

    def _alone(self) -> list[Tensor]:
        """The weights of each expert alone."""
        count, groups = self._mixer.shape
        return list(torch.eye(count, dtype=torch.float64).unsqueeze(2).repeat(1, 1, groups))

    def _first_candidates(self) -> list[Candidate]:
        """The base, each expert alone, and at the end what the search begins around."""
        count, groups = self._mixer.shape
        alone = [Candidate(start.name, row) for start, row in zip(self._experts, self._alone(), strict=True)]
        if self._hyper.start == "gradient":
            mean = Candidate("the gradient mixture", self._gradient_mean())
        else:
            mean = Candidate("equal parts", torch.full((count, groups), 1 / count, dtype=torch.float64))
        bounded = mean.weights.clamp(self._hyper.min_weight, self._hyper.max_weight)
        base = Candidate("the base", torch.zeros(count, groups, dtype=torch.float64))
        return [base, *alone, Candidate(mean.name, bounded)]

    def _gradient_mean(self) -> Tensor:
        """The weights that one backward over the right answers to the shots gives."""
        answers = [self._right_answer(shot) for shot in self._shots]
        loss = NextToken(token_count=sum(map(len, answers)))
        adapter = self._member.adapter
        zeros = {name: value for name, value in adapter.initial(0).items() if name in self._mixer.deltas}
        prompts = [shot.prompt for shot in self._shots]
        gradient = self._member.run(Differentiate(zeros, prompts, answers, loss))
        weights = mixture_weights(loss_slopes(self._mixer, gradient.values))
        if not weights.any():
            self.job.on_event("warn", "No expert makes the right answers to the shots likelier: the base it is.", None)
        return weights

    def _right_answer(self, shot: EncodedRow) -> list[int]:
        text = expected_answer(self.job.spec.grader, shot)
        if text is None:
            raise TrainingError(
                f"line {shot.row.line}: the grader has no right answer to this row, which the start 'gradient' needs. "
                "Use the start 'uniform'."
            )
        limit = self._member.base.context_length
        target = render_target(self._member.base, text)
        return target if limit is None else target[: limit - len(shot.prompt)]

    def _lead(self, weights: Tensor, score: Score) -> None:
        search, state = self.state.search, self.state
        search["leader"], search["leader_score"] = weights, torch.tensor(score, dtype=torch.float64)
        state.current = self._member.adapter.exported(self._mixer.values(weights))

    def _scores(self, candidates: Tensor) -> tuple[list[Score], int]:
        """The score of each candidate on the shots, and how many tokens were read and written for them."""
        prompts = [shot.prompt for shot in self._shots]
        values = [self._mixer.values(weights) for weights in candidates]
        asked = [Generate(of_one, prompts, self._hyper.max_new_tokens) for of_one in values]
        answered = self._member.run(Each(asked))
        completions = [[] if isinstance(answers, NonFiniteLogitsError) else answers for answers in answered]
        grades = self.job.grading(
            [completion.text for answers in completions for completion in answers],
            [shot for answers in completions for shot, _ in zip(self._shots, answers, strict=False)],
        )
        rewards = iter(grade.reward for grade in grades)
        rewards_of = [[next(rewards) for _ in answers] for answers in completions]
        confidences = self._confidences(asked, completions, rewards_of)
        scores = [
            Score(fmean(of_one), confidence) if of_one else FAILED
            for of_one, confidence in zip(rewards_of, confidences, strict=True)
        ]
        written = sum(len(completion.token_ids) for answers in completions for completion in answers)
        return scores, written + len(candidates) * sum(map(len, prompts))

    def _confidences(
        self,
        asked: Sequence[Generate],
        completions: Sequence[Sequence[Completion]],
        rewards: Sequence[Sequence[float]],
    ) -> list[float]:
        """The mean log-probability of the tokens of each candidate's right answers; minus infinity without any."""
        right = [[row for row, reward in enumerate(of_one) if reward == 1] for of_one in rewards]
        scored = [index for index, rows in enumerate(right) if rows]
        if not scored:
            return [-math.inf] * len(asked)
        requests = [
            Logprobs(
                asked[index].values,
                [self._shots[row].prompt for row in right[index]],
                [completions[index][row].token_ids for row in right[index]],
            )
            for index in scored
        ]
        logprobs = self._member.run(Each[list[Tensor]](requests))
        of_index = dict(zip(scored, logprobs, strict=True))
        return [_confidence(of_index.get(index, [])) for index in range(len(asked))]


def choose_shots(rows: Sequence[EncodedRow], count: int, seed: int) -> list[EncodedRow]:
    """Rows to search on, drawn with the seed.

    Raises:
        TrainingError: there are too few.
    """
    if len(rows) < count:
        raise TrainingError(
            f"The training file has {len(rows)} rows to train on, and {count} shots were asked for. Add rows, or ask "
            "for fewer shots."
        )
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return [rows[index] for index in chosen.tolist()]


def _confidence(logprobs: Sequence[Tensor] | NonFiniteLogitsError) -> float:
    if isinstance(logprobs, NonFiniteLogitsError) or not logprobs:
        return -math.inf
    mean = float(torch.cat(list(logprobs)).mean())
    return round(mean, CONFIDENCE_DIGITS) if math.isfinite(mean) else -math.inf
