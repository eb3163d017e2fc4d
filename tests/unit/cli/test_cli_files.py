"""Commands that take, list, fetch and delete files; what they upload and do not need, they delete again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_double
import api_examples
import httpx
import pytest

Run = Callable[..., int]
CSV = "question,answer\n" + "".join(f"{n} + 1?,{n + 1}\n" for n in range(3))
CONTENT = b'{"messages": [{"role": "user", "content": "x"}]}\n'


def file_object(number: int, name: str = "rows.jsonl", version: int = 1, **changed: Any) -> dict[str, Any]:
    return {
        "id": f"file-{number}", "filename": name, "dataset": name.partition(".")[0], "version": version,
        "bytes": 100 * number, "created_at": 1_700_000_000 + number, "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "status": "processed", "status_details": None, "validation": {"rows": 10 - number, "duplicate_count": 0},
    } | changed  # fmt: skip


@pytest.fixture
def files(api: Any) -> Any:
    """The API, where an upload makes the file 9."""
    api.add("POST", "/v1/files", file_object(9, is_new=True))
    api.add("GET", "/v1/files/file-9", file_object(9))
    api.add("DELETE", "/v1/files/file-9", {"id": "file-9", "deleted": True})
    api.add("POST", "/v1/files/file-9/token_counts", api_examples.TOKEN_COUNT)
    api.add("POST", "/v1/fine_tuning/jobs", api_examples.JOB | {"training_file": "file-9"})
    return api


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    return path


def sent(api: Any, method: str, path: str) -> list[httpx.Request]:
    return [request for request in api.requests if (request.method, request.url.path) == (method, path)]


# Conversion


def test_pushing_a_table_sends_its_rows_and_shows_what_becomes_of_what(
    files: Any, zhub: Run, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("datasets", "push", str(data)) == 0
    (upload,) = sent(files, "POST", "/v1/files")
    assert b'filename="rows.jsonl"' in upload.content
    assert b'{"messages": [{"role": "user", "content": "0 + 1?"}], "answer": "1"}\n' in upload.content
    err = capsys.readouterr().err
    assert "rows.csv is CSV separated by commas, 3 rows." in err
    assert ["question", "the", "user's", "message"] in [line.split() for line in err.splitlines()]
    assert '→ {"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}' in err


@pytest.mark.parametrize(
    ("command", "answer_is_a_message"),
    [
        (("submit", "--base", "zhub-tiny"), False),
        (("submit", "--base", "zhub-tiny", "--method", "supervised"), True),
        (("datasets", "push", "--method", "supervised"), True),
        (("evaluations", "create", "zhub-tiny"), False),
        (("promotions", "create", "default.sorting@v1"), False),
        (("schedules", "add", "daily", "--base", "zhub-tiny", "--cron", "0 3 * * *"), False),
    ],
)
def test_every_command_that_takes_a_file_converts_it(
    command: tuple[str, ...], answer_is_a_message: bool, files: Any, zhub: Run, data: Path
) -> None:
    assert zhub(*command, str(data)) == 0
    (upload,) = sent(files, "POST", "/v1/files")
    assert (b'{"role": "assistant", "content": "1"}' in upload.content) is answer_is_a_message
    assert sent(files, "DELETE", "/v1/files/file-9") == []


@pytest.mark.parametrize("command", [("datasets", "convert"), ("datasets", "push"), ("submit", "--base", "b")])
def test_a_file_whose_columns_say_nothing_is_refused_before_anything_is_sent(
    command: tuple[str, ...], files: Any, zhub: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "foo.csv"
    path.write_text("foo,bar\n1,2\n3,4\n")
    assert zhub(*command, str(path)) == 1
    assert "--prompt-column" in capsys.readouterr().err and sent(files, "POST", "/v1/files") == []
    assert zhub(*command, str(path), "--prompt-column", "foo", "--answer-column", "bar") == 0


def test_converting_writes_the_rows_only_where_it_is_told_to(
    zhub: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("datasets", "convert", str(data)) == 0
    assert "3 rows" in capsys.readouterr().err and list(tmp_path.iterdir()) == [data]
    target = tmp_path / "rows.jsonl"
    template = ("--prompt-template", "{{item.question}} Just the number.")
    assert zhub("datasets", "convert", str(data), "-o", str(target), *template) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert rows[2]["messages"][0]["content"] == "2 + 1? Just the number." and rows[2]["answer"] == "3"
    assert zhub("datasets", "convert", str(data), "-o", str(target)) == 5
    assert zhub("datasets", "convert", str(data), "-o", str(tmp_path / "none" / "rows.jsonl")) == 1


# What is not needed is deleted again

REFUSED = [
    (("submit", "--base", "zhub-tiny"), "/v1/fine_tuning/jobs"),
    (("submit", "--base", "zhub-tiny"), "/v1/fine_tuning/jobs/estimate"),
    (("submit", "--base", "zhub-tiny"), "/v1/files/file-9/token_counts"),
    (("evaluations", "create", "zhub-tiny"), "/v1/evaluations"),
    (("promotions", "create", "default.sorting@v1"), "/v1/promotions"),
    (("schedules", "add", "daily", "--base", "zhub-tiny", "--cron", "0 3 * * *"), "/v1/schedules"),
]


@pytest.mark.parametrize(("command", "path"), REFUSED)
def test_what_is_refused_leaves_no_file_behind(
    command: tuple[str, ...], path: str, files: Any, zhub: Run, data: Path
) -> None:
    files.refuse("POST", path, 400, "invalid_request", "It is refused.")
    assert zhub(*command, str(data)) == 1
    assert len(sent(files, "DELETE", "/v1/files/file-9")) == 1


def test_a_file_whose_rows_are_bad_is_deleted_again_unless_it_was_pushed(files: Any, zhub: Run, data: Path) -> None:
    files.add("GET", "/v1/files/file-9", file_object(9, status="error", status_details="line 1: bad"))
    assert zhub("submit", str(data), "--base", "zhub-tiny") == 1
    assert len(sent(files, "DELETE", "/v1/files/file-9")) == 1
    assert zhub("datasets", "push", str(data)) == 1
    assert len(sent(files, "DELETE", "/v1/files/file-9")) == 1


def test_a_dry_run_leaves_no_file_behind(files: Any, zhub: Run, data: Path) -> None:
    assert zhub("submit", str(data), "--base", "zhub-tiny", "--dry-run") == 0
    assert len(sent(files, "DELETE", "/v1/files/file-9")) == 1
    assert sent(files, "POST", "/v1/fine_tuning/jobs") == []


def test_a_file_that_the_job_of_the_same_dedup_key_does_not_train_on_is_deleted_again(
    files: Any, zhub: Run, data: Path
) -> None:
    files.add("POST", "/v1/fine_tuning/jobs", api_examples.JOB | {"training_file": "file-5"})
    assert zhub("submit", str(data), "--base", "zhub-tiny", "--dedup-key", "nightly") == 0
    assert len(sent(files, "DELETE", "/v1/files/file-9")) == 1


def test_a_file_that_was_there_before_stays(files: Any, zhub: Run, data: Path) -> None:
    files.add("POST", "/v1/files", file_object(9, is_new=False))
    assert zhub("submit", str(data), "--base", "zhub-tiny", "--dry-run") == 0
    assert sent(files, "DELETE", "/v1/files/file-9") == []


def test_a_file_that_cannot_be_deleted_any_more_is_named_and_the_reason_stays_the_refusal(
    files: Any, zhub: Run, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.refuse("POST", "/v1/fine_tuning/jobs", 400, "invalid_request", "It is refused.")
    files.refuse("DELETE", "/v1/files/file-9", 409, "conflict", "ftjob-7 still needs it.")
    assert zhub("submit", str(data), "--base", "zhub-tiny") == 1
    err = capsys.readouterr().err
    assert "file-9, which was uploaded for this, is still there: ftjob-7 still needs it." in err
    assert err.rstrip().endswith("error: It is refused.")


# Long rows

LONG = api_examples.TOKEN_COUNT | {
    "long_row_count": 2,
    "long_rows": [{"line": 3, "tokens": 70}, {"line": 7, "tokens": 90}],
}


@pytest.mark.parametrize("dry_run", [("--dry-run",), ()])
def test_all_rows_that_are_too_long_are_named_before_anything_is_queued(
    dry_run: tuple[str, ...], files: Any, zhub: Run, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.add("POST", "/v1/files/file-9/token_counts", LONG)
    assert zhub("submit", str(data), "--base", "zhub-tiny", *dry_run) == 1
    err = capsys.readouterr().err
    assert "At most 64 tokens fit" in err and "line 3 (70 tokens), line 7 (90 tokens)." in err
    assert "--long-rows skip" in err and "--long-rows cut" in err
    assert "The lines are those of the rows that `zhub datasets convert` writes." in err
    assert sent(files, "POST", "/v1/fine_tuning/jobs") == []
    assert len(sent(files, "DELETE", "/v1/files/file-9")) == 1


@pytest.mark.parametrize(("how", "words"), [("skip", "left out"), ("cut", "cut")])
@pytest.mark.parametrize("option", ["--long-rows={}", "--set=long_rows={}"])
def test_long_rows_are_left_out_or_cut_on_request(
    how: str, words: str, option: str, files: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    files.add("POST", "/v1/files/file-1/token_counts", LONG)
    command = ("submit", "file-1", "--base", "zhub-tiny", option.format(how))
    assert zhub(*command, "--dry-run") == 0
    assert f"2 are {words}, the first: line 3 (70 tokens)" in capsys.readouterr().out
    assert zhub(*command) == 0
    (body,) = files.bodies("POST", "/v1/fine_tuning/jobs")
    assert body["method"]["reinforcement"]["hyperparameters"] == {"long_rows": how}


@pytest.mark.parametrize(
    ("error", "submitted"),
    [({"code": "training_error", "message": "line 3: no"}, 0), ({"code": "unavailable", "message": "no hub"}, 1)],
)
def test_a_count_that_failed_stops_a_submit_only_where_the_training_would_fail_as_well(
    error: dict[str, str], submitted: int, files: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    files.add("POST", "/v1/files/file-1/token_counts", api_examples.TOKEN_COUNT | {"status": "failed", "error": error})
    assert zhub("submit", "file-1", "--base", "zhub-tiny") == 1 - submitted
    assert error["message"] in capsys.readouterr().err
    assert len(sent(files, "POST", "/v1/fine_tuning/jobs")) == submitted


def test_a_language_that_the_tokenizer_does_not_know_is_warned_of_before_anything_is_queued(
    files: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    warned = api_examples.TOKEN_COUNT | {"tokenizer_warning": "It is split into 12 times the tokens of English."}
    files.add("POST", "/v1/files/file-1/token_counts", warned)
    assert zhub("submit", "file-1", "--base", "zhub-tiny", "--dry-run") == 0
    assert "Warning: It is split into 12 times the tokens of English." in capsys.readouterr().err


# What is there


@pytest.fixture
def listed(api: Any) -> Any:
    """Three files of two datasets."""
    api.add(
        "GET",
        "/v1/files",
        api_double.page([file_object(3, "b.jsonl", 2), file_object(2, "a.jsonl"), file_object(1, "b.jsonl")]),
    )
    for number in (1, 2, 3):
        api.add("DELETE", f"/v1/files/file-{number}", {"id": f"file-{number}", "deleted": True})
        api.add("GET", f"/v1/files/file-{number}/content", CONTENT)
    api.add("GET", "/v1/files/file-3", file_object(3, "b.jsonl", 2))
    api.add("GET", "/v1/files/file-1", file_object(1, "b.jsonl"))
    return api


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ((), [3, 2, 1]),
        (("--sort", "oldest"), [1, 2, 3]),
        (("--sort", "name"), [2, 3, 1]),
        (("--sort", "rows"), [1, 2, 3]),
        (("--sort", "size", "--limit", "2"), [3, 2]),
        (("--limit", "1"), [3]),
    ],
)
def test_files_are_sorted_and_cut(
    options: tuple[str, ...], ids: list[int], listed: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("datasets", "ls", *options) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [f"file-{number}" for number in ids]


def test_the_search_is_done_by_the_api(listed: Any, zhub: Run) -> None:
    assert zhub("datasets", "ls", "--search", "a b") == 0
    assert dict(listed.requests[-1].url.params) == {"limit": "1000", "search": "a b"}


@pytest.mark.parametrize(("reference", "number"), [("b", 3), ("b@v1", 1), ("b.jsonl", 3), ("file-1", 1)])
def test_a_file_is_pulled_by_name_version_or_id(
    reference: str, number: int, listed: Any, zhub: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "copy.jsonl"
    assert zhub("datasets", "pull", reference, "-o", str(target)) == 0
    assert target.read_bytes() == CONTENT and capsys.readouterr().out == f"{target}\n"
    assert len(sent(listed, "GET", f"/v1/files/file-{number}/content")) == 1
    assert zhub("datasets", "pull", reference, "-o", str(target)) == 0
    assert len(sent(listed, "GET", f"/v1/files/file-{number}/content")) == 1


def test_a_file_is_pulled_into_this_directory_whatever_its_name(
    listed: Any, zhub: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed.add("GET", "/v1/files/file-1", file_object(1, "../../b.jsonl"))
    assert zhub("datasets", "pull", "file-1") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b.jsonl"]


@pytest.mark.parametrize("damage", [b"#" + CONTENT[1:], CONTENT[:-1], CONTENT + b"#"])
def test_damaged_bytes_are_refused_and_leave_nothing(damage: bytes, listed: Any, zhub: Run, tmp_path: Path) -> None:
    listed.add("GET", "/v1/files/file-3/content", damage)
    assert zhub("datasets", "pull", "b", "-o", str(tmp_path / "copy")) == 1
    assert list(tmp_path.iterdir()) == []


def test_pulling_overwrites_nothing_and_needs_a_directory_that_exists(listed: Any, zhub: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    assert zhub("datasets", "pull", "b", "-o", str(tmp_path / "mine")) == 5
    assert (tmp_path / "mine").read_text() == "mine"
    assert zhub("datasets", "pull", "b", "-o", str(tmp_path)) == 5
    assert zhub("datasets", "pull", "b", "-o", str(tmp_path / "none" / "copy")) == 1


def test_one_version_is_deleted_by_name_and_all_of_them_only_when_that_is_said(
    listed: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def deleted() -> list[str]:
        return [request.url.path[-1] for request in listed.requests if request.method == "DELETE"]

    assert zhub("datasets", "rm", "b") == 5
    assert "'b' has 2 versions: b@v2, b@v1. Name one of them, or give --all-versions." in capsys.readouterr().err
    assert deleted() == []
    assert zhub("datasets", "rm", "b@v1") == 0 and deleted() == ["1"]
    assert zhub("datasets", "rm", "a") == 0 and deleted() == ["1", "2"]
    assert zhub("datasets", "rm", "b", "--all-versions") == 0 and deleted() == ["1", "2", "3", "1"]


def test_a_file_that_is_needed_stays_and_force_is_handed_on(
    listed: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    listed.refuse("DELETE", "/v1/files/file-2", 409, "conflict", "main.a@v1 was trained on it.")
    assert zhub("datasets", "rm", "a") == 5
    assert "main.a@v1 was trained on it." in capsys.readouterr().err
    assert zhub("datasets", "rm", "a", "--force") == 5
    assert [str(request.url.query) for request in sent(listed, "DELETE", "/v1/files/file-2")] == [
        "b''",
        "b'force=true'",
    ]


def test_a_name_that_is_unknown_is_answered_with_the_nearest(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("GET", "/v1/files", api_double.page([file_object(1, "sorting.jsonl")]))
    for command in ("pull", "rm", "show"):
        assert zhub("datasets", command, "sortng") == 4
        assert "Did you mean 'sorting'? `zhub datasets ls` lists them." in capsys.readouterr().err
