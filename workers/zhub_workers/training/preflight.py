"""The checks before the first step: can the base read the rows, and do its answers get different rewards?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from zhub.errors import ConstantRewardError
from zhub.errors.training import SUPERVISED_FIRST
from zhub.graders import Grade
from zhub.recipes import ReinforcementHyperparameters
from zhub_workers.compute.requests import Generate
from zhub_workers.evaluation.grading import EncodedRow
from zhub_workers.evaluation.tokenizer_fit import ROWS_READ, tokenizer_fit
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.state import TrainState

MAX_ROUNDS = 5  # of fresh prompts, before a reward that has not varied yet is called constant
FEW_INFORMATIVE = 0.1  # of the prompts: from so few a step learns next to nothing


@dataclass(frozen=True)
class Preflight:
    """How the reward varies between ``answers`` sampled answers.

    ``informative`` is the share of prompts whose samples were not all rewarded alike: only those teach. ``unread`` is
    the share of answers that the grader could not read.
    """

    prompts: int
    answers: int
    mean: float
    deviation: float
    low: float
    high: float
    informative: float
    unread: float

    def __str__(self) -> str:
        line = (
            f"Preflight: {self.answers} answers to {self.prompts} prompts: reward {self.mean:.3f} "
            f"± {self.deviation:.3f}, from {self.low:g} to {self.high:g}; {self.informative:.0%} of the prompts have "
            "better and worse answers"
        )
        return line + (f"; {self.unread:.0%} of the answers could not be read." if self.unread else ".")

    @property
    def advice(self) -> str | None:
        """What to do where training could begin, and would learn next to nothing; None elsewhere."""
        if self.informative >= FEW_INFORMATIVE:
            return None
        few = f"Only {self.informative:.0%} of the prompts have better and worse answers, and only those teach"
        if self.mean > (self.low + self.high) / 2:
            return f"{few}: nearly all answers get the full reward. Use harder rows, or a stricter grader."
        return f"{few}: nearly no answer gets a reward. {SUPERVISED_FIRST}"


def check_tokenizer(job: TrainingJob, rows: Sequence[EncodedRow]) -> None:
    """Warn where the base's tokenizer splits the rows' language into many times the tokens of English."""
    base = job.member.base
    fit = tokenizer_fit(base.tokenizer, [row.row for row in rows[:ROWS_READ]])
    if fit is not None and fit.is_foreign:
        message = fit.warning(
            job.spec.base.name,
            job.spec.training_file.name,
            context_length=base.context_length,
            max_new_tokens=job.hyper.max_new_tokens,
        )
        job.on_event("warn", message, {"type": "tokenizer", **asdict(fit)})


def preflight(
    job: TrainingJob, hyper: ReinforcementHyperparameters, state: TrainState, rows: Sequence[EncodedRow]
) -> Preflight:
    """Sample and grade answers of the model that training begins from, as a step would; report how the reward varies.

    Raises:
        ConstantRewardError: every answer to MAX_ROUNDS times ``preflight_prompts`` prompts has the same reward.
        RewardError: the grader cannot grade an answer.
    """
    values = job.member.adapter.values(state.parameters) if state.parent else None
    size = max(hyper.group_size, 2)
    grades: list[Grade] = []
    for start in range(0, min(len(rows), MAX_ROUNDS * hyper.preflight_prompts), hyper.preflight_prompts):
        samples = [row for row in rows[start : start + hyper.preflight_prompts] for _ in range(size)]
        prompts = [row.prompt for row in samples]
        seeds = range(start * size, start * size + len(samples))
        completions = job.member.run(Generate(values, prompts, hyper.max_new_tokens, hyper.temperature, seeds))
        grades += job.grading([completion.text for completion in completions], samples)
        if len({grade.reward for grade in grades}) > 1:
            break
    rewards = [grade.reward for grade in grades]
    groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
    if min(rewards) == max(rewards):
        unread = sum(not grade.parsed for grade in grades)
        raise ConstantRewardError(rewards[0], len(rewards), unread)
    mean = math.fsum(rewards) / len(rewards)
    return Preflight(
        prompts=len(groups),
        answers=len(rewards),
        mean=mean,
        deviation=math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards)),
        low=min(rewards),
        high=max(rewards),
        informative=sum(min(group) < max(group) for group in groups) / len(groups),
        unread=sum(not grade.parsed for grade in grades) / len(grades),
    )
