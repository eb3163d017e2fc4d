"""Data files of any format become the same rows, whatever their name, encoding and compression; or one sentence."""

import csv
import gzip
import io
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversions import asked, rows_of, rows_of_bytes
from hypothesis import given
from hypothesis import strategies as st

from zhub.datasets.conversion import json_text, readers
from zhub.datasets.conversion.converting import as_rows
from zhub.datasets.conversion.recognition import UnreadableContentError, recognise
from zhub.datasets.rows import MAX_ROW_BYTES
from zhub.datasets.validation import validate
from zhub.errors import InvalidRequestError

RECORDS = [{"question": "2 + 2?", "answer": "4"}, {"question": 'Say "a, b"\nin ü', "answer": "007"}]
ROWS = [asked(record["question"], answer=record["answer"]) for record in RECORDS]
CSV = 'question,answer\n2 + 2?,4\n"Say ""a, b""\nin ü",007\n'
TEXTS: dict[str, str] = {
    "commas": CSV,
    "CRLF": CSV.replace("?,4\n", "?,4\r\n").replace("answer\n", "answer\r\n").replace("007\n", "007\r\n"),
    "semicolons": 'question;answer\n2 + 2?;4\n"Say ""a, b""\nin ü";007\n',
    "tabs": 'question\tanswer\n2 + 2?\t4\n"Say ""a, b""\nin ü"\t007\n',
    "bars": 'question|answer\n2 + 2?|4\n"Say ""a, b""\nin ü"|007\n',
    "sep=": 'sep=;\nquestion;answer\n2 + 2?;4\n"Say ""a, b""\nin ü";007\n',
    "blank lines": "\n" + CSV + "\n\n,\n",
    "blanks in the header": CSV.replace("question,answer", " question , answer "),
    "an index without a name": ',question,answer\n0,2 + 2?,4\n1,"Say ""a, b""\nin ü",007\n',
    "JSON Lines": "".join(json.dumps(record) + "\n" for record in RECORDS),
    "an array": json.dumps(RECORDS),
    "an indented array": "\n " + json.dumps(RECORDS, indent=2) + "\n",
    "an object around an array": json.dumps({"version": "1.0", "data": RECORDS}),
    "an indented object around an array": json.dumps({"data": RECORDS, "licence": None}, indent=1),
    "objects after each other": "".join(json.dumps(record, indent=2) + "\n" for record in RECORDS),
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_becomes_the_same_rows_in_every_format_and_encoding(text: str, encoding: str, tmp_path: Path) -> None:
    assert rows_of_bytes(tmp_path, text.encode(encoding)) == ROWS


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_compressed_file_becomes_the_same_rows(text: str, tmp_path: Path) -> None:
    assert rows_of_bytes(tmp_path, gzip.compress(text.encode(), mtime=0)) == ROWS


def test_a_table_of_prompts_alone_has_one_column(tmp_path: Path) -> None:
    assert rows_of_bytes(tmp_path, b'Prompt\n"one, two"\nthree\n') == [asked("one, two"), asked("three")]


def test_a_file_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.jsonl", "a.gz", "a"):
        (tmp_path / name).write_text(CSV)
        assert rows_of(tmp_path / name) == ROWS


def test_the_rows_have_the_name_of_the_file(tmp_path: Path) -> None:
    for name, expected in (("a.csv", "a.jsonl"), ("a.b.csv.gz", "a.b.jsonl"), ("a", "a.jsonl")):
        content = CSV.encode()
        (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
        with as_rows(tmp_path / name) as rows:
            assert rows.name == expected


def test_rows_stay_as_they_are_to_the_byte(tmp_path: Path) -> None:
    content = b'\n{"answer":1,  "messages": [{"role": "user", "content": "x"}]}\r\nnot json\n'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with as_rows(path) as rows:
        assert (rows.path, rows.name, rows.conversion) == (path, "rows.jsonl", None)
    path.write_bytes(gzip.compress(content, mtime=0))
    with as_rows(path) as rows:
        assert (rows.path.read_bytes(), rows.conversion) == (content, None)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b'{"messages": 3}\n{"messages": [}\n'])
def test_what_is_wrong_with_rows_is_left_to_their_check(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with as_rows(path) as rows:
        assert rows.path == path


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK\x03\x04rest", "Excel workbook: unpack it, or save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0rest", "old Excel"),
        (b"ARROW1rest", "Arrow file: save it as Parquet"),
        (b"SQLite format 3\0", "SQLite"),
        (b"%PDF-1.7", "PDF"),
        (b"\x28\xb5\x2f\xfdrest", "Zstandard: unpack it"),
        (b"BZh9rest", "bzip2"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page: download the file itself"),
        (b"\x00\x01\x02binary" * 10, "binary"),
        ("question,answer\n2?,zwölf\n".encode("latin-1"), "byte 21 is not UTF-8: save it as UTF-8"),
        (b"just words\nand more words\n", "text without columns"),
        (b"question,answer\n", "text without columns"),
        (gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "gzip twice"),
        (gzip.compress(CSV.encode(), mtime=0)[:-9], "damaged gzip file"),
        (b'question,answer\n"2?,4\n"3"x?,4\n5?,6\n', "CSV is damaged"),
        (b"question,answer\n2?,4\n2?,4,5\n3?,4\n", "line 3 has 3 cells, and the header 2"),
        (b"question,answer\nWhat, then?,4\nWhat, now?,5\n", "line 2 has 3 cells, and the header 2: quote cells that"),
        (b"question,answer,answer\n2?,4,4\n3?,4,4\n", "two columns are named 'answer'"),
        (b"[1, 2]", "text without columns"),
        (b'[{"question": "a"}, 3]', "expected an object for each row, found 3"),
        (b'[{"question": "a", "answer": NaN}]', "NaN is not a JSON number"),
        (b'[{"question": "a", "answer": "b"}', "expected ',', found 'the end of the file'"),
        (b'[{"question": "a" "answer": "b"}]', "is not JSON: Expecting ',' delimiter"),
        (b'[{"question": "a", "answer": "b"}] 3', "something follows the end"),
        (b"[" + b'{"a":' * 50_000, "nested too deeply"),
        (b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "several arrays (train, test)"),
        (b'{"question": {"0": "a"}, "answer": {"0": "b"}}', "orient='records'"),
        (b'{"question": "a"', "it is not JSON: Expecting ',' delimiter at its end"),
        (b"[]", "has no rows"),
        (b"[{}]", "has no rows"),
        (b'{"question": "a", "answer": "b"}\nbroken\n', "line 2 is not JSON"),
    ],
    ids=lambda value: str(value[:24]),
)
def test_what_cannot_be_read_is_told_in_one_sentence(content: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        rows_of_bytes(tmp_path, content)
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith("file ")


def test_a_directory_and_a_missing_file_are_no_data_files(tmp_path: Path) -> None:
    for path, kind in ((tmp_path, "a directory"), (tmp_path / "none", "nothing")):
        with pytest.raises(InvalidRequestError, match=f"expected a data file, found {kind}"):
            rows_of(path)


def test_a_small_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_FILE_BYTES", 3 << 20)
    with pytest.raises(InvalidRequestError, match="unpacked it has more than 3,145,728 bytes"):
        rows_of_bytes(tmp_path, gzip.compress(CSV.encode() * 100_000, mtime=0))


def test_a_row_as_long_as_rows_may_be_is_read_and_a_longer_one_is_named(tmp_path: Path) -> None:
    for text in (
        "question,answer\nx,y\n{},z\n",
        '{{"question": "x", "answer": "y"}}\n{{"question": "{}", "answer": "z"}}\n',
    ):
        read = rows_of_bytes(tmp_path, text.format("x" * (MAX_ROW_BYTES // 2)).encode())
        assert len(read) == 2
        with pytest.raises(InvalidRequestError, match=r"line 3|line 2|field larger"):
            rows_of_bytes(tmp_path, text.format("x" * (MAX_ROW_BYTES + 1)).encode())


LARGE: dict[str, Callable[[int], str]] = {
    "csv": lambda n: f"{n} {'x' * 2000}?,{n}\n",
    "array": lambda n: json.dumps({"question": f"{n} {'x' * 2000}?", "answer": n}) + ",\n",
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_file_is_never_in_memory_whole(kind: str, tmp_path: Path) -> None:
    path, count = tmp_path / "large", 10_000
    beginning, end = {
        "csv": ("question,answer\n", ""),
        "array": ('{"n": 1, "data": [\n', '{"question": "x", "answer": 1}]}'),
    }[kind]
    path.write_text(beginning + "".join(map(LARGE[kind], range(count))) + end)
    tracemalloc.start()
    try:
        with as_rows(path) as rows:
            converted = rows.conversion
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert converted is not None and converted.row_count == count + (kind == "array")
    assert peak < path.stat().st_size / 2 and path.stat().st_size > 18 << 20


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip())


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=20), st.sampled_from(",;\t|"))
def test_what_a_csv_writer_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], delimiter: str
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([("question", "answer"), *pairs])
    read = rows_of_bytes(tmp_path_factory.mktemp("csv"), text.getvalue().encode())
    assert [(row["messages"][0]["content"], row.get("answer")) for row in read] == pairs


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
json_rows = st.lists(st.dictionaries(st.text(), json_values, max_size=3), min_size=1, max_size=5)


@given(json_rows, st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_json_is_read_alike_wherever_its_pieces_end(
    rows: list[dict[str, Any]], piece: int, indent: int | None, wrapped: bool
) -> None:
    text = json.dumps({"n": 1.5e3, "data": rows, "end": None} if wrapped else rows, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "PIECE_CHARACTERS", piece)
        assert list(json_text.objects(io.StringIO(text))) == rows
        # As if the document were too long to hold.
        longest = max(len(json.dumps(row, indent=indent)) for row in rows)
        patch.setattr(json_text, "MAX_VALUE_CHARACTERS", 2 * longest + 40)
        assert list(json_text.objects(io.StringIO(text))) == rows


def test_the_array_of_an_object_that_is_too_long_to_hold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_VALUE_CHARACTERS", 60)
    monkeypatch.setattr(json_text, "PIECE_CHARACTERS", 20)
    rows = [{"question": f"q{n}"} for n in range(50)]
    assert list(json_text.objects(io.StringIO(json.dumps({"v": [1], "data": rows, "x": {"a": 1}})))) == rows
    for document, told in (
        ({"a": rows, "b": rows}, r"several arrays \(a, b\)"),
        ({f"k{n}": n for n in range(50)}, "without an array of objects"),
        ([{"q": "x" * 200}], "a row is longer than 60"),
    ):
        with pytest.raises(json_text.JsonTextError, match=told):
            list(json_text.objects(io.StringIO(json.dumps(document))))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidRequestError, match=r"a\.csv cannot be converted: Permission denied\.$"):
        rows_of(path)


@given(st.binary(max_size=300))
def test_any_bytes_are_something_or_are_refused(content: bytes) -> None:
    try:
        assert recognise(content).kind
    except UnreadableContentError as exc:
        assert str(exc)


# What was sent as it is


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (CSV.encode(), "the file is CSV separated by commas, and a dataset is JSON Lines in UTF-8"),
        (CSV.encode("utf-16"), "the file is CSV separated by commas in UTF-16"),
        (json.dumps(RECORDS).encode(), "the file is JSON,"),
        (json.dumps({"data": RECORDS}, indent=1).encode(), "the file is JSON,"),
        (gzip.compress(b"x", mtime=0), "the file is gzip,"),
        (b"PAR1rest", "the file is Parquet,"),
        (b"PK\x03\x04rest", "the file is no JSON Lines: it is a ZIP archive or an Excel workbook"),
        ("\n".join(map(json.dumps, RECORDS)).encode(), "its rows have the columns question, answer, and no 'messages'"),
    ],
    ids=lambda value: str(value[:24]),
)
def test_a_foreign_file_that_was_sent_as_it_is_gets_one_sentence(content: bytes, told: str) -> None:
    found = validate(io.BytesIO(content))
    assert [(problem.line, problem.code) for problem in found.problems] == [(1, "foreign_format")]
    assert found.problems[0].message.startswith(told)
    assert re.search(
        r"`zhub datasets convert FILE -o rows.jsonl` makes it one|save the sheet as CSV", found.problems[0].message
    )


@pytest.mark.parametrize(
    "content",
    [
        b'{"messages": [{"role": "user", "content": "x"}],\n "answer": 1\n',
        b"nonsense\n" * 3,
        b'{"a": 1}\n{"a": 2}\n',
        b'{"question": "a prompt alone"}\n' * 2,
    ],
)
def test_lines_that_are_broken_are_named_one_by_one(content: bytes) -> None:
    assert [problem.line for problem in validate(io.BytesIO(content)).problems] == list(
        range(1, content.count(b"\n") + 1)
    )
