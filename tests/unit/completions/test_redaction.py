"""Redactors: what each replaces, and what it must leave alone."""

from typing import Any

import pytest

from zhub.completions.redaction import REDACTORS, check_redactors, redacted
from zhub.errors import InvalidRequestError

REPLACED = [
    ("email", "ann.lee+x@mail.example.co.uk"),
    ("email", "ANN@EXAMPLE.COM"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432"),
    ("ip", "192.168.0.255"),
    ("phone", "+49 30 901820-0"),
    ("phone", "0049 30 9018200"),
    ("phone", "(030) 9018 200"),
    ("secret", "zhub_0123456789ab_" + "k" * 43),
    ("secret", "sk-proj-" + "a1" * 20),
    ("secret", "AKIAIOSFODNN7EXAMPLE"),
    ("secret", "ghp_" + "a" * 36),
    ("secret", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----"),
]
KEPT = [
    "1 + 1 = 2", "12345678 * 87654321", "v1.2.3.4.5", "256.1.1.1", "4111 1111 1111 1112", "a@b", "@home", "sk-short",
    "DE00 3704 1144 0532 0130 00", "2026-11-30 10:24:38", "3.14159265358979", "x+1234567", "E = m c²", "tel. 110",
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), REPLACED)
def test_a_redactor_replaces_its_own_in_the_middle_of_a_text(name: str, text: str) -> None:
    assert redacted(f"It is {text}, I think.", [name]) == f"It is [{name.upper()}], I think."


@pytest.mark.parametrize("text", KEPT)
def test_no_redactor_touches_other_texts(text: str) -> None:
    assert redacted(text, REDACTORS) == text


def test_every_text_of_a_value_is_redacted_and_no_key() -> None:
    value: Any = {"a@b.cd": ["a@b.cd", {"x": "to a@b.cd", "n": 1, "none": None, "yes": True}]}
    assert redacted(value, ["email"]) == {"a@b.cd": ["[EMAIL]", {"x": "to [EMAIL]", "n": 1, "none": None, "yes": True}]}


def test_what_no_row_can_hold_is_replaced_whatever_is_redacted() -> None:
    assert redacted({"a\0": ["b\0c"]}, []) == {"a\ufffd": ["b\ufffdc"]}


def test_redactors_of_another_release_are_left_out() -> None:
    assert redacted("a@b.cd", ["faces", "email"]) == "[EMAIL]"


def test_redactors_are_known_by_their_names() -> None:
    assert check_redactors(["phone", "secret", "phone"]) == ["secret", "phone"]
    with pytest.raises(InvalidRequestError, match="no redactor 'mail'. Did you mean 'email'"):
        check_redactors(["mail"])


@pytest.mark.parametrize(
    "piece", ["a", "1", "1 ", "A", "a.", "+1", "(1", "a@", "a@a.", "1.", "eyJ", "sk-", "DE00 ", "-"]
)
def test_a_text_of_a_mebibyte_is_read_to_its_end(piece: str) -> None:
    # Where an expression backtracked without bound, this would not end.
    text = piece * ((1 << 18) // len(piece)) + " ann@example.com"
    assert redacted(text, REDACTORS).endswith("[EMAIL]")
