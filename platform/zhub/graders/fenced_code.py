"""The Python in an answer of Markdown: its fenced blocks, as CommonMark reads them."""

import ast
import re

from markdown_it import MarkdownIt

# What may hold a fence. HTML would swallow the fences after it, and headings and links do not matter.
BLOCKS = ["fence", "code", "list", "blockquote"]
# python, python3.11, py, {.python .numberLines}, Python {linenos}
LANGUAGE = re.compile(r"[{.\s]{0,4}([^\W\d_]{1,20})")
PYTHON = ("python", "py", "python3", "py3", "ipython")
MARKS = ("```", "~~~")
DEEP_FENCE = re.compile(r"^(?=[ \t]{4,}+(?:```|~~~))", re.MULTILINE)


def code_of(text: str) -> str:
    """The first fenced block of Python in an answer, also one that was cut off; else its first one of no language.

    The whole answer where nothing is fenced, or where all of it is Python, with fences in its texts.
    """
    if not any(mark in text for mark in MARKS) or _is_python(text):
        return text
    parser = MarkdownIt("zero").enable(BLOCKS)
    # What stands four blanks deep is no fence: a text in the code. Unless all fences of the answer stand there; then a
    # blank line before each keeps it from going on a paragraph.
    fences = _fences(parser, text) or _fences(parser.disable("code"), DEEP_FENCE.sub("\n", text))
    for wanted in (PYTHON, ("",)):
        for language, code in fences:
            if language in wanted:
                return code
    return text


def _fences(parser: MarkdownIt, text: str) -> list[tuple[str, str]]:
    """The language of each fenced block, in small letters, and what stands in it."""
    return [
        (_language(token.info), token.content.rstrip("\n")) for token in parser.parse(text) if token.type == "fence"
    ]


def _language(info: str) -> str:
    match = LANGUAGE.match(info)
    return match[1].lower() if match is not None else ""


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
