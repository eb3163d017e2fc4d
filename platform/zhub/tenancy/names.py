"""Names that are parts of model ids."""

import hashlib
import re
import unicodedata
from pathlib import PurePosixPath

from zhub.errors import InvalidRequestError

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
MAX_CHARACTERS = 64
SUFFIX = re.compile(r"[A-Za-z0-9_\s-]*")


def check_name(name: str, kind: str, *, param: str | None = None) -> str:
    """Names are parts of model ids (``project.expert@v1``): lower-case letters, digits, '-' and '_', at most 64."""
    if not NAME.fullmatch(name):
        raise InvalidRequestError(
            f"'{name}' cannot name {_with_article(kind)}: "
            f"use 1 to {MAX_CHARACTERS} lower-case letters, digits, '-' or '_', "
            "beginning and ending with a letter or digit.",
            param=param,
        )
    return name


def name_of_suffix(suffix: str, kind: str, *, param: str) -> str:
    """The name that a suffix stands for: capitals become small letters, and blanks '-'; nothing else is rewritten.

    Raises:
        InvalidRequestError: it holds other characters, which two different suffixes could lose; with a suggestion.
    """
    if not SUFFIX.fullmatch(suffix) and NAME.fullmatch(nearest := slugify(_latin(suffix))):
        raise InvalidRequestError(
            f"{suffix!r} cannot name {_with_article(kind)}: of letters, a name has those from a to z. "
            f"How about '{nearest}'?",
            param=param,
        )
    return check_name(slugify(suffix), kind, param=param)


def name_of_file(filename: str, *, default: str) -> str:
    """The name that a file gives: its own without the ending.

    Where letters of other scripts are lost, a digest keeps two files from having one name.
    """
    stem = PurePosixPath(filename).stem
    if stem.isascii():
        return slugify(stem) or default
    digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{slugify(_latin(stem))[: MAX_CHARACTERS - len(digest) - 1].strip('-_') or default}-{digest}"


def slugify(text: str) -> str:
    """Bend free text into a name, or return '' when nothing of it can stay."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower())[:MAX_CHARACTERS].strip("-_")


def _latin(text: str) -> str:
    """Letters without their marks: ``Größe`` becomes ``grosse``."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
