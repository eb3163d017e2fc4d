"""What fails a job on its worker."""

from collections.abc import Sequence
from dataclasses import dataclass

from zhub.errors.root import ZhubError

MAX_ROWS_NAMED = 200


class TrainingError(ZhubError):
    """The job cannot succeed however often it is tried; it fails with this message."""

    code = "training_error"


class NonFiniteLossError(TrainingError):
    """The loss or the gradient became NaN or infinite."""

    code = "non_finite_loss"

    def __init__(self, step: int) -> None:
        super().__init__(
            f"step {step}: the loss is not a finite number. Lower learning_rate, or look for extreme rewards."
        )
        self.step = step


class NonFiniteLogitsError(TrainingError):
    """The model's scores for its next token are NaN or infinite, so there is none to choose."""

    code = "non_finite_logits"

    def __init__(self) -> None:
        super().__init__(
            "The model cannot go on: its scores for the next token are not finite numbers. Lower the weights of the "
            "experts, or use other experts or another base model."
        )


class RewardError(TrainingError):
    """A grader raised, or cannot grade this row."""

    code = "reward_error"

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"grader '{name}': {message}")
        self.name = name


SUPERVISED_FIRST = (
    "Reinforcement strengthens what the base does right now and then. Show it right answers first: train with the "
    "method 'supervised', on rows that end with the right answer as the assistant's message, and then by reinforcement "
    "on the version that comes of it, as the model to train."
)


class ConstantRewardError(TrainingError):
    """Every sampled answer of the base is rewarded alike, so there is nothing to learn from."""

    code = "constant_reward"

    def __init__(self, reward: float, answers: int, unread: int) -> None:
        unreadable = f" {unread} of them could not be read by the grader." if unread else ""
        super().__init__(
            f"All {answers} sampled answers of the base got the reward {reward:g}.{unreadable} Training learns from "
            f"differences between answers to one prompt. {_remedy(reward)} To train all the same, set "
            "preflight_prompts to 0."
        )
        self.reward = reward


def _remedy(reward: float) -> str:
    if reward >= 1:
        return (
            "The base gets the full reward already: use harder rows, or check the grader on an answer that you know to "
            "be wrong (POST /v1/fine_tuning/alpha/graders/run)."
        )
    check = (
        "Check the grader on an answer that you know to be right (POST /v1/fine_tuning/alpha/graders/run), say in the "
        "prompt which form the answer must have, or reward partly right answers."
    )
    if reward <= 0:
        return f"The base never gets the reward. {SUPERVISED_FIRST} {check}"
    return f"{check} Or begin with supervised training."


class OutOfMemoryError(TrainingError):
    """Not even one row fits the device's memory."""

    code = "out_of_memory"

    def __init__(self) -> None:
        super().__init__(
            "The device has too little free memory for a single row. Shorten the prompts, lower max_new_tokens, "
            "or use a smaller base model."
        )


class RewardTimeoutError(RewardError):
    """A grader did not come to an end in its time."""

    code = "reward_timeout"


class RewardNotANumberError(RewardError):
    """A grader gave something that is not a finite number."""

    code = "reward_not_a_number"


@dataclass(frozen=True)
class LongRow:
    """A row with more tokens than the context of a base model, by its line in the training or the validation file."""

    line: int
    tokens: int
    in_validation_file: bool = False

    def __str__(self) -> str:
        return f"{'validation file, ' if self.in_validation_file else ''}line {self.line} ({self.tokens:,} tokens)"


class PromptTooLongError(TrainingError):
    """Prompts leave no room in the model's context for an answer: all of them, so that they are mended at once."""

    code = "prompt_too_long"

    def __init__(
        self, line: int, tokens: int, limit: int, rows: Sequence[LongRow] = (), *, count: int | None = None
    ) -> None:
        """``count``: how many there are, where ``rows`` has only the first of them."""
        self.line, self.tokens, self.limit = line, tokens, limit
        self.rows = rows or [LongRow(line, tokens)]
        named = self.rows[:MAX_ROWS_NAMED]
        left = (count or len(self.rows)) - len(named)
        listed = ", ".join(map(str, named)) + (f" and {left:,} more" if left else "")
        super().__init__(
            f"At most {limit:,} tokens fit this base model, and these rows have more: {listed}. Shorten or drop "
            "them; a training leaves them out or cuts them with the hyper-parameter 'long_rows' at 'skip' or 'cut'."
        )


class BasisMismatchError(TrainingError):
    """A z belongs to another basis than the one at hand; it would be noise there."""

    code = "basis_mismatch"

    def __init__(self, message: str, *, expected: str = "", actual: str = "") -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class ArtifactError(TrainingError):
    """A file of an expert is malformed and must not be loaded."""

    code = "invalid_artifact"
