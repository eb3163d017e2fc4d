"""Split tests of Python code into calls of the code under test and the values that it should return.

Calls and expected values must not meet in one process. Code that shares an interpreter with its assertions can always
forge a pass: it can read the expected value from a caller's frame, or return an object that is equal to everything.
"""

import ast
import builtins
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class UnreadableTestsError(Exception):
    """A row's tests are not Python. Control flow: becomes an error of the grader that names the line."""


@dataclass(frozen=True)
class Equation:
    """``expression`` is evaluated in the code's process; outside of it, its value is compared with ``expected``."""

    expression: str
    expected: Any


@dataclass(frozen=True)
class Script:
    """Any other test: it runs in another process than the code, whose ``functions`` are stubs that answer by value.

    ``modules`` are names that the script uses as imported modules. ``calls`` are its calls with literal arguments, as
    (function, arguments, named arguments), so that they can be answered before the script runs.
    """

    text: str
    functions: frozenset[str]
    modules: frozenset[str]
    calls: tuple[tuple[str, list[Any], dict[str, Any]], ...]


def split_asserts(tests: Iterable[str], setup: str) -> list[Equation | Script]:
    """Split MBPP's list of asserts. Raises UnreadableTestsError."""
    defined = _defined(_parse(setup))
    split: list[Equation | Script] = []
    for text in tests:
        statements = _parse(text).body
        if all(isinstance(statement, ast.Assert) for statement in statements):
            split += [_split(statement, defined) for statement in statements]
        else:
            split.append(_script(statements, defined))
    return split


def split_check(source: str, entry_point: str) -> list[Equation | Script]:
    """Split HumanEval's ``check(candidate)`` into its asserts; where it has other statements, it is one script.

    Raises:
        UnreadableTestsError: the source does not define it.
    """
    tree = _parse(source)
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks or len(checks[-1].args.args) != 1:
        raise UnreadableTestsError("they define no check(candidate)")
    check = checks[-1]
    preamble = [node for node in tree.body if node is not check]
    candidate = check.args.args[0].arg
    body = [statement for statement in check.body if not _does_nothing(statement)]
    if not all(isinstance(statement, ast.Assert) for statement in body):
        call = ast.parse(f"check({entry_point})").body
        return [_script([*tree.body, *call], frozenset())]
    defined = _defined(ast.Module(preamble, []))
    renamed = [_Rename(candidate, entry_point).visit(statement) for statement in body]
    return [_split(statement, defined, preamble) for statement in renamed]


def _parse(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise UnreadableTestsError(f"they are not Python: {exc}") from exc


def _does_nothing(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Assert(test=ast.Constant(value=value)):
            return bool(value)
    return False


def _split(statement: ast.stmt, defined: frozenset[str], preamble: list[ast.stmt] | None = None) -> Equation | Script:
    """An equation where one side of ``==`` is a literal and the other needs nothing that the preamble defines."""
    if isinstance(statement, ast.Assert):
        match statement.test:
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                for asked, wanted in ((left, right), (right, left)):
                    needs_preamble = preamble is not None and _names(asked) & defined
                    if _is_literal(wanted) and not _is_literal(asked) and not needs_preamble:
                        return Equation(ast.unparse(asked), ast.literal_eval(wanted))
    return _script([*(preamble or []), statement], defined)


def _script(statements: list[ast.stmt], defined: frozenset[str]) -> Script:
    module = ast.Module(statements, [])
    known = defined | _defined(module) | set(dir(builtins))
    functions, modules, calls = set(), set(), []
    for node in ast.walk(module):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name not in known:
                functions.add(name)
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                if None not in named and all(map(_is_literal, [*node.args, *named.values()])):
                    arguments = [ast.literal_eval(argument) for argument in node.args]
                    calls.append((name, arguments, {str(key): ast.literal_eval(x) for key, x in named.items()}))
            case ast.Attribute(value=ast.Name(id=name)) if name not in known:
                modules.add(name)
    # A function may be an argument, as in check(candidate): then the function that gets it calls it.
    handed_on = {
        argument.id
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        for argument in node.args
        if isinstance(argument, ast.Name) and argument.id not in known
    }
    text = "\n".join(ast.unparse(statement) for statement in statements)
    return Script(text, frozenset(functions | handed_on), frozenset(modules - functions), tuple(calls))


def _is_literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def _defined(module: ast.Module) -> frozenset[str]:
    """Every name that the statements bind, anywhere in them."""
    defined = set()
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                defined |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
            case ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
            case ast.arg(arg=name) | ast.ExceptHandler(name=str() as name):
                defined.add(name)
    return frozenset(defined)


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.copy_location(ast.Name(self._new, node.ctx), node) if node.id == self._old else node
