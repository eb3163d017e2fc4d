"""Estimates of how long a training will take, from the durations of earlier ones."""

import statistics
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from zhub import states
from zhub.models import Job
from zhub.specs import Hyperparameters, Recipe

MAX_PAST = 50  # newest trainings that are looked at
SIZE = ("batch_size", "group_size", "max_new_tokens", "data_parallel")


def expected_seconds(
    session: Session, base_model_id: uuid.UUID, recipe: Recipe, hyper: Hyperparameters
) -> float | None:
    """The median seconds per step of past trainings with the same base and recipe, times the steps; None without any.

    Where some had steps of the same size, only those count. The session sees its own organisation's only.
    """
    last = func.coalesce(Job.started_at, Job.finished_at)
    rows = session.execute(
        select(Job.spec["hyperparameters"], func.extract("epoch", Job.finished_at - last))
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
    past = [
        (settings, float(seconds) / max(1, int(settings["n_steps"])))
        for settings, seconds in rows
        if "n_steps" in settings
    ]
    alike = [rate for settings, rate in past if _size(settings) == _size(asked)]
    rates = alike or [rate for _, rate in past]
    return statistics.median(rates) * hyper.n_steps if rates else None


def _size(hyper: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(hyper.get(name) for name in SIZE)
