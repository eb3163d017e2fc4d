"""Rewards of an expert, or of the base, on held-out rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from zhub.datasets.rows import Row
from zhub.errors import InvalidRequestError, LongRow, PromptTooLongError, TrainingError
from zhub.evaluation.statistics import accuracy, paired_p_value
from zhub.graders import Grade, Grader, GradingTools, Sample, grade_all
from zhub.manifest import Evaluation
from zhub.process import tracing
from zhub_workers.compute.group import Member, Stopped
from zhub_workers.compute.requests import Generate, Logprobs
from zhub_workers.model.adapters import Values
from zhub_workers.model.base_model import BaseModel, render_prompt, render_target

ROWS_BETWEEN_STOP_CHECKS = 1000


@dataclass(frozen=True)
class EncodedRow:
    """A row with its prompt's token ids, and those of its answers (end-of-sequence included) where they are needed."""

    row: Row
    prompt: list[int]
    target: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """How many tokens of context the row takes with its longest answer, which has at least one."""
        return len(self.prompt) + max(len(self.target), len(self.rejected), 1)


@dataclass(frozen=True)
class Grading:
    """What answers are graded with. Without a grader the right answer is the row's target, white space aside."""

    grader: Grader | None
    tools: GradingTools = field(default_factory=GradingTools)

    def __call__(self, texts: Sequence[str], rows: Sequence[EncodedRow]) -> list[Grade]:
        """Grade one answer to each row. Raises RewardError, see ``grade_all``."""
        pairs = list(zip(texts, (row.row for row in rows), strict=True))
        if self.grader is None:
            return [Grade(float(text.strip() == (row.target or "").strip())) for text, row in pairs]
        return grade_all(self.grader, [Sample(text, row.item, row.line) for text, row in pairs], self.tools)


def encode_rows(
    base: BaseModel, rows: Iterable[Row], *, with_target: bool, should_stop: Callable[[], bool]
) -> list[EncodedRow]:
    """Render every row once.

    Raises:
        PromptTooLongError: prompts (with their answers, where they are needed) that leave no room, by their lines.
        TrainingError, Stopped: see ``render_rows``.
    """
    encoded = render_rows(base, rows, with_target=with_target, should_stop=should_stop)
    limit = base.context_length
    if limit is not None and (too_long := [row for row in encoded if row.tokens > limit]):
        rows_too_long = [LongRow(row.row.line, row.tokens) for row in too_long]
        raise PromptTooLongError(rows_too_long[0].line, rows_too_long[0].tokens, limit, rows_too_long)
    return encoded


def render_rows(
    base: BaseModel, rows: Iterable[Row], *, with_target: bool, should_stop: Callable[[], bool]
) -> list[EncodedRow]:
    """Render every row once, however long.

    Raises:
        TrainingError: a row that the chat template refuses, or one without the target that it needs, by its line.
        Stopped: should_stop.
    """
    encoded = []
    for index, row in enumerate(rows):
        if index % ROWS_BETWEEN_STOP_CHECKS == 0 and should_stop():
            raise Stopped
        try:
            prompt = render_prompt(base, row.prompt)
        except InvalidRequestError as exc:
            raise TrainingError(f"line {row.line}: {exc}") from exc
        if with_target and row.target is None:
            raise TrainingError(f"line {row.line}: the last message is not the assistant's, so there is no target.")
        target = render_target(base, row.target) if with_target and row.target is not None else []
        rejected = render_target(base, row.rejected) if with_target and row.rejected is not None else []
        encoded.append(EncodedRow(row, prompt, target, rejected))
    return encoded


def cut(row: EncodedRow, limit: int) -> EncodedRow:
    """The row within ``limit`` tokens: without the end of its answers, or the beginning of a prompt that fills them."""
    prompt = row.prompt[-(limit - 1) :]  # an answer has at least one token
    room = limit - len(prompt)
    return EncodedRow(row.row, prompt, row.target[:room], row.rejected[:room])


def greedy_answers(
    member: Member, values: Values | None, rows: Sequence[EncodedRow], *, max_new_tokens: int
) -> list[str]:
    """The greedy answer to each row by the model that follows ``values``, None for the base."""
    answers = member.run(Generate(values, [row.prompt for row in rows], max_new_tokens))
    return [answer.text for answer in answers]


@tracing.span("evaluate")
def preferences(member: Member, values: Values | None, rows: Sequence[EncodedRow]) -> list[float]:
    """1 for each row whose preferred answer is likelier than the rejected one, else 0."""
    prompts = [row.prompt for row in rows for _ in range(2)]
    answers = [answer for row in rows for answer in (row.target, row.rejected)]
    totals = [float(tokens.sum()) for tokens in member.run(Logprobs(values, prompts, answers))]
    return [float(preferred > rejected) for preferred, rejected in zip(totals[0::2], totals[1::2], strict=True)]


def compare(base_rewards: Sequence[float], expert_rewards: Sequence[float], split: str) -> Evaluation:
    """Put rewards on the same rows side by side, with the p-value of their difference."""
    return Evaluation(
        split=split,
        base=accuracy(base_rewards),
        expert=accuracy(expert_rewards),
        p_value=paired_p_value(base_rewards, expert_rewards),
    )
