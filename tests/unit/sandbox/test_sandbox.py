"""The sandbox: what runs in it, how a run ends, and that one run leaves nothing to the next."""

import ast
import json
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhub.errors import SandboxUnavailableError
from zhub.sandbox import Limits, Program, Raised, Sandbox, Unreadable, Value
from zhub.sandbox.seccomp import ARCHITECTURES, SECCOMP
from zhub.sandbox.values import UnreadableValueError, decode, encode


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as made:
        yield made


def one(sandbox: Sandbox, expression: str, source: str = "", **variables: Any) -> Any:
    (result,) = sandbox.run(Program(source, [expression], variables)).results
    return result


def test_an_expression_sees_the_source_and_its_variables(sandbox: Sandbox) -> None:
    assert one(sandbox, "double(x['n'])", "def double(n): return 2 * n", x={"n": 21}) == Value(42)


def test_expressions_are_evaluated_in_turn_in_one_process(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("seen = []", ["seen.append(1)", "1 / 0", "seen"]))
    assert outcome.results == (Value(None), Raised("ZeroDivisionError: division by zero", None), Value([1]))


def test_nothing_is_left_for_the_next_program(sandbox: Sandbox) -> None:
    sandbox.run(Program("import json\njson.left = 1\nleft = 1"))
    assert one(sandbox, "hasattr(json, 'left') or 'left' in globals()", "import json") == Value(False)


def test_a_failing_source_says_where(sandbox: Sandbox) -> None:
    source = "def f():\n    raise KeyError('k')\n\nf()"
    assert sandbox.run(Program(source, ["1"])).failure == Raised("KeyError: 'k'", 2)


def test_a_source_that_is_not_python_says_where(sandbox: Sandbox) -> None:
    failure = sandbox.run(Program("x = 1\nx = = 2")).failure
    assert failure is not None and failure.line == 2 and failure.message.startswith("SyntaxError")


def test_an_error_in_a_library_is_placed_where_the_source_called_it(sandbox: Sandbox) -> None:
    result = one(sandbox, "f()", "import json\ndef f():\n    return json.loads('{')")
    assert isinstance(result, Raised) and result.line == 3


@pytest.mark.parametrize("expression", ["object()", "lambda: 1", "[iter([])]", "range(3)", "10 ** 5000"])
def test_what_is_not_plain_is_unreadable(sandbox: Sandbox, expression: str) -> None:
    assert isinstance(one(sandbox, expression), Unreadable)


def test_a_list_that_holds_itself_is_refused(sandbox: Sandbox) -> None:
    assert isinstance(one(sandbox, "[x := [], x.append(x)][0]"), Raised)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("collections.Counter('aab')", {"a": 2, "b": 1}),
        ("collections.namedtuple('P', 'x y')(1, 2)", (1, 2)),
        ("type('L', (list,), {'__eq__': lambda s, o: True})([1])", [1]),
        ("enum.IntEnum('E', 'A').A", 1),
    ],
)
def test_a_subclass_arrives_as_its_builtin_content(sandbox: Sandbox, expression: str, value: object) -> None:
    result = one(sandbox, expression, "import collections, enum")
    assert result == Value(value) and type(result.value) is type(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4)
    | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    | st.sets(st.integers() | st.text(), max_size=4)
    | st.frozensets(st.integers() | st.text(), max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(plain)
def test_a_plain_value_arrives_as_it_left(value: object) -> None:
    arrived = decode(json.loads(json.dumps(encode(value))))
    assert arrived == value and repr(type(arrived)) == repr(type(value))


@given(st.recursive(st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8))
def test_any_tree_is_a_value_or_refused(tree: object) -> None:
    try:
        decode(tree)
    except UnreadableValueError:
        return


@settings(max_examples=25)
@given(value=plain)
def test_values_pass_through_a_real_process(value: object) -> None:
    with_sandbox = SHARED.get()
    expression = f"(lambda inf, nan: {value!r})(float('inf'), float('nan'))"
    assert one(with_sandbox, expression) == Value(value)


class _Shared:
    """A sandbox for hypothesis, which wants no fixtures of a function's scope."""

    def __init__(self) -> None:
        self.made: Sandbox | None = None

    def get(self) -> Sandbox:
        self.made = self.made or Sandbox(workers=1)
        return self.made


SHARED = _Shared()


@pytest.fixture(scope="module", autouse=True)
def close_shared() -> Iterator[None]:
    yield
    if SHARED.made is not None:
        SHARED.made.close()


def test_equal_programs_give_equal_values_in_every_process() -> None:
    program = Program("import random", ["random.random()", "list({'a', 'b', 'c', 'd'})", "hash('a')"])
    seen = []
    for _ in range(2):
        with Sandbox(workers=1) as sandbox:
            seen += sandbox.run_many([program, program])
    assert all(outcome == seen[0] for outcome in seen)


def test_classes_work_as_they_do_in_a_module(sandbox: Sandbox) -> None:
    source = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    assert one(sandbox, "P(3).x", source) == Value(3)


@pytest.mark.parametrize("module", ["re", "heapq", "typing", "statistics", "decimal", "hashlib", "zlib", "datetime"])
def test_the_standard_library_can_be_imported(sandbox: Sandbox, module: str) -> None:
    assert sandbox.run(Program(f"import {module}")).failure is None


def test_no_installed_package_can_be_imported(sandbox: Sandbox) -> None:
    failure = sandbox.run(Program("import pydantic")).failure
    assert failure is not None and failure.message.startswith("ModuleNotFoundError")


def test_an_endless_loop_is_a_timeout_that_keeps_what_was_found(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("def f():\n while True: pass", ["1", "f()"], limits=Limits(wall_s=0.3)))
    assert (outcome.ending, outcome.results) == ("timeout", (Value(1),))


def test_too_much_memory_is_an_error_of_the_program(sandbox: Sandbox) -> None:
    assert sandbox.run(Program("bytearray(10 ** 9)")).failure == Raised("MemoryError", 1)


def test_too_much_output_is_cut_off(sandbox: Sandbox) -> None:
    assert sandbox.run(Program("", ["'x' * 10 ** 6"])).ending == "output"


def test_leaving_early_is_no_success(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("import os\nos._exit(0)", ["1"]))
    assert (outcome.ending, outcome.detail) == ("died", "it left with exit code 0")


def test_a_crash_is_told_by_its_signal(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("import ctypes\nctypes.string_at(0)"))
    assert (outcome.ending, outcome.detail) == ("died", "killed by SIGSEGV")


def test_outcomes_come_in_the_order_of_the_programs() -> None:
    with Sandbox(workers=2) as sandbox:
        outcomes = sandbox.run_many([Program("", [str(number)]) for number in range(40)])
    assert [outcome.results for outcome in outcomes] == [(Value(number),) for number in range(40)]


def test_many_threads_may_share_a_sandbox() -> None:
    found: dict[int, list[Any]] = {}
    with Sandbox(workers=2) as sandbox:

        def work(start: int) -> None:
            found[start] = sandbox.run_many([Program("", [str(start + place)]) for place in range(10)])

        threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for start, outcomes in found.items():
        assert [outcome.results[0].value for outcome in outcomes] == [start + place for place in range(10)]


def zygotes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "zhub.sandbox" in " ".join(child.cmdline())]


def test_a_dead_zygote_is_replaced() -> None:
    before = {process.pid for process in zygotes()}
    with Sandbox(workers=1) as sandbox:
        (zygote,) = [process for process in zygotes() if process.pid not in before]
        zygote.kill()
        zygote.wait(5)
        assert one(sandbox, "1") == Value(1)


def test_a_zygote_that_dies_under_a_program_takes_its_child_along() -> None:
    before = {process.pid for process in zygotes()}
    with Sandbox(workers=1) as sandbox:
        (zygote,) = [process for process in zygotes() if process.pid not in before]
        outcomes: list[Any] = []
        program = Program("import time\ntime.sleep(60)", limits=Limits(wall_s=1.5))
        thread = threading.Thread(target=lambda: outcomes.append(sandbox.run(program)))
        thread.start()
        while not (children := zygote.children()):
            pass
        zygote.kill()
        gone, alive = psutil.wait_procs(children, timeout=5)
        thread.join()
    assert (len(gone), alive) == (1, [])
    assert outcomes[0].ending == "timeout"  # of the second try, on another zygote


def test_closing_leaves_no_process() -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    sandbox = Sandbox(workers=2)
    sandbox.run_many([Program("")] * 4)
    sandbox.close()
    sandbox.close()
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    with pytest.raises(SandboxUnavailableError, match="closed"):
        sandbox.run(Program(""))


ORPHANED = """
import os
from zhub.sandbox import Program, Sandbox
import psutil
sandbox = Sandbox(workers=1)
print([child.pid for child in psutil.Process().children()], flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_owner_leaves_no_process() -> None:
    owner = subprocess.run([sys.executable, "-c", ORPHANED], capture_output=True, text=True, timeout=60)
    for pid in ast.literal_eval(owner.stdout):
        try:
            psutil.Process(pid).wait(5)
        except psutil.NoSuchProcess:
            continue


# A kernel without Landlock, as near as it gets: the call is refused as such a kernel refuses it.
WITHOUT = """
import ctypes, errno, struct, platform, sys
from zhub.sandbox import seccomp
from zhub.errors import SandboxUnavailableError
number = int(sys.argv[1])
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x00050000 | int(sys.argv[2])), (6, 0, 0, 0x7FFF0000)]
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
seccomp.install(platform.machine(), b"".join(struct.pack("<HBBI", *one) for one in code))
from zhub.sandbox import Sandbox
try:
    Sandbox(workers=1)
except SandboxUnavailableError as exc:
    print(exc)
"""


@pytest.mark.parametrize(
    ("call", "failure", "remedy"),
    [(444, 38, "Linux 5.13"), (446, 1, "seccomp profile"), (317, 22, "seccomp profile")],
    ids=["no Landlock", "Landlock refuses", "no seccomp"],
)
def test_where_the_kernel_confines_nothing_nothing_is_run(call: int, failure: int, remedy: str) -> None:
    if call == SECCOMP[0]:
        call = SECCOMP[ARCHITECTURES[platform.machine()][1]]
    asked = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(call), str(failure)], capture_output=True, text=True, timeout=60
    )
    assert "The sandbox cannot run here." in asked.stdout and remedy in asked.stdout, asked.stderr


def test_what_a_program_prints_comes_with_its_outcome(sandbox: Sandbox) -> None:
    source = "import sys\nprint('out', 'Ω')\ndef f():\n    print('err\\n', file=sys.stderr)\n    return 7"
    outcome = sandbox.run(Program(source, ["f()"]))
    assert (outcome.results, outcome.printed) == ((Value(7),), "out Ω\nerr\n\n")


@pytest.mark.parametrize(("last", "ending"), [("while True: pass", "timeout"), ("import os\nos._exit(3)", "died")])
def test_a_program_that_does_not_come_to_its_end_has_still_said_what_it_printed(
    sandbox: Sandbox, last: str, ending: str
) -> None:
    outcome = sandbox.run(Program(f"print('so far')\n{last}", limits=Limits(wall_s=0.5)))
    assert (outcome.ending, outcome.printed) == (ending, "so far\n")


@pytest.mark.parametrize("text", ["x", "Ω" * 1000, "\x01" * 100, "\U0001f40d", "\ud800"], ids=ascii)
def test_a_program_that_prints_without_end_gets_its_results_nevertheless(sandbox: Sandbox, text: str) -> None:
    source = f"for _ in range(20000): print({text!r})"
    outcome = sandbox.run(Program(source, ["'v' * 60000"], limits=Limits(wall_s=20)))
    assert outcome.ending == "finished" and outcome.results == (Value("v" * 60000),)
    assert 1 < len(outcome.printed) < 20_000
