"""The commands of README and guides: what stands in their fences, in order, and which of it no machine here can run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
# In the order in which a newcomer reads them: the guides go on where the README ends.
DOCUMENTS = (
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "guides").glob("*.md"), key=lambda path: (path.name != "retraining.md", path.name)),
)
RUN = ("sh", "python")
# Shown, not to be typed: what a command prints, and pieces of JSON.
SHOWN = ("", "json")
# How a command begins that is not run, and why.
NOT_RUN = {
    "make demo": "trains eight experts: a target of its own in the Makefile",
    "make test": "the test would run itself",
    "zhub login": "needs an OpenID provider, and somebody at a browser",
    "zhub logout": "nobody has logged in",
    "make up": "the stack of the tests runs already",
    ". .venv/bin/activate": "the test's PATH has zhub",
    "zhub base-models add smollm2": "downloads 93 MB and computes for minutes",
    "python -ISc": "asks about a scheduler or an agent in whose container it runs",
    "ZHUB_CLUSTER=": "needs nodes with GPUs",
}


@dataclass(frozen=True)
class Fence:
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """What is typed at once: a line of a shell with those that continue it, or a whole block of Python."""

    place: str
    language: str
    text: str

    @property
    def reason_not_to_run(self) -> str | None:
        return next((reason for start, reason in NOT_RUN.items() if self.text.startswith(start)), None)


def fences() -> list[Fence]:
    return [
        Fence(document, token.map[0] + 1, token.info.strip(), token.content)
        for document in DOCUMENTS
        for token in MarkdownIt().parse(document.read_text("utf-8"))
        if token.type == "fence" and token.map is not None
    ]


def commands() -> list[Command]:
    """All that is to be typed, in order."""
    found = []
    for fence in fences():
        if fence.language == "python":
            found.append(Command(fence.place, "python", fence.text))
        elif fence.language == "sh":
            found += [
                Command(f"{fence.document.relative_to(ROOT)}:{fence.line + at}", "sh", text)
                for at, text in _typed(fence.text)
            ]
    return found


def _typed(text: str) -> Iterator[tuple[int, str]]:
    """The commands of a block of shell, each with its line."""
    begun: list[str] = []
    end_of_document: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not begun and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begun.append(line)
        if end_of_document is None and "<<'" in line:
            end_of_document = line.split("<<'")[1].split("'")[0]
            continue
        if end_of_document is not None and line != end_of_document:
            continue
        if end_of_document is None and line.endswith("\\"):
            continue
        yield number - len(begun) + 1, "\n".join(begun)
        begun, end_of_document = [], None
