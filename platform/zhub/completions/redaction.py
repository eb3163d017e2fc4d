"""Redactors: each replaces one kind of secret in the texts of a completion before it is stored.

They are built in and chosen by name. Nobody's own pattern runs here: the standard library's expressions backtrack, so a
pattern of a user could hold a thread for hours. These look at a bounded number of characters from each place on.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from zhub.errors import InvalidRequestError
from zhub.suggestions import did_you_mean

NOT_STORABLE = "\0"  # no text of PostgreSQL holds it
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _passes_luhn(text: str) -> bool:
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _passes_mod_97(text: str) -> bool:
    iban = text.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


@dataclass(frozen=True)
class Redactor:
    """``what`` is said to people. A match that ``holds`` says no to stays."""

    what: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda _match: True


# In the order in which they look: a key may hold what looks like an address.
REDACTORS: Mapping[str, Redactor] = {
    "secret": Redactor(
        "API keys, tokens and private keys",
        re.compile(
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,8192}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
            r"|\bzhub_[0-9a-f]{12}_[A-Za-z0-9_-]{43}|\bsk-[A-Za-z0-9_-]{20,200}|\bwhsec_[A-Za-z0-9+/=]{20,100}"
            r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,255}|\bhf_[A-Za-z0-9]{30,60}"
            r"|\beyJ[A-Za-z0-9_-]{10,2048}\.[A-Za-z0-9_-]{10,2048}\.[A-Za-z0-9_-]{10,1024}"
        ),
    ),
    "email": Redactor(
        "e-mail addresses",
        re.compile(
            r"(?<![\w.%+-])[\w.%+-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62}){1,8}"
        ),
    ),
    "iban": Redactor(
        "IBANs",
        re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        _passes_mod_97,
    ),
    "card": Redactor("payment card numbers", re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"), _passes_luhn),
    "ip": Redactor(
        "IPv4 addresses",
        re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)"),
    ),
    "phone": Redactor(
        "telephone numbers, written with their country or with the area in brackets",
        re.compile(
            r"(?<![\w+])(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){7,14}(?!\d)|(?<!\w)\(\d{2,5}\) ?\d{3,4}[ -]?\d{3,5}\b"
        ),
    ),
}


def check_redactors(names: Sequence[str]) -> list[str]:
    """The names once each, in the order in which they look. Raises InvalidRequestError for one that is not known."""
    for name in names:
        if name not in REDACTORS:
            known = "; ".join(f"'{known}': {redactor.what}" for known, redactor in REDACTORS.items())
            raise InvalidRequestError(
                f"redact: there is no redactor '{name}'.{did_you_mean(name, REDACTORS)} There are: {known}.",
                param="redact",
            )
    return [name for name in REDACTORS if name in names]


def redacted(value: Any, names: Iterable[str]) -> Any:
    """A JSON value in whose texts each match of these redactors is the redactor's name in capitals, as ``[EMAIL]``.

    Keys of objects stay. What cannot be stored is replaced too. A redactor that this release does not know, because
    another has chosen it, is left out.
    """
    redactors = [(f"[{name.upper()}]", REDACTORS[name]) for name in names if name in REDACTORS]
    return _redacted(value, redactors)


def _redacted(value: Any, redactors: Sequence[tuple[str, Redactor]]) -> Any:
    if isinstance(value, str):
        for mark, redactor in redactors:
            value = redactor.pattern.sub(partial(_replacement, mark, redactor), value)
        return value.replace(NOT_STORABLE, REPLACEMENT)
    if isinstance(value, list):
        return [_redacted(item, redactors) for item in value]
    if isinstance(value, dict):
        return {key.replace(NOT_STORABLE, REPLACEMENT): _redacted(item, redactors) for key, item in value.items()}
    return value


def _replacement(mark: str, redactor: Redactor, match: re.Match[str]) -> str:
    return mark if redactor.holds(match[0]) else match[0]
