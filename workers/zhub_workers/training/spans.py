"""Training steps in a trace: one span for every ``STEPS_A_SPAN`` steps, because a job may take thousands."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zhub.process import tracing
from zhub_workers.training.job import OnEvent

STEPS_A_SPAN = 10


@contextmanager
def traced_steps(on_event: OnEvent) -> Iterator[OnEvent]:
    """Wrap ``on_event``, which gets the metrics of every step, so that it also records the spans."""
    steps: list[int] = []
    began = time.monotonic()

    def close() -> None:
        nonlocal began
        now = time.monotonic()
        if steps:
            tracing.note_span("steps", now - began, first_step=steps[0], last_step=steps[-1])
        steps.clear()
        began = now

    def tell(level: str, message: str, data: dict[str, Any] | None) -> None:
        nonlocal began
        on_event(level, message, data)
        if data is None or data.get("type") != "metrics":
            return
        if data["step"] == 0:  # of the base, before the first step
            began = time.monotonic()
            return
        steps.append(data["step"])
        if len(steps) == STEPS_A_SPAN:
            close()

    try:
        yield tell
    finally:
        close()
