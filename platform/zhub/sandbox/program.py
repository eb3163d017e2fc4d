"""What runs in the sandbox, and the outcome of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Limits:
    """What one run may use. ``output_bytes`` limits the text of all its values together; printed text is extra."""

    wall_s: float = 5.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Program:
    """A Python source, and expressions to evaluate in it that also see ``variables`` (JSON values).

    Only the standard library can be imported. There is no network, no file but the library's, no environment, and no
    further process or thread. Equal programs get equal random numbers and hash seeds.
    """

    source: str
    expressions: Sequence[str] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = Limits()


@dataclass(frozen=True)
class Value:
    """The value of an expression: builtin types only, rebuilt outside (see ``zhub.sandbox.values``)."""

    value: Any


@dataclass(frozen=True)
class Unreadable:
    """The value of an expression was not plain; ``found`` is the name of its type."""

    found: str


@dataclass(frozen=True)
class Raised:
    """``message`` is the traceback's last line, ``line`` the line of the source where it happened, where known."""

    message: str
    line: int | None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    ``results`` has one for each expression that was reached, in order; ``failure`` is what the source itself raised.
    ``ending``: ``finished`` of itself; ``timeout``; ``output``, more than it may write; ``died``, by a signal or an
    exit, as ``detail`` says. ``printed`` is the beginning of what it wrote to standard output and error.
    """

    ending: Literal["finished", "timeout", "output", "died"]
    results: tuple[Value | Unreadable | Raised, ...] = ()
    failure: Raised | None = None
    detail: str = ""
    printed: str = ""
