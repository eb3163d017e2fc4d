"""The reward of greedy answers on held-out rows, for the base or for an expert."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from zhub.errors import InvalidRequestError, PromptTooLongError, RewardError, TrainingError
from zhub.graders import Grader, grade
from zhub.manifest import Evaluation
from zhub.rows import Row
from zhub_workers.adapted import AdaptedModel
from zhub_workers.base_model import BaseModel, render_prompt, render_target
from zhub_workers.rollout import generate
from zhub_workers.statistics import accuracy, paired_p_value

ROWS_BETWEEN_STOP_CHECKS = 1000


class Stopped(Exception):
    """``should_stop`` said so in the middle of something. Control flow: never leaves ``train``."""


@dataclass(frozen=True)
class EncodedRow:
    """A row with its prompt's token ids, and its target's (end-of-sequence included) where supervised."""

    row: Row
    prompt: list[int]
    target: list[int]


def encode_rows(
    base: BaseModel, rows: Iterable[Row], *, with_target: bool, should_stop: Callable[[], bool]
) -> list[EncodedRow]:
    """Render every row once.

    Raises:
        PromptTooLongError: a prompt (with its target, where supervised) that leaves no room, by its line.
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
        # An answer has at least one token.
        tokens = len(prompt) + max(len(target), 1)
        if base.context_length is not None and tokens > base.context_length:
            raise PromptTooLongError(row.line, tokens, base.context_length)
        encoded.append(EncodedRow(row, prompt, target))
    return encoded


def evaluate(
    adapted: AdaptedModel,
    z: Mapping[str, Tensor] | None,
    rows: Sequence[EncodedRow],
    grader: Grader | None,
    *,
    max_new_tokens: int,
    batch_rows: int,
    should_stop: Callable[[], bool],
) -> list[float]:
    """Return the reward of the greedy answer to each row, by ``z`` or, where None, by the base.

    Without a grader an answer is right (1) if it is the row's target, white space around both aside.

    Raises:
        RewardError: see ``reward``.
        Stopped: should_stop, within one token.
    """
    rewards = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
    with nullcontext() if z is None else adapted.merged(z):
        for start in range(0, len(order), batch_rows):
            batch = order[start : start + batch_rows]
            completions = generate(
                adapted.base,
                [rows[index].prompt for index in batch],
                max_new_tokens=max_new_tokens,
                temperature=0.0,
                seeds=[0] * len(batch),
                should_stop=should_stop,
            )
            if should_stop():
                raise Stopped
            for index, completion in zip(batch, completions, strict=True):
                rewards[index] = reward(grader, completion.text, rows[index].row)
    return rewards


def reward(grader: Grader | None, text: str, row: Row) -> float:
    """Return what an answer is worth on its row.

    Raises:
        RewardError: the grader raised, or gave something that is not a finite number.
    """
    if grader is None:
        return float(text.strip() == (row.target or "").strip())
    try:
        value = grade(grader, text, row.item)
    except RewardError:
        raise
    except Exception as exc:  # a grader is somebody else's code: whatever it raises is its own failure
        raise RewardError(grader.name, f"line {row.line}: {type(exc).__name__}: {exc}") from exc
    if not math.isfinite(value):
        raise RewardError(grader.name, f"line {row.line}: the reward is {value}, expected a finite number")
    return value


def compare(base_rewards: Sequence[float], expert_rewards: Sequence[float], split: str) -> Evaluation:
    """Put rewards on the same rows side by side, with the p-value of their difference."""
    return Evaluation(
        split=split,
        base=accuracy(base_rewards),
        expert=accuracy(expert_rewards),
        p_value=paired_p_value(base_rewards, expert_rewards),
    )
