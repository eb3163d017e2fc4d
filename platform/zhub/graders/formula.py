"""The formulas of ``multi`` graders: arithmetic over named numbers, read as a syntax tree, never evaluated.

Numbers, names, ``+ - * / **`` (also written ``^``), and min, max, abs, floor, ceil, exp, sqrt, log. Everything is
computed in floats, so no power grows without bounds.
"""

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping

from zhub.suggestions import did_you_mean

# An operation within operations counts one more. Each takes a call of Python's, of which a thread has about a thousand.
MAX_DEPTH = 200

FUNCTIONS: dict[str, tuple[Callable[..., float], int | None]] = {  # None: one argument or more
    "min": (min, None),
    "max": (max, None),
    "abs": (abs, 1),
    "floor": (math.floor, 1),
    "ceil": (math.ceil, 1),
    "exp": (math.exp, 1),
    "sqrt": (math.sqrt, 1),
    "log": (math.log, 1),
}
OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}


def check(formula: str, names: Collection[str]) -> None:
    """Raise ValueError, with what is wrong, unless ``evaluate`` can compute the formula from numbers of these names."""
    used: set[str] = set()
    _walk(_parse(formula), names, used, MAX_DEPTH)
    for name in names:
        if name not in used:
            raise ValueError(f"the formula {formula!r} does not use the grader '{name}': use it or leave it out")


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """Compute a formula that passed ``check``.

    Raises:
        ArithmeticError, ValueError: it has no value there, such as a division by zero or the logarithm of 0.
    """
    return float(_compute(_parse(formula), values))


def _parse(formula: str) -> ast.expr:
    try:
        # The dialect writes powers with ^, which binds more weakly than + in Python.
        return ast.parse(formula.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise ValueError(f"the formula {formula!r} cannot be read") from exc


def _walk(node: ast.expr, names: Collection[str], used: set[str], depth: int) -> None:
    if depth == 0:
        raise ValueError(f"a formula has at most {MAX_DEPTH} operations within each other")
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            pass
        case ast.Name(id=name):
            if name not in names:
                near = did_you_mean(name, names)
                raise ValueError(f"the formula names '{name}', which is no grader.{near} There are {', '.join(names)}")
            used.add(name)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _walk(operand, names, used, depth - 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            _walk(left, names, used, depth - 1)
            _walk(right, names, used, depth - 1)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in FUNCTIONS:
            wanted = FUNCTIONS[name][1]
            if wanted is not None and len(arguments) != wanted:
                raise ValueError(f"{name} takes {wanted} argument in a formula, not {len(arguments)}")
            for argument in arguments:
                _walk(argument, names, used, depth - 1)
        case _:
            raise ValueError(
                f"a formula has numbers, graders' names, + - * / ^ and {', '.join(FUNCTIONS)}; "
                f"not {ast.unparse(node)!r}"
            )


def _compute(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=op, operand=operand):
            value = _compute(operand, values)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_compute(left, values), _compute(right, values))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return float(FUNCTIONS[name][0](*(_compute(argument, values) for argument in arguments)))
    raise ValueError(f"not part of a formula: {ast.unparse(node)}")
