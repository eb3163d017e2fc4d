"""From what pydantic says of a value that does not fit its type to our own refusal: one message, one field at fault."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zhub.errors import InvalidRequestError

Path = Sequence[str | int]

MAX_SHOWN_CHARACTERS = 60
# These say all that there is to say, or their input is a whole object or document.
WITHOUT_VALUE = ("missing", "extra_forbidden", "value_error", "json_invalid")


def refusal(
    errors: Sequence[Mapping[str, Any]],
    *,
    within: str = "",
    subject: str = "",
    path: Callable[[Path], Path] = lambda location: location,
    code: str | None = None,
) -> InvalidRequestError:
    """The first of pydantic's errors as a refusal: ``<field>: <what is wrong> (got <value>).``

    The field is named by its whole path, which begins with ``within``; with a ``subject``, the message names that and
    the path below it, so that it is the same wherever the subject was given. ``path`` maps pydantic's location to the
    names that users know. A validator of a whole object names the field at fault as ``field`` in its error's context.
    """
    error = errors[0]
    parts = [str(part) for part in path(error["loc"])] if error["type"] != "json_invalid" else []
    value = error.get("input")
    if (field := error.get("ctx", {}).get("field")) is not None:
        parts.append(field)
        value = value.get(field) if isinstance(value, Mapping) else None
    param = ".".join([within, *parts] if within else parts)
    place = ": ".join(filter(None, [subject, ".".join(parts)])) if subject else param
    what = str(error["msg"]).removeprefix("Value error, ").removesuffix(".")
    if error["type"] not in WITHOUT_VALUE and isinstance(value, str | int | float | bool):
        shown = repr(value)
        what += f" (got {shown if len(shown) <= MAX_SHOWN_CHARACTERS else shown[:MAX_SHOWN_CHARACTERS] + '…'})"
    unknown = "unknown_parameter" if error["type"] == "extra_forbidden" else None
    return InvalidRequestError(f"{place}: {what}." if place else f"{what}.", param=param or None, code=code or unknown)
