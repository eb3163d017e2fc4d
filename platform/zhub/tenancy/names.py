"""Names that are parts of model ids."""

import re

from zhub.errors import InvalidRequestError

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


def check_name(name: str, kind: str, *, param: str | None = None) -> str:
    """Names are parts of model ids (``project.expert@v1``): lower-case letters, digits, '-' and '_', at most 64."""
    if not NAME.fullmatch(name):
        raise InvalidRequestError(
            f"'{name}' cannot name a {kind}: use 1 to 64 lower-case letters, digits, '-' or '_', "
            "beginning and ending with a letter or digit.",
            param=param,
        )
    return name


def slugify(text: str) -> str:
    """Bend free text into a name, or return '' when nothing of it can stay."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower())[:64].strip("-_")
