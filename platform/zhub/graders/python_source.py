"""Rewards by a user's own Python, in the sandbox."""

import math
from collections.abc import Sequence

from zhub.errors import RewardError, RewardNotANumberError, RewardTimeoutError, SandboxUnavailableError
from zhub.graders.samples import Grade, GradingTools, Sample
from zhub.graders.templates import UnreadableAnswerError, read_json
from zhub.graders.types import PythonGrader
from zhub.sandbox import Limits, Outcome, Program, Raised, Sandbox, Unreadable, Value

MAX_TOLD = 5  # rows of one batch: a grader that prints does so for every answer
MAX_PRINTED_CHARACTERS = 2000
REMEDY = "Correct the source; POST /v1/fine_tuning/alpha/graders/run tries it on one answer."


def grade_python(grader: PythonGrader, samples: Sequence[Sample], tools: GradingTools) -> list[Grade]:
    programs = [
        Program(
            grader.source,
            ["grade(sample, item)"],
            variables={"sample": _seen(sample), "item": dict(sample.item)},
            limits=Limits(wall_s=grader.timeout_s),
        )
        for sample in samples
    ]
    outcomes = sandbox_of(grader.name, tools).run_many(programs)
    grades = [_graded(grader, sample, outcome) for sample, outcome in zip(samples, outcomes, strict=True)]
    _tell(grader, samples, outcomes, grades, tools)
    for grade in grades:
        if isinstance(grade, RewardError):
            raise grade
    return [grade for grade in grades if isinstance(grade, Grade)]


def _graded(grader: PythonGrader, sample: Sample, outcome: Outcome) -> Grade | RewardError:
    try:
        return Grade(_reward(grader, sample, outcome))
    except RewardError as exc:
        return exc


def _tell(
    grader: PythonGrader,
    samples: Sequence[Sample],
    outcomes: Sequence[Outcome],
    grades: Sequence[Grade | RewardError],
    tools: GradingTools,
) -> None:
    """Log what the source printed: on its first MAX_TOLD rows with a failure, and on as many without one."""
    told: dict[bool, set[int]] = {True: set(), False: set()}
    for sample, outcome, grade in zip(samples, outcomes, grades, strict=True):
        failed = isinstance(grade, RewardError)
        printed = outcome.printed.rstrip()
        if len(told[failed]) == MAX_TOLD or sample.line in told[failed] or not (failed or printed):
            continue
        told[failed].add(sample.line)
        if isinstance(grade, RewardError):
            tools.note("error", str(grade))
        if printed:
            cut = f"{printed[:MAX_PRINTED_CHARACTERS]} …" if len(printed) > MAX_PRINTED_CHARACTERS else printed
            tools.note("error" if failed else "info", f"{sample.where}grader '{grader.name}' printed:\n{cut}")


def sandbox_of(name: str, tools: GradingTools) -> Sandbox:
    if tools.sandbox is None:
        raise SandboxUnavailableError(
            f"Grader '{name}' runs code, and this process was started without a sandbox. Use a worker on Linux 5.13 "
            "or later with Landlock, or a grader that runs no code."
        )
    return tools.sandbox


def _seen(sample: Sample) -> dict[str, object]:
    try:
        parsed = read_json(sample.output_text)
    except UnreadableAnswerError:
        parsed = None
    return {"output_text": sample.output_text, "output_json": parsed}


def _reward(grader: PythonGrader, sample: Sample, outcome: Outcome) -> float:
    raised = outcome.failure
    result = outcome.results[0] if outcome.results else None
    if isinstance(result, Raised):
        raised = result
    if raised is not None:
        where = f" in line {raised.line} of its source" if raised.line is not None else ""
        raise RewardError(grader.name, f"{sample.where}it raised{where}: {_storable(raised.message)}. {REMEDY}")
    match outcome.ending:
        case "timeout":
            raise RewardTimeoutError(
                grader.name,
                f"{sample.where}it took longer than {grader.timeout_s:g} s and was stopped. "
                "Make it faster, or raise timeout_s.",
            )
        case "output":
            raise RewardNotANumberError(
                grader.name, f"{sample.where}it returned more than a number: more text than it may write. {REMEDY}"
            )
        case "died":
            raise RewardError(grader.name, f"{sample.where}its process ended early: {outcome.detail}. {REMEDY}")
    if isinstance(result, Value) and isinstance(result.value, bool | int | float):
        try:
            reward = float(result.value)
        except OverflowError:
            reward = math.inf
        if math.isfinite(reward):
            return reward
    raise RewardNotANumberError(
        grader.name, f"{sample.where}grade returned {_describe(result)}, expected a finite number. {REMEDY}"
    )


def _storable(message: str) -> str:
    """A program may raise with what no database and no answer can hold: halves of surrogate pairs, and NUL."""
    return message.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _describe(result: Value | Unreadable | Raised | None) -> str:
    match result:
        case Value(value=None):
            return "nothing"
        case Value(value=float() | int() as number):
            return f"{number:g}" if isinstance(number, float) else "an integer too large for a reward"
        case Value(value=value):
            return f"the {type(value).__name__} {value!r}"[:200]
        case Unreadable(found=kind):
            return f"a {kind}"
    return "nothing"
