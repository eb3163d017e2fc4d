"""What an answer in LaTeX puts in a box, as models mark their final answers."""

import re

BOXES = re.compile(r"\\f?box(?:ed)?[^\S\n]{0,2}\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    """What stands in the box that is closed last, or None. One pass, whatever is left open."""
    open_braces: list[int | None] = []  # where a box's content begins; None for other braces
    content = None
    for match in BOXES.finditer(text):
        lexeme = match[0]
        if lexeme == "}":
            begin = open_braces.pop() if open_braces else None
            content = (begin, match.start()) if begin is not None else content
        elif lexeme.endswith("{") and lexeme != "\\{":
            open_braces.append(None if lexeme == "{" else match.end())
    return None if content is None else text[slice(*content)]
