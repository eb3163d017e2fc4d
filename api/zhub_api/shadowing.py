"""Shadows at work: once a live answer is whole, another version answers the same request, and the two are compared.

Nobody waits for a shadow: it has a few places of this process, and is left out where they are taken.
"""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from zhub.database.sessions import tenant_session
from zhub.errors import TooManyAtOnceError, UnavailableError, ZhubError
from zhub.generation import GenerationRequest
from zhub.process.shares import Shares
from zhub.registry import shadows
from zhub.registry.shadows import Outcome, Side

PLACES, PER_ORG = 16, 4

Body = Mapping[str, Any]
"""A whole answer as a plain response tells it."""
AnswerOf = Callable[[GenerationRequest], Coroutine[Any, Any, Body]]

log = logging.getLogger("zhub.api")


@dataclass(frozen=True)
class Shadow:
    """What a shadow is asked, and the trial that it is part of."""

    trial_id: uuid.UUID
    org_id: uuid.UUID
    request: GenerationRequest


class Shadowing:
    """The shadows that answer in this process. Lives in its event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._places = Shares("answers of shadows", places=PLACES, per_org=PER_ORG)
        self._left_out: Counter[uuid.UUID] = Counter()  # by trial, until it is written with an answer
        self._running: set[asyncio.Task[None]] = set()

    def ask(self, shadow: Shadow, answer: AnswerOf, live: Body, seconds: float) -> None:
        """Have the shadow answer by ``answer``, and compare it with what was answered ``live`` in so many seconds."""
        try:
            self._places.take(shadow.org_id)
        except (TooManyAtOnceError, UnavailableError):
            self._left_out[shadow.trial_id] += 1
            return
        task = asyncio.create_task(self._answer(shadow, answer, live, seconds))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """End what runs; it is not counted."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _answer(self, shadow: Shadow, answer: AnswerOf, live: Body, seconds: float) -> None:
        extra = {"action": "shadow_failed", "org_id": shadow.org_id}
        try:
            outcome = None
            began = time.monotonic()
            try:
                body = await answer(shadow.request)
                outcome = compared(live, seconds, body, time.monotonic() - began, shadow.request)
            except ZhubError as exc:
                log.warning("a shadow of %s failed: %s", shadow.request.release, exc, extra=extra)
            await run_in_threadpool(self._record, shadow, outcome)
        except Exception:
            log.exception("what a shadow did is not counted", extra=extra)
        finally:
            self._places.give_back(shadow.org_id)

    def _record(self, shadow: Shadow, outcome: Outcome | None) -> None:
        left_out = self._left_out.pop(shadow.trial_id, 0)
        outcomes = [] if outcome is None else [outcome]
        with tenant_session(self._engine, shadow.org_id) as session:
            shadows.record(session, shadow.trial_id, outcomes, failed=int(outcome is None), left_out=left_out)


def compared(
    live: Body, live_seconds: float, shadow: Body, shadow_seconds: float, request: GenerationRequest
) -> Outcome:
    """How two answers to one request compare. Choices are compared only where nothing of them is drawn at random."""
    alike = _texts(live) == _texts(shadow) if request.temperature == 0 else None
    return Outcome(
        Side(live["usage"]["completion_tokens"], live_seconds),
        Side(shadow["usage"]["completion_tokens"], shadow_seconds),
        same_experts=_experts(live) == _experts(shadow),
        alike=alike,
    )


def _experts(body: Body) -> list[tuple[str, float]]:
    return [(expert["name"], expert["weight"]) for expert in body["experts"]]


def _texts(body: Body) -> list[Any]:
    """What was said in each choice; of called tools not their ids, which are drawn."""
    return [_said(choice.get("message", choice)) for choice in body["choices"]]


def _said(choice: Mapping[str, Any]) -> Any:
    calls = [call["function"] for call in choice.get("tool_calls") or []]
    return choice.get("content", choice.get("text")), calls
