"""SIGTERM to an agent in the middle of a job: it hands over within a bound, also while its database is frozen."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from zhub.demo.task_families import sample_rows

pytestmark = pytest.mark.ray

BOUND_S = 20.0  # the promise is ten seconds; the rest is for a machine that is busy


@contextmanager
def frozen_database(stack: Any) -> Iterator[None]:
    servers = [p for p in psutil.Process(stack.process.pid).children(recursive=True) if p.name() == "postgres"]
    assert servers
    for server in servers:
        server.suspend()
    try:
        yield
    finally:
        for server in servers:
            if server.is_running():
                server.resume()


@contextmanager
def answering_database(_stack: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize("database", [answering_database, frozen_database])
def test_an_agent_that_is_told_to_stop_hands_its_attempts_over(database: Any, stack: Any, e2e: Any) -> None:
    name = database.__name__.replace("_", "-")
    job = e2e.train(stack.client, sample_rows("sorting", 300, seed=12), name, n_steps=40)
    e2e.wait_for_step(stack.client, job.id)
    agent = e2e.until("the agent", lambda: stack.pid_of("zhub_workers.agent"), 60)
    with database(stack):
        os.kill(agent, signal.SIGTERM)
        psutil.Process(agent).wait(BOUND_S)
    job = e2e.wait_for_job(stack.client, job.id)
    assert (job.status, job.attempts) == ("succeeded", 1)
