"""A schedule that trains on a dataset, and a scheduler that looks after it."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from schedule_ticks import TRAINING
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.scheduler import follow_regressions
from zhub.schedules.firing import process_next_due

Client = openai.OpenAI
Ask = Callable[..., Any]


@pytest.fixture
def schedule(ask: Ask, suite_file: str) -> Ask:
    """POST /v1/schedules; every Monday at three unless said otherwise."""

    def post(**options: Any) -> Any:
        body = {"name": "weekly", "dataset": "suite", "training": TRAINING, "cron": "0 3 * * 1"}
        return ask("post", "/schedules", body | options)

    return post


@pytest.fixture
def look(system_engine: Engine) -> Callable[[], int]:
    """Do what a scheduler's thread does; return how often there was something to do."""

    def once() -> int:
        count = 0
        while True:
            with system_session(system_engine) as session:
                fired = process_next_due(session)
            if not follow_regressions(system_engine) and not fired:
                return count
            count += 1
            assert count < 50, "there is no end to it"

    return once


@pytest.fixture
def give(client: Client) -> Ask:
    """Give so much feedback on a version."""

    def post(model: str, count: int = 1, by: Client = client) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "1 + 1 ="}], "completion": "3", "score": -1}
        for _ in range(count):
            by.post("/feedback", cast_to=object, body=body)

    return post
