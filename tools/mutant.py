"""What is taken away, and which tests should notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """``old``, which is once in the file at ``path``, becomes ``new``."""

    what: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]
