"""What a training has changed: base and best expert side by side on the test rows."""

from collections.abc import Sequence

from zhub.errors import RewardError
from zhub.graders import Grader, Sample
from zhub.graders.templates import fill
from zhub.manifest import Evaluation
from zhub_workers.evaluation.answer_pairs import AnswerPair, summary
from zhub_workers.evaluation.grading import EncodedRow, compare
from zhub_workers.model.adapters import Values
from zhub_workers.training.job import TrainingJob
from zhub_workers.training.state import TrainState

SIGNIFICANCE = 0.05
MAX_ANSWERS_BESIDE_SCORES = 100  # where scores come from likelihoods, so many rows are answered to be shown


def measure_on_test(
    job: TrainingJob, state: TrainState, rows: Sequence[EncodedRow]
) -> tuple[Evaluation, list[AnswerPair]]:
    """Compare the best expert with the base on rows that neither training nor selection has seen; report both."""
    base_rewards, base_answers = _scored(job, None, rows)
    expert_rewards, expert_answers = base_rewards, base_answers
    if not state.is_base:
        expert_rewards, expert_answers = _scored(job, job.member.adapter.imported(state.best), rows)
    test = compare(base_rewards, expert_rewards, "test")
    answered = zip(rows, base_answers, expert_answers, base_rewards, expert_rewards, strict=True)
    pairs = [_pair(job, *both) for both in answered]
    message, data = summary(pairs)
    job.on_event("info", message, data)
    if not state.is_base and test.p_value >= SIGNIFICANCE:
        job.on_event(
            "warn",
            f"On {test.base.n} test rows the expert ({test.expert.mean:.3f}) and the base ({test.base.mean:.3f}) "
            f"differ by no more than chance would (p = {test.p_value:.2f}): the expert is inside the noise.",
            {"type": "inside_the_noise", "p_value": test.p_value},
        )
    return test, pairs


def _scored(
    job: TrainingJob, values: Values | None, rows: Sequence[EncodedRow]
) -> tuple[list[float], list[str | None]]:
    """The reward of each row, and its answer where there is one."""
    if job.spec.recipe != "dpo":
        answers = job.answer(values, rows)
        return [grade.reward for _, grade in answers], [text for text, _ in answers]
    shown: list[str | None] = [*job.texts(values, rows[:MAX_ANSWERS_BESIDE_SCORES])]
    return job.score(values, rows), shown + [None] * (len(rows) - len(shown))


def _pair(
    job: TrainingJob,
    row: EncodedRow,
    base_answer: str | None,
    expert_answer: str | None,
    base_reward: float,
    expert_reward: float,
) -> AnswerPair:
    return AnswerPair(
        suite="test",
        line=row.row.line,
        prompt=row.row.prompt,
        expected=expected_answer(job.spec.grader, row),
        base_answer=base_answer,
        expert_answer=expert_answer,
        base_reward=base_reward,
        expert_reward=expert_reward,
    )


def expected_answer(grader: Grader | None, row: EncodedRow) -> str | None:
    """The text that the grader compares answers with, or the row's target; None where there is neither."""
    reference = getattr(grader, "reference", None)
    if grader is None or reference is None:
        return row.row.target
    try:
        return fill(grader.name, reference, Sample("", row.row.item, row.row.line))
    except RewardError:
        return row.row.target
