"""Ctrl-C of the whole stack in the middle of a job: the job goes on at the next start, from its last step, at once."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from zhub.demo.task_families import sample_rows

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif("ZHUB_CHAOS_MINUTES" not in os.environ, reason="one of the long ones: make chaos"),
]


def test_a_job_that_was_interrupted_with_the_stack_goes_on_where_it_stopped(tmp_path: Path, e2e: Any) -> None:
    stack = e2e.start_stack(tmp_path / "data")
    e2e.until("the shipped base", lambda: "zhub-tiny" in [m.id for m in stack.client.models.list().data], 120)
    job = e2e.train(stack.client, sample_rows("sorting", 300, seed=13), "restarted", n_steps=60, eval_interval=20)
    e2e.wait_for_step(stack.client, job.id)
    stack.process.send_signal(signal.SIGINT)
    assert stack.process.wait(60) == 0
    for left in ("credentials.json", "run/agent.ready"):  # or else they are there before the next stack is
        (stack.data_dir / left).unlink()
    stack = e2e.start_stack(tmp_path / "data")
    try:
        job = e2e.wait_for_job(stack.client, job.id)
        events = [event.message for event in stack.client.fine_tuning.jobs.list_events(job.id, limit=100)]
    finally:
        e2e.stop_stack(stack)
    assert (job.status, job.attempts) == ("succeeded", 2), job.error
    assert any("is being stopped" in message for message in events)
    (resumed,) = (message for message in events if message.startswith("Resumed after step "))
    assert int(resumed.removeprefix("Resumed after step ").rstrip(".")) > 0
    assert not any("tried again" in message for message in events), "a retry was paid"
