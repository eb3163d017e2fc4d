"""Whatever a user or a model writes, grading it comes to an end, and this process is not held meanwhile."""

import operator
import os
import re
import signal
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest

from zhub.errors import InvalidRequestError, RewardError, RewardTimeoutError
from zhub.graders import Grade, GradingTools, Sample, grade_all, isolation, limits, parse_grader
from zhub.graders.isolation import call_isolated
from zhub.graders.processes import Lost, Processes, owner
from zhub.sandbox import Sandbox

LENGTH = 1_000_000
ANSWER = "{{sample.output_text}}"
EVIL = "^(a+)+$"
GRADERS: dict[str, dict[str, Any]] = {
    "string_check": {"input": ANSWER, "reference": "{{item.answer}}", "operation": "ilike"},
    "fuzzy_match": {
        "type": "text_similarity",
        "input": ANSWER,
        "reference": ANSWER,
        "evaluation_metric": "fuzzy_match",
    },
    "bleu": {"type": "text_similarity", "input": ANSWER, "reference": ANSWER, "evaluation_metric": "bleu"},
    "gleu": {"type": "text_similarity", "input": ANSWER, "reference": ANSWER, "evaluation_metric": "gleu"},
    "rouge_l": {"type": "text_similarity", "input": ANSWER, "reference": ANSWER, "evaluation_metric": "rouge_l"},
    "numeric": {"reference": "4"},
    "multiple_choice": {"reference": "A"},
    "json_schema": {"json_schema": {"uniqueItems": True, "pattern": EVIL}},
    "python": {"source": "def grade(sample, item): return len(sample['output_text']) > 0"},
    "code_tests": {"tests": "{{item.tests}}"},
    "score_model": {"model": "judge", "input": [{"role": "user", "content": ANSWER}]},
    "multi": {
        "calculate_output": "n + c",
        "graders": {
            "n": {"type": "numeric", "name": "n", "reference": "4"},
            "c": {"type": "multiple_choice", "name": "c", "reference": "A"},
        },
    },
}
SHAPES = {
    "blanks": "answer" + " " * LENGTH,
    "spaced numbers": "1\u00a0" * (LENGTH // 2),
    "exponents": "1e" * (LENGTH // 2),
    "fractions": "1/" * (LENGTH // 2),
    "mixed numbers": "1 " * (LENGTH // 2),
    "boxes": "\\boxed{" * (LENGTH // 7),
    "fractions in LaTeX": "\\frac{" * (LENGTH // 6),
    "fences": "```" * (LENGTH // 3),
    "a fence and blanks": "```" + " " * LENGTH,
    "brackets": "[" * LENGTH,
    "braces": "{{" * (LENGTH // 2),
    "equal objects": "[" + ",".join(['{"a":[]}'] * (LENGTH // 9)) + "]",
    "letters": '"' + "a" * LENGTH + 'b"',
    "lines": "a\n" * (LENGTH // 2),
    "quotes": '"' * LENGTH,
    "accents": "a\u0301" * (LENGTH // 2),
    "emphasis": "*_" * (LENGTH // 2),
}


def is_lost(result: object) -> bool:
    return isinstance(result, Lost)


def parsed(grader: dict[str, Any], kind: str = "") -> Any:
    return parse_grader({"type": kind, "name": "bounded"} | grader, param="grader")


@pytest.fixture(scope="module")
def tools() -> Iterator[GradingTools]:
    with Sandbox() as sandbox:
        yield GradingTools(sandbox, judge=lambda _grader, conversations: ["1"] * len(conversations))


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes(1)
    yield made
    made.close()


@pytest.mark.parametrize("cut", [LENGTH, limits.ANSWER_CHARACTERS], ids=["a million characters", "as many as are read"])
@pytest.mark.parametrize("kind", GRADERS)
def test_every_grader_comes_to_an_end_on_every_nasty_answer(kind: str, cut: int, tools: GradingTools) -> None:
    grader = parsed(GRADERS[kind], kind)
    item = {"answer": "4", "tests": ["assert f(1) == 2"]}
    for shape, text in SHAPES.items():
        started = time.thread_time()
        try:
            (grade,) = grade_all(grader, [Sample(text[:cut], item)], tools)
        except RewardTimeoutError as exc:
            assert "took longer than" in str(exc), shape
        else:
            assert len(text[:cut]) <= limits.ANSWER_CHARACTERS or (grade.reward, grade.parsed) == (0.0, False), shape
        # The processor time of this thread: what holds the interpreter's lock here. The rest can be ended.
        assert time.thread_time() - started < 1.0, shape


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"patternProperties": {EVIL: {}}, "additionalProperties": False}, '{"' + "a" * 34 + 'b": 1}'),
        ({"patternProperties": {EVIL: {}}, "unevaluatedProperties": False}, '{"' + "a" * 34 + 'b": 1}'),
        ({"uniqueItems": True}, "[" + ",".join(f'{{"a":{number}}}' for number in range(7000)) + "]"),
        (
            {"$ref": "#/$defs/0"}
            | {"$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": {}}},
            "{}",
        ),
    ],
    ids=["additionalProperties", "unevaluatedProperties", "uniqueItems", "exponential $defs"],
)
def test_a_schema_that_would_hold_the_interpreter_is_ended(schema: dict[str, Any], answer: str) -> None:
    grader = parsed({"json_schema": schema}, "json_schema")
    ticks = 0
    over = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.wait(0.05):
            ticks += 1

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        with pytest.raises(RewardError, match="took longer than 2 s|without end"):
            grade_all(grader, [Sample(answer, {}, 7)], GradingTools())
    finally:
        over.set()
        ticking.join()
    assert ticks > 0  # other threads of this process went on


def test_what_follows_an_answer_that_was_not_graded_in_time_is_graded(processes: Processes) -> None:
    backtracks = partial(re.fullmatch, EVIL)
    inputs = ["b", "a" * 40 + "b", "b"]
    assert [isinstance(result, Lost) for result in processes.map(backtracks, inputs, most_lost=1)] == [
        False,
        True,
        False,
    ]
    # One too many: what follows is not tried.
    assert [isinstance(result, Lost) for result in processes.map(backtracks, inputs)] == [False, True, True]


def test_an_answer_that_is_not_graded_in_time_is_worth_nothing_and_its_reason_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(isolation, "MAX_LOST", 1)  # of five, each takes two seconds and the start of a process
    noted: list[str] = []
    grader = parsed(GRADERS["numeric"], "numeric")
    # Looks for the greatest of a text, the grader and the sample, and comes no further than the text.
    backtracks = partial(max, "a" * 40 + "b", key=partial(re.fullmatch, EVIL))
    tools = GradingTools(note=lambda _level, line: noted.append(line))
    (grade,) = call_isolated(backtracks, grader, [Sample("4", {}, 7)], tools)
    assert grade == Grade(0.0, False, "the answer was not graded: it took longer than 2 s", in_time=False)
    assert noted == ["line 7: grader 'bounded' gave up an answer: it took longer than 2 s"]
    with pytest.raises(RewardTimeoutError, match="line 7: it took longer than 2 s on one answer"):
        call_isolated(backtracks, grader, [Sample("4", {}, 7)] * 3, tools)


def test_one_owner_leaves_processes_to_the_others() -> None:
    processes = Processes(2)
    backtracks = partial(processes.call, partial(re.fullmatch, EVIL))

    def for_owner(name: str, text: str) -> bool:
        owner.set(name)
        return is_lost(backtracks(text))

    try:
        with ThreadPoolExecutor(4) as threads:
            slow = [threads.submit(copy_context().run, for_owner, "acme", "a" * 40 + "b") for _ in range(3)]
            assert threads.submit(copy_context().run, for_owner, "umbrella", "b").result() is False
            # Two of the three at least have not had their turn.
            assert sum(asked.done() for asked in slow) <= 1
            assert all(asked.result() for asked in slow)
    finally:
        processes.close()


def test_an_answer_that_takes_too_much_memory_is_lost_alone(processes: Processes) -> None:
    lost, kept = processes.map(partial(operator.mul, "x"), [limits.PROCESS_MEMORY_BYTES, 2], most_lost=1)
    assert (lost, kept) == (Lost("took too much memory"), "xx")


def test_an_error_comes_out_as_it_was_and_the_process_goes_on(processes: Processes) -> None:
    with pytest.raises(ZeroDivisionError):
        processes.map(partial(operator.truediv, 1), [1, 0])
    assert processes.map(partial(operator.truediv, 1), [1]) == [1.0]


def test_a_process_that_somebody_ended_is_replaced(processes: Processes) -> None:
    # Any function of a module will do that tells one process from another.
    own_group = os.getpgid
    first = processes.call(own_group, 0)
    assert isinstance(first, int) and first != os.getpgid(0)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert processes.call(own_group, 0) not in (first, os.getpgid(0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (GRADERS["numeric"] | {"type": "numeric", "input": ANSWER * 10_000}, "at most 100,000 are read"),
        ({"type": "json_schema", "json_schema": {"required": [{"a": n} for n in range(9_000)]}}, "is not of type"),
        ({"type": "json_schema", "json_schema": {"enum": ["x" * limits.SCHEMA_CHARACTERS]}}, "more than 65,536"),
        ({"type": "json_schema", "json_schema": {"enum": ["x" * limits.GRADER_CHARACTERS]}}, "more than 2,000,000"),
        ({"type": "json_schema", "json_schema": {"required": [{"a": n} for n in range(15_000)]}}, "has more than"),
    ],
    ids=["template", "schema that is no schema", "schema", "grader", "many"],
)
def test_a_grader_that_is_too_large_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parsed(given)


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(limits.NESTING):
        schema = {"not": schema}
    with pytest.raises(InvalidRequestError, match="nests deeper than 100 levels"):
        parsed({"type": "json_schema", "json_schema": schema})


def test_a_template_that_amplifies_the_answer_gives_no_more_than_is_read() -> None:
    check = parsed(GRADERS["string_check"] | {"type": "string_check", "input": ANSWER * 2000})
    tracemalloc.start()
    try:
        (grade,) = grade_all(check, [Sample("x" * limits.ANSWER_CHARACTERS, {"answer": "4"})], GradingTools())
        _now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (grade.reward, grade.parsed) == (0.0, False) and "more than 200,000 characters" in str(grade.detail)
    assert most < 10 * limits.FILLED_CHARACTERS


def test_a_row_that_is_too_large_is_an_error_of_the_row() -> None:
    grader = parsed(GRADERS["string_check"], "string_check")
    with pytest.raises(RewardError, match="line 7: the row is too large: it has more than 1,000,000 characters"):
        grade_all(grader, [Sample("4", {"answer": "x" * (limits.ITEM_CHARACTERS + 1)}, 7)], GradingTools())
