"""Parquet files become rows, whatever the types of their columns; without pyarrow the error says what to install."""

import gzip
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conversions import asked, rows_of

from zhub.errors import InvalidRequestError

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, which reads Parquet, is not installed")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_a_parquet_file_becomes_rows_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", {"question": ["q", "ü"], "answer": ["a", "007"]})
    expected = [asked("q", answer="a"), asked("ü", answer="007")]
    assert rows_of(path) == expected
    (tmp_path / "data.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert rows_of(tmp_path / "data.gz") == expected


def test_values_of_every_type_are_what_json_has_for_them(tmp_path: Path) -> None:
    columns = {
        "question": ["q"],
        "answer": [18],
        "nested": [{"a": [1, None], "b": {"c": 0.5}}],
        "day": [date(2026, 1, 31)],
        "at": [datetime(2026, 1, 31, 1, 2, 3, tzinfo=UTC)],
        "price": [Decimal("1.50")],
        "nan": [float("nan")],
        "yes": [True],
        "kind": pyarrow.array(["x"]).dictionary_encode(),
        "nothing": pyarrow.nulls(1),
    }
    assert rows_of(write(tmp_path / "a", columns)) == [
        asked(
            "q",
            answer="18",
            nested={"a": [1, None], "b": {"c": 0.5}},
            day="2026-01-31",
            at="2026-01-31T01:02:03+00:00",
            price="1.50",
            yes=True,
            kind="x",
        )
    ]


def test_dialogues_in_parquet_become_messages(tmp_path: Path) -> None:
    dialogue = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (row,) = rows_of(write(tmp_path / "a", {"conversations": [dialogue]}))
    assert row["messages"] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_messages_of_parquet_lose_the_fields_that_are_empty(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q", "name": None}, {"role": "assistant", "content": "a", "name": None}]
    (row,) = rows_of(write(tmp_path / "a", {"messages": [messages]}))
    assert row["messages"] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_many_row_groups_are_read_in_their_order(tmp_path: Path) -> None:
    count = 2000
    columns = {"question": [f"q{n}" for n in range(count)], "answer": [str(n) for n in range(count)]}
    rows = rows_of(write(tmp_path / "a", columns, row_group_size=300))
    assert [row["answer"] for row in rows] == columns["answer"]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"question": ["q"], "image": [b"\x89PNG"]}, "the column 'image' holds binary data, such as images"),
        ({"question": pyarrow.array([], pyarrow.string())}, "has no rows"),
    ],
)
def test_what_a_base_cannot_read_is_refused(columns: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        rows_of(write(tmp_path / "a", columns))


def test_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["q"]), pyarrow.array(["r"])], ["question", "question"])
    parquet.write_table(table, tmp_path / "a")
    with pytest.raises(InvalidRequestError, match="two columns are named 'question'"):
        rows_of(tmp_path / "a")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"question": ["q"], "answer": ["a"]})
    for content in (path.read_bytes()[:-20], b"PAR1", path.read_bytes()[:40] + b"x" * 40 + path.read_bytes()[80:]):
        path.write_bytes(content)
        with pytest.raises(InvalidRequestError, match="the Parquet file cannot be read") as refused:
            rows_of(path)
        assert "\n" not in str(refused.value)


def test_without_pyarrow_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", {"question": ["q"], "answer": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InvalidRequestError, match=r"`pip install 'zhub\[parquet\]'`"):
        rows_of(path)
