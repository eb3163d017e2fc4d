"""Identifiers: sortable inside, prefixed outside."""

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhub.errors import NotFoundError
from zhub.ids import PREFIXES, new_id, parse_id, public_id

KINDS = sorted(PREFIXES)


def test_a_new_id_is_a_uuid_of_version_7() -> None:
    made = new_id()
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


def test_a_new_id_begins_with_the_time_in_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    stamp = int(new_id().hex[:12], 16)
    assert before <= stamp <= time.time_ns() // 1_000_000


def test_ids_are_never_alike() -> None:
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_no_two_kinds_share_a_prefix() -> None:
    assert len(set(PREFIXES.values())) == len(PREFIXES)


@given(st.sampled_from(KINDS), st.uuids())
def test_an_id_comes_back_from_its_public_form(kind: str, value: uuid.UUID) -> None:
    assert parse_id(kind, public_id(kind, value)) == value


@given(st.sampled_from(KINDS), st.text())
def test_what_is_no_id_is_not_found(kind: str, text: str) -> None:
    with pytest.raises(NotFoundError):
        parse_id(kind, text)


@given(st.sampled_from(KINDS), st.text(min_size=32, max_size=32))
def test_32_characters_are_an_id_only_if_they_are_hexadecimal(kind: str, digits: str) -> None:
    text = f"{PREFIXES[kind]}-{digits}"
    try:
        assert parse_id(kind, text).int == int(digits, 16)
    except NotFoundError:
        assert not set(digits) <= set("0123456789abcdef")


@pytest.mark.parametrize("other", [kind for kind in KINDS if kind != "file"])
def test_an_id_of_another_kind_is_not_found(other: str) -> None:
    with pytest.raises(NotFoundError, match="No such file"):
        parse_id("file", public_id(other, new_id()))
