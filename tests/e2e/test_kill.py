"""``kill -9`` of any part in the middle of a job: the job ends with exactly one version."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from zhub.demo.task_families import sample_rows

pytestmark = pytest.mark.ray

ZHUB = Path(sys.executable).with_name("zhub")
PARTS = {
    "the training actor": "ray::TorchActor",
    "the agent": "zhub_workers.agent",
    "the scheduler": "zhub.scheduler",
    "the API": "zhub_api",
}


# ``tests/chaos`` kills the scheduler and the API as well, with workers that only play.
AT_LENGTH = pytest.mark.skipif("ZHUB_CHAOS_MINUTES" not in os.environ, reason="one of the long ones: make chaos")
LONG = ("the scheduler", "the API")


@pytest.mark.parametrize("part", [pytest.param(part, marks=AT_LENGTH if part in LONG else ()) for part in PARTS])
def test_a_job_survives_the_death_of(part: str, stack: Any, e2e: Any) -> None:
    name = part.replace(" ", "-").lower()
    job = e2e.train(stack.client, sample_rows("sorting", 300, seed=11), name, n_steps=12)
    e2e.wait_for_step(stack.client, job.id)
    stack.kill(PARTS[part])
    job = e2e.wait_for_job(stack.client, job.id)
    assert job.status == "succeeded", job.error
    versions = [v for v in stack.client.get("/experts", cast_to=dict[str, Any])["data"] if v["expert"] == name]
    assert [v["job"] for v in versions] == [job.id]
    assert job.fine_tuned_model == versions[0]["id"]
    assert job.attempts == (2 if part == "the training actor" else 1)
    url = psutil.Process(stack.pid_of("zhub.scheduler")).environ()["ZHUB_DATABASE_URL"]
    doctor = subprocess.run([ZHUB, "queue", "doctor", "--url", url], capture_output=True, text=True, timeout=60)
    assert doctor.returncode == 0 and "nothing is wrong" in doctor.stderr, doctor.stdout + doctor.stderr
