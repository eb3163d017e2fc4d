"""Traces where they are wanted, and nothing where they are not."""

import json
import os
import subprocess
import sys
from typing import Any

from zhub.process import tracing

SPEAK = """
import json, logging
from zhub.process import tracing
from zhub.process.logs import configure_logging
configure_logging("json")
print(json.dumps(tracing.start_tracing("zhub-test")))
with tracing.span("whole", parent="00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", job_id="seven"):
    logging.getLogger("zhub.test").info("inside", extra={"action": "tested"})
    tracing.note_span("part", 2.0, ended_s_ago=1.0)
    print(tracing.traceparent())
    tracing.note_failure(ValueError("bad"))
"""
NO_EXPORTER = "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None\n"


def speak(code: str = SPEAK, **env: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, env=clean | env, capture_output=True, text=True, check=True, timeout=60)


def test_spans_continue_the_trace_that_they_are_given(traces: Any) -> None:
    spoken = speak(OTEL_EXPORTER_OTLP_ENDPOINT=traces.url)
    started, inside = spoken.stdout.splitlines()
    whole = next(span for span in traces.spans if span.name == "whole")
    part = next(span for span in traces.spans if span.name == "part")
    assert (started, inside) == ("true", f"00-{'ab' * 16}-{whole.span_id}-01")
    assert (whole.service, whole.trace_id, whole.parent_id) == ("zhub-test", "ab" * 16, "cd" * 8)
    assert (whole.attributes, whole.failed) == ({"zhub.job_id": "seven"}, True)
    assert (part.trace_id, part.parent_id) == (whole.trace_id, whole.span_id)
    assert json.loads(spoken.stderr.splitlines()[0])["trace_id"] == "ab" * 16


def test_without_an_endpoint_no_sdk_is_imported_and_nothing_is_said() -> None:
    code = SPEAK + "import sys; assert not any(name.startswith(SENDING) for name in sys.modules)"
    code = code.replace("SENDING", repr(("opentelemetry.sdk", "opentelemetry.exporter")))
    spoken = speak(code, OTEL_EXPORTER_OTLP_ENDPOINT="")
    assert spoken.stdout.split() == ["false", "None"]
    assert [json.loads(line)["message"] for line in spoken.stderr.splitlines()] == ["inside"]


def test_without_the_extra_it_says_what_to_install() -> None:
    spoken = speak(NO_EXPORTER + SPEAK, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert spoken.stdout.split() == ["false", "None"]
    assert "pip install 'zhub[otel]'" in json.loads(spoken.stderr.splitlines()[0])["message"]


def test_a_collector_that_is_away_does_not_keep_a_process() -> None:
    assert speak(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9").stdout.startswith("true")


def test_a_process_that_traces_nothing_has_no_trace() -> None:
    with tracing.span("nothing"):
        assert tracing.traceparent() is None and tracing.trace_id() is None


def test_the_environment_names_the_service(traces: Any) -> None:
    speak(SPEAK.replace("whole", "named"), OTEL_EXPORTER_OTLP_ENDPOINT=traces.url, OTEL_SERVICE_NAME="ours")
    assert {span.service for span in traces.spans if span.name == "named"} == {"ours"}
