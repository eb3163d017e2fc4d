"""Plain values on their way out of the sandbox: as JSON that says each container's type.

Only the builtin types pass: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict. What
arrives is built anew from text, so no method of the other side comes along, and nothing is unpickled or evaluated.
An instance of a subclass (``Counter``, ``namedtuple``, ``IntEnum``) passes as its builtin content.
"""

from typing import Any


class UnreadableValueError(Exception):
    """A value, or what claims to be the text of one, that is not plain. Control flow: stays in the sandbox's edges."""


def encode(value: object) -> Any:
    """Return what ``json.dumps`` writes and ``decode`` reads.

    Raises:
        UnreadableValueError: the value, or one inside, is of another type.
    """
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case complex():
            return {"complex": [value.real, value.imag]}
        case bytes():
            return {"bytes": bytes.hex(value)}
        case list():
            return [encode(item) for item in list.__iter__(value)]
        case tuple():
            return {"tuple": [encode(item) for item in tuple.__iter__(value)]}
        case set():
            return {"set": [encode(item) for item in set.__iter__(value)]}
        case frozenset():
            return {"frozenset": [encode(item) for item in frozenset.__iter__(value)]}
        case dict():
            return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    raise UnreadableValueError(type(value).__name__)


def decode(tree: Any) -> Any:
    """Return the value that ``encode`` took.

    Raises:
        UnreadableValueError: the tree is none that ``encode`` returns.
    """
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, list):
        return [decode(item) for item in tree]
    try:
        ((kind, content),) = tree.items()
        match kind:
            case "complex":
                real, imaginary = content
                return complex(float(real), float(imaginary))
            case "bytes":
                return bytes.fromhex(content)
            case "tuple":
                return tuple(decode(item) for item in content)
            case "set":
                return {decode(item) for item in content}
            case "frozenset":
                return frozenset(decode(item) for item in content)
            case "dict":
                return {decode(key): decode(item) for key, item in content}
    except (AttributeError, TypeError, ValueError) as exc:
        raise UnreadableValueError(str(exc)) from exc
    raise UnreadableValueError(f"unknown kind {kind!r}")
