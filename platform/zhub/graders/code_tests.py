"""Rewards by tests of Python code that a model wrote. Expected values never enter the process that runs the code.

Most tests are equations, ``assert f(1) == 2``: the left side is evaluated in the code's process and compared outside of
it. Every other test runs as a script in a process of its own, where the code's functions are stubs. When the script
calls a stub whose answer is not known yet, it ends; the code answers the call by value in its own process, and the
script runs again with that answer, until no call is open.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zhub.errors import RewardError
from zhub.graders.fenced_code import code_of
from zhub.graders.isolation import call_isolated
from zhub.graders.limits import TESTS
from zhub.graders.python_source import sandbox_of
from zhub.graders.samples import Grade, GradingTools, Sample
from zhub.graders.splitting import Equation, Script, UnreadableTestsError, split_asserts, split_check
from zhub.graders.templates import PLACEHOLDER, fill, look_up
from zhub.graders.types import CodeTestsGrader
from zhub.sandbox import Limits, Outcome, Program, Raised, Unreadable, Value
from zhub.sandbox.values import decode, encode

# A script that asks more than this fails; HumanEval's longest loops ask about a hundred times.
MAX_QUESTIONS = 200

# What runs a script. It holds expected values and answers, and nothing of the code under test.
STUBS = '''
import builtins, importlib, json
from zhub.sandbox.values import decode, encode

class Unanswered(BaseException):
    """Not an Exception, so that a test that expects one does not swallow it."""

def stub(name, answers):
    def call(*arguments, **named):
        question = json.dumps(encode([name, list(arguments), named]))
        if question not in answers:
            raise Unanswered(question)
        kind, content = answers[question]
        if kind == "value":
            return decode(content)
        kind_of_error = getattr(builtins, content, None)
        is_error = isinstance(kind_of_error, type) and issubclass(kind_of_error, Exception)
        raise kind_of_error() if is_error else Exception(content)
    return call

def run(setup, script, functions, modules, answers):
    namespace = {"__name__": "tests"}
    for name in modules:
        try:
            namespace[name] = importlib.import_module(name)
        except ImportError:
            pass
    namespace.update((name, stub(name, answers)) for name in functions)
    try:
        exec(setup, namespace)
        namespace.update((name, stub(name, answers)) for name in functions)
        exec(script, namespace)
    except Unanswered as unanswered:
        return ["question", unanswered.args[0]]
    except BaseException as failure:
        return ["failed", type(failure).__name__]
    return ["passed", ""]
'''


@dataclass
class _Run:
    """One answer's code with its tests, and for each whether it passed; None while that is undecided."""

    code: str
    setup: str
    tests: list[Equation | Script]
    passed: list[bool | None]
    # Calls by their question, as the stubs write it: ["value", encoded] or ["raised", name of the exception].
    answers: dict[str, list[Any]] = field(default_factory=dict)
    asked: int = 0

    def program(self, expressions: list[str], limits: Limits) -> Program:
        return Program(f"{self.code}\n{self.setup}", expressions, limits=limits)


def grade_code(grader: CodeTestsGrader, samples: Sequence[Sample], tools: GradingTools) -> list[Grade]:
    sandbox = sandbox_of(grader.name, tools)
    limits = Limits(wall_s=grader.timeout_s)
    prepared = call_isolated(_prepare, grader, samples, tools)
    runs = [run for run in prepared if isinstance(run, _Run)]
    outcomes = sandbox.run_many([run.program(_first_expressions(run), limits) for run in runs])
    for run, outcome in zip(runs, outcomes, strict=True):
        _take_first(run, outcome)
    while True:
        open_scripts = [(run, index) for run in runs for index, passed in enumerate(run.passed) if passed is None]
        if not open_scripts:
            break
        questions: dict[int, set[str]] = defaultdict(set)
        stages = sandbox.run_many([_script_program(run, index, limits) for run, index in open_scripts])
        for (run, index), outcome in zip(open_scripts, stages, strict=True):
            if (question := _take_script(run, index, outcome)) is not None:
                questions[runs.index(run)].add(question)
        asked = [(runs[place], sorted(of_run)) for place, of_run in questions.items()]
        outcomes = sandbox.run_many(
            [run.program([_expression(question) for question in of_run], limits) for run, of_run in asked]
        )
        for (run, of_run), outcome in zip(asked, outcomes, strict=True):
            _take_answers(run, of_run, outcome)
    return [_grade(grader, run) if isinstance(run, _Run) else run for run in prepared]


def _prepare(grader: CodeTestsGrader, sample: Sample) -> _Run:
    setup = fill(grader.name, grader.setup, sample) if grader.setup is not None else ""
    tests = look_up(grader.name, grader.tests, sample)
    try:
        if grader.entry_point is not None:
            split = split_check(str(tests), fill(grader.name, grader.entry_point, sample))
        elif isinstance(tests, str):
            split = split_asserts([tests], setup)
        elif isinstance(tests, list) and all(isinstance(test, str) for test in tests):
            split = split_asserts(tests, setup)
        else:
            raise UnreadableTestsError("they are neither text nor a list of texts")
    except (UnreadableTestsError, RecursionError) as exc:
        raise RewardError(
            grader.name, f"{sample.where}the tests of this row cannot be read: {exc}. Correct the row."
        ) from exc
    if not split:
        raise RewardError(grader.name, f"{sample.where}this row has no tests. Add some, or drop it.")
    if len(split) > TESTS:
        raise RewardError(grader.name, f"{sample.where}this row has {len(split):,} tests; at most {TESTS:,} are run.")
    return _Run(_code(grader, sample), setup, split, [None] * len(split))


def _code(grader: CodeTestsGrader, sample: Sample) -> str:
    """The code is taken out of the answer before the template joins it to the row's: what is fenced stands alone."""
    code = fill(grader.name, grader.input, replace(sample, output_text=code_of(sample.output_text)))
    # A text within an answer in JSON may be fenced too.
    return code_of(code) if PLACEHOLDER.fullmatch(grader.input.strip()) else code


def _first_expressions(run: _Run) -> list[str]:
    """The equations' left sides, then the calls that scripts are known to make."""
    return [test.expression for test in run.tests if isinstance(test, Equation)] + [
        _expression(question) for question in _known_questions(run)
    ]


def _known_questions(run: _Run) -> list[str]:
    calls = [call for test in run.tests if isinstance(test, Script) for call in test.calls]
    return list(dict.fromkeys(json.dumps(encode([name, arguments, named])) for name, arguments, named in calls))


def _expression(question: str) -> str:
    """The source of a question's call. Infinity and NaN have no literals, so they are passed as names."""
    name, arguments, named = decode(json.loads(question))
    return f"(lambda inf, nan: {name}(*{arguments!r}, **{named!r}))(float('inf'), float('nan'))"


def _take_first(run: _Run, outcome: Outcome) -> None:
    results = list(outcome.results)
    equations = [index for index, test in enumerate(run.tests) if isinstance(test, Equation)]
    for place, index in enumerate(equations):
        test = run.tests[index]
        assert isinstance(test, Equation)
        result = results[place] if place < len(results) else None
        # The result has builtin types only, so that == is theirs: the code under test cannot override it.
        run.passed[index] = isinstance(result, Value) and bool(result.value == test.expected)
    if outcome.failure is not None or outcome.ending != "finished":
        run.passed = [bool(passed) for passed in run.passed]
    _take_results(run, _known_questions(run), results[len(equations) :])


def _take_answers(run: _Run, questions: list[str], outcome: Outcome) -> None:
    _take_results(run, questions, list(outcome.results))
    if outcome.ending != "finished" or run.asked > MAX_QUESTIONS:
        run.passed = [bool(passed) for passed in run.passed]


def _take_results(run: _Run, questions: list[str], results: list[Value | Unreadable | Raised]) -> None:
    for question, result in zip(questions, results, strict=False):
        run.asked += 1
        match result:
            case Value(value=value):
                run.answers[question] = ["value", encode(value)]
            case Raised(message=message):
                run.answers[question] = ["raised", message.partition(":")[0]]
            case Unreadable():
                run.answers[question] = ["raised", "TypeError"]


def _script_program(run: _Run, index: int, limits: Limits) -> Program:
    script = run.tests[index]
    assert isinstance(script, Script)
    variables = {
        "setup": run.setup,
        "script": script.text,
        "functions": sorted(script.functions),
        "modules": sorted(script.modules),
        "answers": run.answers,
    }
    return Program(STUBS, ["run(setup, script, functions, modules, answers)"], variables, limits)


def _take_script(run: _Run, index: int, outcome: Outcome) -> str | None:
    """Write down how the script ended, or return the call that it needs an answer to."""
    match outcome.results:
        case (Value(value=["question", str(question)]),) if question not in run.answers and run.passed[index] is None:
            return question
        case (Value(value=["passed", _]),):
            run.passed[index] = True
        case _:
            run.passed[index] = False
    return None


def _grade(grader: CodeTestsGrader, run: _Run) -> Grade:
    passed = sum(map(bool, run.passed))
    scripts = sum(isinstance(test, Script) for test in run.tests)
    detail = f"{passed} of {len(run.tests)} tests passed" + (f", {scripts} of them scripts" if scripts else "")
    share = passed / len(run.tests)
    return Grade(
        share if grader.partial_credit else float(passed == len(run.tests)),
        parsed=bool(run.code.strip()),
        detail=detail,
    )
