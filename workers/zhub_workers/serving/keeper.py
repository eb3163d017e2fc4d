"""Keeps serving up: it is started, watched, and started again with growing pauses for as long as the agent runs.

Ray Serve replaces replicas that die. It gives up where the app fails to start a few times, and its controller and its
HTTP front can fail as a whole; then nobody but the agent starts it again.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("zhub.agent")

READY_WITHIN_S = 300.0  # from the deployment on: a replica imports torch
LOST_AFTER_S = 120.0  # without an answer: Serve has replaced a dead replica by then
FIRST_PAUSE_S, MAX_PAUSE_S = 5.0, 300.0
LOOK_S = 5.0
STARTING_LOOK_S = 0.2
STEP_WITHIN_S = 600.0  # one call of Serve's; some of them wait without a limit of their own


@dataclass(frozen=True)
class Serving:
    """How serving is started, asked whether it answers, and removed. Any of them may raise anything."""

    deploy: Callable[[], object]
    answers: Callable[[], bool]
    remove: Callable[[], object]


def keep_serving(
    serving: Serving,
    *,
    note: Callable[[bool], object],
    stopping: threading.Event,
    beat: Callable[[float], object],
) -> None:
    """Keep serving up until ``stopping`` is set. ``note`` is told whenever that changes whether it answers.

    ``beat`` is called all the time, with the seconds until it is called again at the latest.
    """
    failures = 0
    while not stopping.is_set():
        beat(STEP_WITHIN_S)
        try:
            if failures:
                serving.remove()
            beat(STEP_WITHIN_S)
            serving.deploy()
            if _wait_for_answer(serving, stopping, beat):
                failures = 0
                note(True)
                log.info("serving answers", extra={"action": "serving"})
                _watch(serving, stopping, beat)
                what = f"has not answered for {LOST_AFTER_S:.0f} s"
            else:
                what = f"did not answer within {READY_WITHIN_S:.0f} s"
        except Exception as exc:
            log.error("serving does not start", exc_info=True, extra={"action": "serving_failed"})
            what = f"failed to start ({type(exc).__name__}: {exc})"
        if stopping.is_set():
            return
        note(False)
        pause_s = min(FIRST_PAUSE_S * 2**failures, MAX_PAUSE_S)
        failures += 1
        about = {"action": "serving_silent"}
        log.error(
            "serving %s; it is started again in %.0f s, and nobody can chat until then", what, pause_s, extra=about
        )
        beat(pause_s + STEP_WITHIN_S)
        stopping.wait(pause_s)


def _wait_for_answer(serving: Serving, stopping: threading.Event, beat: Callable[[float], object]) -> bool:
    """Whether serving answers within ``READY_WITHIN_S``."""
    give_up = time.monotonic() + READY_WITHIN_S
    while not stopping.is_set() and time.monotonic() < give_up:
        beat(STEP_WITHIN_S)
        if serving.answers():
            return True
        stopping.wait(STARTING_LOOK_S)
    return False


def _watch(serving: Serving, stopping: threading.Event, beat: Callable[[float], object]) -> None:
    """Return once serving has not answered for ``LOST_AFTER_S``, or ``stopping`` is set."""
    answered_at = time.monotonic()
    while time.monotonic() - answered_at < LOST_AFTER_S and not stopping.wait(LOOK_S):
        beat(STEP_WITHIN_S)
        if _answers(serving):
            answered_at = time.monotonic()


def _answers(serving: Serving) -> bool:
    try:
        return serving.answers()
    except Exception as exc:
        log.warning("Ray Serve does not say how it is: %r", exc, extra={"action": "serving_silent"})
        return False
