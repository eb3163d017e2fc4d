"""What a training is expected to cost, and what it has cost: by an hour of its cluster's workers."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from api_requests import reinforcement
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session
from zhub.ids import parse_id
from zhub.models import Price

Ask = Callable[..., Any]


@pytest.fixture
def price(system_engine: Engine) -> Callable[[], None]:
    def set_price() -> None:
        row = {"subject": "", "amount": Decimal(6), "currency": "EUR", "valid_from": date(2026, 1, 1)}
        with system_session(system_engine) as session:
            session.add(Price(item="worker_hours", **row))

    return set_price


def ran(engine: Engine, job_id: str, workers: float, minutes: int) -> None:
    with system_session(engine) as session:
        session.execute(
            text(
                "INSERT INTO attempts (id, org_id, job_id, fence, agent_id, workers, created_at, ended_at, outcome)"
                " SELECT gen_random_uuid(), org_id, id, :minutes, gen_random_uuid(), :workers,"
                " now() - make_interval(mins => :minutes), now(), 'lost' FROM jobs WHERE id = :id"
            ),
            {"id": parse_id("fine-tuning job", job_id), "workers": workers, "minutes": minutes},
        )


def test_a_job_says_what_its_attempts_took_and_cost(
    train: Ask, ask: Ask, system_engine: Engine, price: Callable[[], None]
) -> None:
    job_id = train().id
    fresh = ask("get", f"/fine_tuning/jobs/{job_id}")
    assert (fresh["worker_seconds"], fresh["cost"]) == (0, None)
    ran(system_engine, job_id, 0.25, 40)
    ran(system_engine, job_id, 2, 10)
    unpriced = ask("get", f"/fine_tuning/jobs/{job_id}")
    assert (unpriced["worker_seconds"], unpriced["cost"]) == (1800, None)
    price()
    priced = ask("get", f"/fine_tuning/jobs/{job_id}")
    assert priced["cost"] == {"value": 3, "currency": "eur"}
    listed = ask("get", "/fine_tuning/jobs")["data"]
    assert [job["cost"] for job in listed] == [priced["cost"]]


def test_an_estimate_says_the_cost_before(
    ask: Ask, checked_file: str, train: Ask, system_engine: Engine, price: Callable[[], None]
) -> None:
    method = reinforcement(hyperparameters={"n_steps": 30, "data_parallel": 2})
    body = {"model": "tiny", "training_file": checked_file, "method": method}
    price()
    assert ask("post", "/fine_tuning/jobs/estimate", body)["expected_cost"] is None
    train(method=reinforcement(hyperparameters={"n_steps": 10}))
    with system_session(system_engine) as session:
        ended = "state = 'succeeded', finished_at = now(), started_at = now() - interval '600 s'"
        session.execute(text(f"UPDATE jobs /* any move */ SET {ended} WHERE kind = 'train'"))
    assert ask("post", "/fine_tuning/jobs/estimate", body)["expected_cost"] == {"value": 6, "currency": "eur"}
