"""Estimates of how long a training will take and how much it reads, from earlier ones."""

import statistics
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from zhub import states
from zhub.models import Job
from zhub.recipes import Hyperparameters, Recipe

MAX_PAST = 50  # newest trainings that are looked at
SIZE = ("batch_size", "group_size", "population", "shots", "max_new_tokens", "data_parallel")


@dataclass(frozen=True)
class Estimate:
    """What a training may take, by ``trainings`` earlier ones with the same base and recipe.

    Without any, everything else is None: nothing is known.
    """

    trainings: int = 0
    same_size: bool = False
    """Only trainings counted whose steps had the same size."""
    seconds: float | None = None
    """By the median of their seconds per step."""
    shortest_s: float | None = None
    longest_s: float | None = None
    """By the fastest and the slowest of them."""
    tokens: int | None = None
    """Prompts and answers of all steps, by the median of their tokens per step."""


def estimate(session: Session, base_model_id: uuid.UUID, recipe: Recipe, hyper: Hyperparameters) -> Estimate:
    """Estimate a training from the organisation's own past ones: those with steps of the same size, if there are any.

    The session sees its own organisation's jobs only.
    """
    last = func.coalesce(Job.started_at, Job.finished_at)
    rows = session.execute(
        select(Job.spec["hyperparameters"], func.extract("epoch", Job.finished_at - last), Job.trained_tokens)
        .where(
            Job.kind == "train",
            Job.state == states.SUCCEEDED,
            Job.base_model_id == base_model_id,
            Job.spec["recipe"].astext == recipe,
        )
        .order_by(Job.id.desc())
        .limit(MAX_PAST)
    ).all()
    asked = hyper.model_dump(mode="json")
    past = [(settings, float(seconds), tokens) for settings, seconds, tokens in rows if "n_steps" in settings]
    alike = [row for row in past if _size(row[0]) == _size(asked)]
    return _from_past(alike or past, hyper.n_steps, same_size=bool(alike))


def _from_past(
    past: Sequence[tuple[Mapping[str, Any], float, int | None]], n_steps: int, *, same_size: bool
) -> Estimate:
    if not past:
        return Estimate()
    counted = [(seconds, tokens, max(1, int(settings["n_steps"]))) for settings, seconds, tokens in past]
    rates = [seconds / steps for seconds, _, steps in counted]
    token_rates = [tokens / steps for _, tokens, steps in counted if tokens is not None]
    return Estimate(
        trainings=len(past),
        same_size=same_size,
        seconds=statistics.median(rates) * n_steps,
        shortest_s=min(rates) * n_steps,
        longest_s=max(rates) * n_steps,
        tokens=round(statistics.median(token_rates) * n_steps) if token_rates else None,
    )


def _size(hyper: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(hyper.get(name) for name in SIZE)
