"""Rows of a dataset: what is wrong with which line, and which split a prompt belongs to."""

import hashlib
import io
import json
import math
import random
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhub.datasets.files import validation_report
from zhub.datasets.rows import MAX_ROW_BYTES, Row, unique_rows
from zhub.datasets.splits import prompt_position, split_of, split_rows
from zhub.datasets.validation import MAX_COLUMNS, MAX_PROBLEMS, Validation, validate


def line_of(text: str = "1 + 1 =", **columns: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}]} | columns, ensure_ascii=False).encode()


def file_of(*lines: bytes, end: bytes = b"\n") -> io.BytesIO:
    return io.BytesIO(b"".join(line + end for line in lines))


def check(*lines: bytes) -> Validation:
    return validate(file_of(*lines))


def problems(found: Validation) -> list[tuple[int, str]]:
    return [(problem.line, problem.code) for problem in found.problems]


GOOD = [line_of(str(n), answer=n) for n in range(20)]


# Good files


def test_a_good_file_is_counted() -> None:
    found = check(*GOOD)
    assert (found.ok, found.rows, found.prompts, found.columns, found.problem_count) == (
        True,
        20,
        20,
        {"answer": 20},
        0,
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\n  \n\t\n"])
def test_line_ends_and_blank_lines_do_not_matter(end: bytes) -> None:
    found = validate(file_of(*GOOD, end=end))
    assert (found.ok, found.rows) == (True, 20)


def test_the_last_line_needs_no_end() -> None:
    found = validate(io.BytesIO(b"\n".join(GOOD)))
    assert (found.ok, found.rows) == (True, 20)


def test_a_byte_order_mark_at_the_beginning_is_no_part_of_the_row() -> None:
    assert check(b"\xef\xbb\xbf" + GOOD[0], *GOOD[1:]).ok


def test_a_byte_order_mark_later_is_an_error() -> None:
    assert problems(check(GOOD[0], b"\xef\xbb\xbf" + GOOD[1])) == [(2, "bad_json")]


def test_blank_lines_count_as_lines() -> None:
    assert problems(check(GOOD[0], b"", b"nonsense")) == [(3, "bad_json")]


def test_the_first_lines_with_and_without_an_answer_are_known() -> None:
    asked, answered = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    lines = [{"messages": [asked], "n": n} for n in range(2)] + [{"messages": [asked, answered]}]
    found = check(*(json.dumps(line).encode() for line in lines))
    assert (found.rows_with_target, found.first_line_without_target, found.first_line_with_target) == (1, 1, 3)


def test_rows_with_one_prompt_and_two_answers_have_one_prompt() -> None:
    found = check(line_of("x", answer=1), line_of("x", answer=2))
    assert (found.rows, found.prompts, found.duplicate_count) == (2, 1, 0)


# Bad lines


USER = '{"role": "user", "content": "x"}'


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", "bad_json"),
        (b"{", "bad_json"),
        (b'{"messages": [%s]} {}' % USER.encode(), "bad_json"),
        (b"\xff", "not_utf8"),
        ('{"a": "é"}'.encode("latin-1"), "not_utf8"),
        (line_of().decode().encode("utf-16"), "not_utf8"),
        (b"[]", "wrong_schema"),
        (b"3", "wrong_schema"),
        (b"null", "wrong_schema"),
        (b'"text"', "wrong_schema"),
        (b"{}", "wrong_schema"),
        (b'{"messages": []}', "wrong_schema"),
        (b'{"messages": {}}', "wrong_schema"),
        (b'{"messages": ["x"]}', "wrong_schema"),
        (b'{"messages": [{"role": "user"}]}', "wrong_schema"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "wrong_schema"),
        (b'{"messages": [{"role": "user", "content": null}]}', "wrong_schema"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "wrong_schema"),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', "wrong_schema"),
        (b'{"messages": [{"role": {}, "content": "x"}]}', "wrong_schema"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', "wrong_schema"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "wrong_schema"),
        (b'{"messages": [%s], "a": NaN}' % USER.encode(), "bad_json"),
        (b'{"messages": [%s], "a": Infinity}' % USER.encode(), "bad_json"),
        (b'{"messages": [%s], "a": -Infinity}' % USER.encode(), "bad_json"),
        (b'{"messages": [%s], "a": 1e999}' % USER.encode(), "bad_json"),
        (b'{"messages": [%s], "a": %s}' % (USER.encode(), b"1" * 5000), "bad_json"),
        (b'{"messages": [%s], "a": %s}' % (USER.encode(), b"[" * 100_000), "bad_json"),
        (b"[" * 100_000 + b"]" * 100_000, "bad_json"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "bad_json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "bad_text"),
        (b'{"messages": [%s], "a": "\\uDC00"}' % USER.encode(), "bad_text"),
        (b'{"messages": [%s], "\\ud800": 1}' % USER.encode(), "bad_text"),
        (b'{"messages": [%s], "\\u0000": 1}' % USER.encode(), "bad_text"),
        (b'{"messages": [%s], "a": [{"b": "\\ud83d"}]}' % USER.encode(), "bad_text"),
        (line_of("x" * MAX_ROW_BYTES), "row_too_long"),
        (b" " * (MAX_ROW_BYTES + 10) + b"nonsense", "row_too_long"),
        (line_of() + b" " * MAX_ROW_BYTES + b"\r\rnonsense", "row_too_long"),
    ],
    ids=lambda value: str(value[:40]),
)
def test_a_bad_line_is_named_with_its_kind(line: bytes, code: str) -> None:
    assert problems(check(*GOOD[:2], line, *GOOD[2:])) == [(3, code)]


def test_a_nested_value_that_parses_is_either_good_or_named() -> None:
    # Between the depth that JSON is read at and the depth that it is written back at.
    for depth in range(100, 2000, 50):
        found = check(line_of(deep=1).replace(b": 1}", b": " + b"[" * depth + b"]" * depth + b"}"))
        assert found.rows == 1 and problems(found) in ([], [(1, "bad_json")])


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert check(b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}').ok


def test_nul_inside_a_value_is_text() -> None:
    assert check(b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}').ok


def test_a_row_of_just_the_allowed_length_is_good() -> None:
    room = MAX_ROW_BYTES - len(line_of(""))
    assert check(line_of("x" * room)).ok and not check(line_of("x" * (room + 1))).ok


def test_the_line_after_an_overlong_one_keeps_its_number() -> None:
    assert problems(check(line_of("x" * (3 * MAX_ROW_BYTES)), b"nonsense")) == [(1, "row_too_long"), (2, "bad_json")]


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \n", b"   "])
def test_a_file_without_rows_is_an_error(content: bytes) -> None:
    assert problems(validate(io.BytesIO(content))) == [(1, "empty")]


def test_all_problems_are_counted_and_the_first_are_listed() -> None:
    found = check(*[b"nonsense"] * (MAX_PROBLEMS + 5))
    assert (found.problem_count, len(found.problems)) == (MAX_PROBLEMS + 5, MAX_PROBLEMS)
    assert [problem.line for problem in found.problems] == list(range(1, MAX_PROBLEMS + 1))


def test_columns_without_end_are_an_error() -> None:
    found = check(*(line_of(str(n), **{f"column_{n}": 1}) for n in range(MAX_COLUMNS + 1)))
    assert (problems(found), len(found.columns)) == ([(MAX_COLUMNS + 1, "too_many_columns")], MAX_COLUMNS)


# Duplicates


@pytest.mark.parametrize("repeated", [0, 1, 3, 10, 19])
def test_rows_that_repeat_are_counted_and_never_refused(repeated: int) -> None:
    rows = [line_of(str(n)) for n in range(20 - repeated)]
    found = check(*rows, *(rows[n % len(rows)] for n in range(repeated)))
    assert (found.rows, found.duplicate_count, found.prompts, found.ok) == (20, repeated, 20 - repeated, True)
    assert (found.problems, len(found.duplicates)) == ([], repeated)


def test_draws_from_a_small_space_are_a_good_file() -> None:
    chance = random.Random(7)
    draws = [chance.randrange(500) for _ in range(400)]
    found = check(*(line_of(str(n)) for n in draws))
    assert (found.ok, found.duplicate_count) == (True, 400 - len(set(draws)))


def test_a_duplicate_names_the_line_that_it_repeats() -> None:
    found = check(*GOOD, GOOD[4])
    assert [(d.line, d.message) for d in found.duplicates] == [(21, "the same row as line 5")]


def test_the_order_of_keys_and_the_spaces_do_not_make_another_row() -> None:
    same = [b'{"messages":[{"content":"x","role":"user"}],"a":1}', b'{"a": 1, "messages": [%s]}' % USER.encode()]
    assert check(*GOOD, *same).duplicate_count == 1


def test_unique_rows_gives_each_row_once_in_its_order() -> None:
    rows = list(unique_rows(file_of(GOOD[0], b"", GOOD[1], GOOD[0], GOOD[2])))
    assert [(row.line, row.item) for row in rows] == [(1, {"answer": 0}), (3, {"answer": 1}), (5, {"answer": 2})]


# Whatever comes


@given(st.binary(max_size=200))
def test_no_bytes_make_validation_raise(content: bytes) -> None:
    found = validate(io.BytesIO(content))
    assert found.problem_count > 0 or found.rows > 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters()), json_values, max_size=4), st.booleans())
def test_the_report_on_any_row_can_be_stored(columns: dict[str, Any], escaped: bool) -> None:
    row = {"messages": [{"role": "user", "content": "x"}]} | columns
    line = json.dumps(row, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    report = validation_report(check(line))
    json.dumps(report, ensure_ascii=False, allow_nan=False).encode()
    texts = [*report["columns"], *(problem["message"] for problem in report["problems"])]
    assert not any("\0" in text for text in texts)


@given(st.lists(st.sampled_from([*GOOD[:5], b"nonsense", b"", b"{}"]), max_size=30))
def test_every_line_is_a_row_a_repetition_a_problem_or_blank(lines: list[bytes]) -> None:
    found = check(*lines)
    good = [line for line in lines if line in GOOD]
    bad = [line for line in lines if line in (b"nonsense", b"{}")]
    assert found.rows == len(good) + len(bad)
    assert found.duplicate_count == len(good) - len(set(good))


class Generated(io.RawIOBase):
    """A file whose lines are made while it is read."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines: Iterator[bytes] = iter(lines)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while len(self._rest) < len(buffer) and (line := next(self._lines, b"")):
            self._rest += line
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_long_file_costs_a_digest_for_each_row_and_not_its_text() -> None:
    count, text = 20_000, "x" * 2000
    lines = (line_of(f"{n} {text}") + b"\n" for n in range(count))
    tracemalloc.start()
    try:
        found = validate(io.BufferedReader(Generated(lines), 1 << 16))
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two digests (row and prompt) of 16 bytes are 49 bytes each as objects, plus their places in a dict and a set.
    assert (found.ok, found.rows) == (True, count)
    assert peak < 400 * count < len(text) * count / 4


# Splits


def prompt(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def rows_of(texts: Iterable[str]) -> list[Row]:
    return [Row(line, prompt(text), {}) for line, text in enumerate(texts, 1)]


def slow_position(messages: list[dict[str, str]]) -> float:
    parts = []
    for message in messages:
        content, role = json.dumps(message["content"], ensure_ascii=False), json.dumps(message["role"])
        parts.append(f'{{"content":{content},"role":{role}}}')
    text = f"[{','.join(parts)}]"
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 16**16


words = st.text(st.characters(codec="utf-8"), max_size=8)


@given(words)
def test_the_split_is_a_hash_of_the_prompts_text(text: str) -> None:
    position = slow_position(prompt(text))
    assert prompt_position(prompt(text)) == position
    assert split_of(prompt(text)) == ("test" if position < 0.1 else "validation" if position < 0.2 else "train")


def test_a_tenth_is_for_testing_and_a_tenth_for_validation() -> None:
    count = 20_000
    splits = split_rows(rows_of(map(str, range(count))))
    shares = {"test": 0.1, "validation": 0.1, "train": 0.8}
    for name, rows in splits.items():
        deviation = math.sqrt(shares[name] * (1 - shares[name]) * count)
        assert abs(len(rows) - shares[name] * count) < 5 * deviation


@given(st.lists(words, max_size=60))
def test_no_prompt_is_in_two_splits_and_no_row_is_lost(texts: list[str]) -> None:
    splits = split_rows(rows_of(texts))
    prompts = [{row.messages[0]["content"] for row in rows} for rows in splits.values()]
    assert sum(map(len, prompts)) == len(set(texts))
    assert sorted(row.line for rows in splits.values() for row in rows) == list(range(1, len(texts) + 1))


@given(st.lists(words, min_size=60, max_size=80, unique=True), st.lists(words, max_size=40))
def test_a_prompt_keeps_its_split_when_the_dataset_grows(texts: list[str], more: list[str]) -> None:
    natural = {split_of(prompt(text)) for text in texts}
    if natural != {"train", "validation", "test"}:
        return  # then one was lent to an empty split
    before, after = split_rows(rows_of(texts)), split_rows(rows_of([*texts, *more]))
    for name, rows in before.items():
        then = {row.messages[0]["content"] for row in after[name]}
        assert {row.messages[0]["content"] for row in rows} <= then


@given(st.lists(words, unique=True, max_size=40))
def test_a_small_dataset_has_something_in_every_split(texts: list[str]) -> None:
    rows = rows_of(texts)
    if sum(split_of(row.prompt) == "train" for row in rows) >= 3:
        assert all(split_rows(rows).values())


@given(st.lists(words, max_size=40))
def test_the_answer_does_not_decide_the_split(texts: list[str]) -> None:
    answered = [[*prompt(text), {"role": "assistant", "content": str(n)}] for n, text in enumerate(texts)]
    assert [split_of(Row(1, messages, {}).prompt) for messages in answered] == [split_of(prompt(t)) for t in texts]
