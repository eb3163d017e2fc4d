"""The name that somebody may have meant: said wherever a name is not known."""

import difflib
from collections.abc import Iterable

MAX_CHARACTERS = 200  # of a name that is compared: longer ones are no slips of the pen, and cost their length squared


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with the nearest of the known names, to follow a sentence; nothing where none is near."""
    near = difflib.get_close_matches(name[:MAX_CHARACTERS], known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
