"""One trace from the request that creates a job to the last span of its attempt, across all processes."""

import json
from typing import Any

import pytest

from zhub.demo.task_families import sample_rows
from zhub.ids import parse_id

pytestmark = pytest.mark.ray


def test_a_job_is_one_trace_from_its_request_to_its_worker(stack: Any, e2e: Any, traces: Any) -> None:
    job = e2e.train(stack.client, sample_rows("sorting", 200, seed=3), "traced", n_steps=12, max_new_tokens=8)
    assert e2e.wait_for_job(stack.client, job.id).status == "succeeded"

    def attempt() -> Any:
        attempts = (span for span in traces.spans if span.name == "attempt")
        mine = parse_id("fine-tuning job", job.id)
        return next((span for span in attempts if span.attributes["zhub.job_id"] == str(mine)), None)

    whole = e2e.until("the attempt's span", attempt, 30)
    spans = [span for span in traces.spans if span.trace_id == whole.trace_id]
    by_id = {span.span_id: span for span in spans}
    root = by_id[whole.parent_id]
    assert whole.attributes["zhub.kind"] == "train"
    assert (root.service, root.name, root.parent_id) == ("zhub-api", "POST /v1/fine_tuning/jobs", "")
    assert {span.name for span in spans if span.service == "zhub-agent"} == {"queue", "pickup", "start"}
    of_worker = {span.name for span in spans if span.service == "zhub-worker"}
    assert of_worker >= {"attempt", "steps", "checkpoint", "upload", "evaluate"}
    assert [s.attributes["zhub.last_step"] for s in spans if s.name == "steps"] == ["10", "12"]
    for span in spans:
        assert span is root or span.parent_id in by_id, span
        assert not span.failed, span
    # The same id is in the logs.
    requests = [json.loads(line) for line in stack.log("api").splitlines() if line.startswith("{")]
    assert [r["route"] for r in requests if r.get("trace_id") == whole.trace_id] == ["/v1/fine_tuning/jobs"]
