"""What happens at which step: pure functions of the step's number, counted from 1, and the hyper-parameters."""

import math

from zhub.recipes import GradientHyperparameters, Hyperparameters

# Share of the first rate, at the end of the cosine; arXiv:2501.06252 decays to 0 or does not say.
FINAL_LEARNING_RATE = 0.1
DENSE_SHARE = 1 / 3  # of a sparse expert's steps are taken with all multipliers, to learn which matter


def rate_share(step: int, hyper: GradientHyperparameters) -> float:
    """The share of its rate that a step takes: half a cosine from 1 down to FINAL_LEARNING_RATE."""
    cosine = (1 + math.cos(math.pi * (step - 1) / hyper.n_steps)) / 2
    return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine


def is_validated(step: int, hyper: Hyperparameters) -> bool:
    """Whether the expert is scored after this step: every ``eval_interval`` steps, and at the end."""
    return step % hyper.eval_interval == 0 or step == hyper.n_steps


def is_checkpointed(step: int, hyper: Hyperparameters) -> bool:
    """Whether a checkpoint follows this step: every ``checkpoint_interval`` steps, or after each validation for 0."""
    if hyper.checkpoint_interval == 0:
        return is_validated(step, hyper)
    return step % hyper.checkpoint_interval == 0


def dense_steps(hyper: GradientHyperparameters) -> int:
    """How many steps a sparse expert takes with all multipliers."""
    return max(1, round(DENSE_SHARE * hyper.n_steps))
