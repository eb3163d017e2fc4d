"""What becomes of a job whose attempt fails, or reports what cannot be recorded."""

import uuid
from collections.abc import Callable

import pytest
from agent_rig import AgentRig, Report, Training, fails_with, result_of, returns, thread_launcher
from suites import sums

from zhub.errors import PromptTooLongError, StoreError, UnavailableError
from zhub.queue import attempts as job_attempts
from zhub_workers.attempts.attempt import Attempt, AttemptContext, Runner

ROWS = sums(20)


@pytest.mark.parametrize(
    ("error", "code", "outcome", "attempts"),
    [
        (PromptTooLongError(3, 900, 512), "prompt_too_long", "failed_user", 1),
        (MemoryError(), "out_of_memory", "failed_user", 1),
        (ZeroDivisionError("x"), "internal_error", "failed_user", 1 + job_attempts.MAX_USER_FAILURES),
        (SystemExit(3), "internal_error", "failed_user", 1 + job_attempts.MAX_USER_FAILURES),
        (StoreError("away", key="k"), "store_error", "failed_infra", 1 + job_attempts.MAX_INFRA_FAILURES),
        (UnavailableError("away"), "unavailable", "failed_infra", 1 + job_attempts.MAX_INFRA_FAILURES),
    ],
)
def test_a_failure_is_retried_as_often_as_its_cause_deserves(
    rig: AgentRig, job_id: uuid.UUID, error: BaseException, code: str, outcome: str, attempts: int
) -> None:
    failed = rig.drive(rig.agent(thread_launcher(fails_with(error))), job_id, "failed")
    assert failed.error is not None and failed.error["code"] == code
    assert rig.attempts(job_id) == [(fence, outcome) for fence in range(1, attempts + 1)]


@pytest.mark.parametrize("text_of_error", ["a\0b", "\ud800", "\udfff…"])
def test_a_failure_may_quote_anything(rig: AgentRig, job_id: uuid.UUID, text_of_error: str) -> None:
    failed = rig.drive(rig.agent(thread_launcher(fails_with(StoreError(text_of_error, key="k")))), job_id, "failed")
    assert failed.error is not None and failed.error["code"] == "store_error"


def emits(message: str, data: Report | None = None, level: str = "info") -> Runner:
    def run(attempt: Attempt, context: AttemptContext) -> Report:
        context.emit(level, message, data)
        return result_of(attempt)

    return run


UNRECORDABLE: dict[str, Runner] = {
    "no manifest": returns({}),
    "an empty manifest": returns({"manifest": {}, "key_prefix": "k", "trained_tokens": 1}),
    "NUL in the key": lambda attempt, _context: result_of(attempt) | {"key_prefix": "\0"},
    "a number too large": lambda attempt, _context: result_of(attempt) | {"trained_tokens": 2**63},
    "an event with NUL": emits("a\0b"),
    "an event with half a character": emits("\ud800"),
    "a metric that is no number": emits("step 1", {"type": "metrics", "loss": float("nan")}),
    "a level that is none": emits("x", level="fatal"),
    "a checkpoint without a place": emits("x", {"type": "checkpoint", "step": 1}),
}


@pytest.mark.parametrize("what", UNRECORDABLE)
def test_a_report_that_cannot_be_recorded_fails_its_job_and_not_the_agent(
    rig: AgentRig, job_id: uuid.UUID, send: Callable[[bytes], uuid.UUID], what: str
) -> None:
    agent = rig.agent(thread_launcher(UNRECORDABLE[what]))
    failed = rig.drive(agent, job_id, "failed")
    assert failed.error is not None and failed.error["code"] == "internal_error"
    rig.drive(agent, rig.job_of_file(send(ROWS)), "succeeded")


def test_a_validation_that_cannot_be_recorded_leaves_its_file_in_error(
    rig: AgentRig, send: Callable[[bytes], uuid.UUID], training: Training
) -> None:
    poison: Report = {"validation": {"problem_count": 0, "columns": {"\0": 1}}}
    version_id = send(ROWS)
    rig.drive(rig.agent(thread_launcher(training, returns(poison))), rig.job_of_file(version_id), "failed")
    assert rig.file(version_id).status == "error"
