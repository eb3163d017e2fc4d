"""Graders that run code: a user's own, and what a model wrote."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zhub.errors import RewardError, RewardNotANumberError, RewardTimeoutError, SandboxUnavailableError
from zhub.graders import CodeTestsGrader, Grade, GradingTools, PythonGrader, Sample, grade, grade_all
from zhub.graders.splitting import Equation, Script, split_asserts, split_check
from zhub.sandbox import Sandbox

DATA = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture(scope="module")
def tools() -> Iterator[GradingTools]:
    with Sandbox(workers=2) as sandbox:
        yield GradingTools(sandbox)


def python(source: str, **more: Any) -> PythonGrader:
    return PythonGrader(type="python", name="p", source=source, **more)


def one(grader: PythonGrader | CodeTestsGrader, text: str, item: dict[str, Any], tools: GradingTools) -> Grade:
    (found,) = grade_all(grader, [Sample(text, item, 17)], tools)
    return found


def test_a_users_function_sees_the_sample_and_the_row(tools: GradingTools) -> None:
    source = (
        "import re\n"
        "def grade(sample, item):\n"
        "    return len(re.findall('a', sample['output_text'])) / item['n'] + (sample['output_json'] is None)\n"
    )
    assert one(python(source), "banana", {"n": 6}, tools).reward == 1.5


def test_what_a_function_prints_is_noted_with_the_row_and_before_its_error(tools: GradingTools) -> None:
    noted: list[tuple[str, str]] = []
    source = "def grade(sample, item):\n    print('saw', item['n'])\n    return 1 / item['n']"
    samples = [Sample("", {"n": n}, line) for line, n in ((1, 1), (1, 1), (2, 0), (3, 0))]
    with pytest.raises(RewardError, match="line 2: it raised"):
        grade_all(python(source), samples, replace(tools, note=lambda level, line: noted.append((level, line))))
    assert [(level, line.partition(". Correct")[0]) for level, line in noted] == [
        ("info", "line 1: grader 'p' printed:\nsaw 1"),
        ("error", "grader 'p': line 2: it raised in line 3 of its source: ZeroDivisionError: division by zero"),
        ("error", "line 2: grader 'p' printed:\nsaw 0"),
        ("error", "grader 'p': line 3: it raised in line 3 of its source: ZeroDivisionError: division by zero"),
        ("error", "line 3: grader 'p' printed:\nsaw 0"),
    ]


def test_of_a_batch_that_prints_much_a_little_is_noted(tools: GradingTools) -> None:
    noted: list[str] = []
    source = "def grade(sample, item):\n    print('x' * 2500)\n    return 1.0"
    samples = [Sample("", {}, line) for line in range(1, 21)]
    grade_all(python(source), samples, replace(tools, note=lambda _level, line: noted.append(line)))
    assert len(noted) == 5 and all(2000 < len(line) < 2100 and line.endswith(" …") for line in noted)


def test_answers_that_are_json_come_parsed(tools: GradingTools) -> None:
    source = "def grade(sample, item): return sample['output_json']['n']"
    assert one(python(source), '{"n": 3}', {}, tools).reward == 3.0


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("return item['missing']", RewardError, "line 17: it raised in line 2 of its source: KeyError: 'missing'"),
        ("return '1.0'", RewardNotANumberError, "returned the str '1.0', expected a finite number"),
        ("return None", RewardNotANumberError, "returned nothing"),
        ("pass", RewardNotANumberError, "returned nothing"),
        ("return float('nan')", RewardNotANumberError, "returned nan"),
        ("return float('-inf')", RewardNotANumberError, "returned -inf"),
        ("return 10 ** 400", RewardNotANumberError, "an integer too large"),
        ("return object()", RewardNotANumberError, "returned a object"),
        ("return 'x' * 10 ** 6", RewardNotANumberError, "more than a number"),
        ("while True: pass", RewardTimeoutError, "line 17: it took longer than 0.5 s and was stopped"),
        ("import os; os._exit(0)", RewardError, "its process ended early: it left with exit code 0"),
        ("return bytearray(10 ** 10)[0]", RewardError, "in line 2 of its source: MemoryError"),
        ("raise SystemExit(0)", RewardError, "SystemExit: 0"),
        ("raise ValueError('\\ud800\\0')", RewardError, "ValueError: \\ud800\\x00."),
        ("import requests", RewardError, "ModuleNotFoundError: No module named 'requests'"),
    ],
)
def test_a_users_function_that_fails_is_an_error_with_its_place(
    body: str, error: type[RewardError], message: str, tools: GradingTools
) -> None:
    with pytest.raises(RewardError) as failed:
        one(python(f"def grade(sample, item):\n    {body}", timeout_s=0.5), "x", {}, tools)
    assert type(failed.value) is error and message in str(failed.value)
    assert "grader 'p'" in str(failed.value)


def test_whole_and_true_are_numbers(tools: GradingTools) -> None:
    assert one(python("def grade(sample, item): return item['n'] > 2"), "", {"n": 3}, tools).reward == 1.0


def test_many_answers_are_graded_in_order(tools: GradingTools) -> None:
    grader = python("def grade(sample, item): return float(sample['output_text'])")
    found = grade_all(grader, [Sample(str(number), {}) for number in range(30)], tools)
    assert [grade.reward for grade in found] == list(range(30))


def test_without_a_sandbox_no_code_is_run() -> None:
    with pytest.raises(SandboxUnavailableError, match="Grader 'p' runs code"):
        grade(python("def grade(sample, item): return 1"), "", {})


def code_tests(**more: Any) -> CodeTestsGrader:
    return CodeTestsGrader(type="code_tests", name="t", tests="{{item.tests}}", **more)


ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert add([1], [2]) == [1, 2]"]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        (ADD, 1),
        (f"Here it is:\n```python\n{ADD}```\nHave fun!", 1),
        (f"```\n{ADD}\n```", 1),
        (f"```python\n{ADD}", 1),
        ("def add(a, b):\n    return a - b\n", 0),
        ("def add(a, b): return a + b if isinstance(a, int) else None", 0),
        ("def plus(a, b): return a + b", 0),
        ("def add(a, b) return a + b", 0),
        ("I cannot do that.", 0),
        ("", 0),
        ("while True: pass", 0),
        (ADD + "import os\nos._exit(0)", 0),
        (ADD + "raise SystemExit(0)", 0),
    ],
)
def test_code_is_worth_what_its_tests_say(answer: str, reward: float, tools: GradingTools) -> None:
    assert one(code_tests(timeout_s=0.7), answer, {"tests": TESTS}, tools).reward == reward


def test_partial_credit_is_the_share_that_passed(tools: GradingTools) -> None:
    answer = "def add(a, b):\n    while isinstance(a, list): pass\n    return a + b\n"
    found = one(code_tests(partial_credit=True, timeout_s=0.7), answer, {"tests": TESTS}, tools)
    assert found == Grade(2 / 3, detail="2 of 3 tests passed")


def test_an_empty_answer_is_not_parsed(tools: GradingTools) -> None:
    assert not one(code_tests(), "", {"tests": TESTS}, tools).parsed


# Programs that try to pass without solving. The last ones know how the values travel.
CHEATS = {
    "an object equal to everything": (
        "class E:\n  def __eq__(self, other): return True\n  def __hash__(self): return 0\ndef add(a, b): return E()"
    ),
    "a subclass equal to everything": (
        "class E(int):\n  def __eq__(self, other): return True\n  __hash__ = int.__hash__\ndef add(a, b): return E()"
    ),
    "expected values in a caller's frame": (
        "import sys\ndef add(a, b):\n  f = sys._getframe()\n  while f:\n"
        "    for v in f.f_locals.values():\n      if v == 3 and v is not a and v is not b: return v\n    f = f.f_back\n"
    ),
    "expected values in memory": (
        "import gc\ndef add(a, b):\n  for o in gc.get_objects():\n"
        "    if isinstance(o, list) and len(o) == 3 and o[0] == 3: return o.pop(0)\n"
    ),
    "asserts made harmless": (
        "import builtins\nbuiltins.AssertionError = type('A', (Exception,), {})\ndef add(a, b): pass"
    ),
    "comparison patched": (
        "import json, operator\nimport zhub.sandbox.values as v\nv.encode = lambda value: 3\ndef add(a, b): return 7"
    ),
    "results written beforehand": (
        "import os\nlines = b'[\"loaded\"]\\n' + b'[\"value\",true]\\n' * 3 + b'[\"done\"]\\n'\n"
        "for fd in range(3, 64):\n  try: os.write(fd, lines)\n  except OSError: pass\n"
        "os._exit(0)"
    ),
    "a clean exit": "import os\ndef add(a, b): os._exit(0)",
    "the tests' own names": "def add(a, b): return 3\nadd.__eq__ = True\n__builtins__['all'] = lambda x: True",
}


@pytest.mark.parametrize("name", CHEATS)
def test_code_that_forges_a_pass_is_worth_nothing(name: str, tools: GradingTools) -> None:
    item = {"tests": [*TESTS, "assert abs(add(1.5, 1) - 2.5) < 1e-9", "assert add(2, 2) > 3"]}
    assert one(code_tests(timeout_s=1), CHEATS[name], item, tools).reward == 0


@pytest.mark.parametrize(
    "test",
    [
        "import math\nassert math.isclose(area(2), 12.566, rel_tol=0.001)",
        "assert math.isclose(area(2), 12.566, rel_tol=0.001)",
        "assert area(1) < area(2)",
        "assert area(2) != -5",
        "assert not area(0)",
        "assert area(2) == 4 * math.pi",
        "assert isinstance(area(2), float)",
        "x = 2\nassert round(area(x), 2) == 12.57",
        "assert all(area(r) >= 0 for r in range(5))",
        "try:\n    area('x')\n    assert False\nexcept TypeError:\n    pass",
    ],
)
def test_tests_of_other_shapes_see_what_the_code_answers(test: str, tools: GradingTools) -> None:
    right = "import math\ndef area(r): return math.pi * r ** 2"
    wrong = "def area(r): return -5"
    rewards = [one(code_tests(), answer, {"tests": [test]}, tools).reward for answer in (right, wrong)]
    assert rewards == [1, 0]


def test_a_script_that_asks_without_end_fails(tools: GradingTools) -> None:
    script = "n = 0\nwhile f(n) >= 0: n += 1"
    assert one(code_tests(), "def f(n): return n", {"tests": [script]}, tools).reward == 0


def test_setup_is_run_with_the_code(tools: GradingTools) -> None:
    item = {"tests": ["assert total(tree) == 3"], "setup": "tree = Node(1, Node(2))"}
    answer = (
        "class Node:\n  def __init__(self, v, next=None): self.v, self.next = v, next\n"
        "def total(n): return n.v + total(n.next) if n else 0"
    )
    assert one(code_tests(setup="{{item.setup}}"), answer, item, tools).reward == 1


CHECK = """
METADATA = {"author": "x"}

def check(candidate):
    assert candidate([1.0, 2.0], 0.5) == False
    assert candidate([1.0, 1.2], 0.5) == True, "close"
    assert abs(candidate([], 1) - 0) < 1e-6
    assert True, "done"
"""
LOOP = """
def check(candidate):
    import random
    rng = random.Random(7)
    for _ in range(30):
        n = rng.randint(0, 100)
        assert candidate(n) == n * n, "square"
"""


@pytest.mark.parametrize(
    ("tests", "entry_point", "right", "wrong"),
    [
        (
            CHECK,
            "near",
            "def near(n, t): return any(abs(a - b) < t for i, a in enumerate(n) for b in n[i + 1:])",
            "def near(n, t): return True",
        ),
        (LOOP, "square", "def square(n): return n * n", "def square(n): return n * n if n % 3 else 0"),
    ],
    ids=["asserts", "a loop"],
)
def test_humanevals_check_is_run(tests: str, entry_point: str, right: str, wrong: str, tools: GradingTools) -> None:
    grader = code_tests(entry_point="{{item.entry_point}}")
    item = {"tests": tests, "entry_point": entry_point}
    assert [one(grader, answer, item, tools).reward for answer in (right, wrong)] == [1, 0]


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        (["assert f(1) =="], "not Python"),
        ([f"assert f(1{' + 1' * 3000}) == 1"], "recursion"),
        ([], "has no tests"),
        (7, "neither text nor a list"),
        ([1], "neither text"),
    ],
)
def test_tests_that_cannot_be_run_are_an_error_of_the_row(tests: Any, message: str, tools: GradingTools) -> None:
    with pytest.raises(RewardError, match="line 17: ") as failed:
        one(code_tests(), ADD, {"tests": tests}, tools)
    assert message in str(failed.value)


def test_the_expected_value_is_on_neither_side_of_what_is_evaluated() -> None:
    (equation,) = split_asserts(["assert f((1, 2)) == [3, 'x']"], "")
    assert equation == Equation("f((1, 2))", [3, "x"])
    (turned,) = split_asserts(["assert {4} == f(1)"], "")
    assert turned == Equation("f(1)", {4})


def test_what_is_no_equation_is_a_script_with_the_functions_it_asks() -> None:
    (script,) = split_asserts(["assert math.isclose(f(2, k=[1]), g(x), rel_tol=0.1)"], "x = 1")
    assert isinstance(script, Script)
    assert (sorted(script.functions), sorted(script.modules)) == (["f", "g"], ["math"])
    assert script.calls == (("f", [2], {"k": [1]}),)


def test_a_check_of_asserts_is_split_and_renamed() -> None:
    tests = split_check(CHECK, "near")
    assert tests[0] == Equation("near([1.0, 2.0], 0.5)", False)
    assert [type(test) for test in tests] == [Equation, Equation, Script]


@pytest.mark.parametrize("body", ["    return math.sqrt(x)", "def root(x):\n    return math.sqrt(x)"])
@pytest.mark.parametrize("form", ["{}", "```python\n{}\n```", "Here you are:\n```\n{}\n```\nIt uses math."])
def test_a_fenced_answer_keeps_the_imports_of_the_prompt_that_it_continues(
    body: str, form: str, tools: GradingTools
) -> None:
    grader = code_tests(input="{{item.prompt}}{{sample.output_text}}", entry_point="{{item.entry_point}}")
    item = {
        "prompt": 'import math\n\ndef root(x):\n    """The root."""\n',
        "tests": "def check(candidate):\n    assert candidate(4) == 2.0\n",
        "entry_point": "root",
    }
    assert one(grader, form.format(body), item, tools).reward == 1


def test_code_in_an_answer_of_json_may_be_fenced(tools: GradingTools) -> None:
    answer = json.dumps({"code": f"```python\n{ADD}```"})
    assert one(code_tests(input="{{sample.output_json.code}}"), answer, {"tests": TESTS}, tools).reward == 1


@pytest.fixture(scope="module")
def mbpp() -> list[dict[str, Any]]:
    path = DATA / "mbpp.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_reference_solution_of_mbpp_passes_its_tests(mbpp: list[dict[str, Any]], tools: GradingTools) -> None:
    grader = CodeTestsGrader(
        type="code_tests", name="mbpp", tests="{{item.test_list}}", setup="{{item.test_setup_code}}", timeout_s=20
    )
    found = grade_all(grader, [Sample(row["code"], row) for row in mbpp], tools)
    failed = {row["task_id"]: one.detail for row, one in zip(mbpp, found, strict=True) if one.reward < 1}
    assert failed == {}


def test_a_solution_of_another_problem_of_mbpp_passes_none(mbpp: list[dict[str, Any]], tools: GradingTools) -> None:
    grader = CodeTestsGrader(
        type="code_tests", name="mbpp", tests="{{item.test_list}}", setup="{{item.test_setup_code}}"
    )
    pairs = list(zip(mbpp[:150], mbpp[1:151], strict=True))
    found = grade_all(grader, [Sample(other["code"], row) for row, other in pairs], tools)
    assert sum(one.reward for one in found) == 0


def test_nearly_every_test_of_mbpp_is_an_equation(mbpp: list[dict[str, Any]]) -> None:
    tests = [test for row in mbpp for test in split_asserts(row["test_list"], row["test_setup_code"])]
    assert sum(isinstance(test, Equation) for test in tests) / len(tests) > 0.99
