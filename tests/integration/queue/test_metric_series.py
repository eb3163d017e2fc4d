"""The metrics of a job as series, whole or thinned out."""

import random
import uuid
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.ids import public_id
from zhub.queue import job_events
from zhub.queue.job_events import Event
from zhub.tenancy.keys import Caller


@pytest.fixture
def measure(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> Callable[..., None]:
    """Report metrics of an attempt: values by step."""

    def report(fence: int, **series: dict[int, float]) -> None:
        steps = sorted({step for values in series.values() for step in values})
        events = [
            Event(seq, "info", "metrics", "m", {"step": step} | {n: v[step] for n, v in series.items() if step in v})
            for seq, step in enumerate(steps, start=1)
        ]
        with system_session(system_engine) as session:
            job_events.store(session, caller.org_id, job_id, fence, events)

    return report


def series_of(engine: Engine, job_id: uuid.UUID, points: int) -> dict[str, dict[int, float]]:
    with system_session(engine) as session:
        all_series = job_events.metric_series(session, job_id, points=points)
    return {series.name: {point["step"]: point["value"] for point in series.points} for series in all_series}


def test_a_short_series_is_whole(system_engine: Engine, job_id: uuid.UUID, measure: Callable[..., None]) -> None:
    loss, reward = {1: 2.0, 2: 1.5, 3: 1.75}, {2: 0.5}
    measure(1, train_loss=loss, valid_reward_mean=reward)
    assert series_of(system_engine, job_id, 4) == {"train_loss": loss, "valid_reward_mean": reward}


@pytest.mark.parametrize("points", [4, 5, 10, 99, 100, 998, 1000])
def test_a_long_series_keeps_its_ends_and_the_extremes_of_each_stretch(
    system_engine: Engine, job_id: uuid.UUID, measure: Callable[..., None], points: int
) -> None:
    rng = random.Random(points)
    loss = {step: rng.random() for step in range(1, 1000)}
    measure(1, train_loss=loss)
    (series,) = series_of(system_engine, job_id, points).values()
    # Slowly, from the words: the ends, and of each stretch in between the lowest and the highest.
    expected = dict(loss)
    if len(loss) > points:
        inner = [(step, value) for step, value in loss.items() if step not in (1, 999)]
        stretches: dict[int, list[tuple[int, float]]] = {}
        for place, point in enumerate(inner):
            stretches.setdefault(place * ((points - 2) // 2) // len(inner), []).append(point)
        kept = [pick(stretch, key=lambda point: point[1]) for stretch in stretches.values() for pick in (min, max)]
        expected = dict([(1, loss[1]), *kept, (999, loss[999])])
    assert series == expected and len(series) <= points
    assert (min(series.values()), max(series.values())) == (min(loss.values()), max(loss.values()))


def test_what_an_attempt_measured_after_the_step_that_the_next_went_on_from_is_left_out(
    system_engine: Engine, job_id: uuid.UUID, measure: Callable[..., None]
) -> None:
    # Every attempt measures the base first, as step 0.
    measure(1, train_loss={step: 1.0 for step in range(1, 31)}, valid_reward_mean={0: 0.25, 10: 0.5, 30: 0.75})
    measure(2, train_loss={step: 2.0 for step in range(21, 24)}, valid_reward_mean={0: 0.25})
    assert series_of(system_engine, job_id, 100) == {
        "train_loss": {step: 1.0 for step in range(1, 21)} | {step: 2.0 for step in range(21, 24)},
        "valid_reward_mean": {0: 0.25, 10: 0.5},
    }


def test_what_is_no_number_is_no_metric(system_engine: Engine, caller: Caller, job_id: uuid.UUID) -> None:
    data = {"type": "metrics", "step": 1, "train_loss": 0.5, "note": "x", "flag": True, "list": [1]}
    with system_session(system_engine) as session:
        job_events.add(session, caller.org_id, job_id, "metrics by another name", data=data)
        job_events.add(session, caller.org_id, job_id, "no step", data={"type": "metrics", "train_loss": 9.0})
        job_events.add(session, caller.org_id, job_id, "no metrics", data={"step": 2, "train_loss": 9.0})
    assert series_of(system_engine, job_id, 4) == {"train_loss": {1: 0.5}}


def test_the_route_says_how_many_points_there_were(
    api_url: str, make_key: Callable[..., str], job_id: uuid.UUID, measure: Callable[..., None]
) -> None:
    measure(1, train_loss={step: float(step) for step in range(1, 101)})
    where = f"{api_url}/fine_tuning/jobs/{public_id('fine-tuning job', job_id)}/metrics"
    headers = {"authorization": f"Bearer {make_key()}"}
    answer = httpx.get(where, params={"points": 10}, headers=headers).json()
    (series,) = answer["series"]
    assert (series["name"], series["count"], len(series["points"])) == ("train_loss", 100, 10)
    too_few = httpx.get(where, params={"points": 3}, headers=headers)
    assert (too_few.status_code, too_few.json()["error"]["param"]) == (400, "points")
