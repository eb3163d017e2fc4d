"""The log of an attempt: what goes into it, how much, and what happens while the store is away."""

import json
import logging
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from zhub.queue.job_logs import list_chunks, read_lines
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import attempts_prefix
from zhub_workers.attempts import log as attempt_log
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.attempts.log import AttemptLog, collect_records, shipping
from zhub_workers.attempts.worker import Worker

Until = Callable[..., Any]
ORG, JOB = uuid.UUID(int=1), uuid.UUID(int=2)
PREFIX = attempts_prefix(ORG, JOB)


@pytest.fixture(autouse=True)
def root_logs_what_workers_log() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(level)
    root.removeHandler(attempt_log._collector)
    logging.captureWarnings(False)


def lines_in(log: AttemptLog) -> list[dict[str, Any]]:
    content = b""
    while piece := log.take():
        content += piece
    return [json.loads(line) for line in content.splitlines()]


def messages_in(store: DirectoryStore, prefix: str = PREFIX) -> list[str]:
    return [json.loads(line.content)["message"] for line in read_lines(store, prefix, list_chunks(store, prefix))]


def attempt_in(store: DirectoryStore, tmp_path: Path, number: int) -> Attempt:
    key = AttemptKey(uuid.UUID(int=number), 1)
    return Attempt(key, uuid.UUID(int=100 + number), {"kind": "train"}, store.root.as_uri(), tmp_path, None, "pack")


def has_ended(worker: Worker, attempt: Attempt) -> bool:
    status = worker.poll(attempt.key, 0, 60)
    return status is not None and status.state != "running"


def not_now(_code: int) -> None:
    """The leases run out long after the test; this process has other tests to run."""


def test_two_attempts_of_one_process_never_share_a_line(store: DirectoryStore, tmp_path: Path, until: Until) -> None:
    both = threading.Barrier(2)

    def run(attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
        for number in range(50):
            both.wait(20)
            context.emit("info", f"event {number} of {attempt.key.job_id.int}")
            logging.getLogger("a.library").info("record %d of %d", number, attempt.key.job_id.int)
        return {}

    worker = Worker(run, exit_process=not_now)
    attempts = [attempt_in(store, tmp_path, number) for number in (1, 2)]
    for attempt in attempts:
        worker.start(attempt, 60)
    for attempt in attempts:
        until(partial(has_ended, worker, attempt))
        said = messages_in(store, attempts_prefix(attempt.org_id, attempt.key.job_id))
        number = attempt.key.job_id.int
        assert said == [f"{what} {n} of {number}" for n in range(50) for what in ("event", "record")]


@pytest.mark.filterwarnings("always:this is old")
def test_whoever_learns_that_an_attempt_failed_finds_the_traceback(
    store: DirectoryStore, tmp_path: Path, until: Until
) -> None:
    def run(_attempt: Attempt, _context: AttemptContext) -> dict[str, Any]:
        warnings.warn("this is old", stacklevel=1)
        raise ZeroDivisionError("seven by zero")

    worker, attempt = Worker(run, exit_process=not_now), attempt_in(store, tmp_path, 1)
    worker.start(attempt, 60)
    until(partial(has_ended, worker, attempt))
    prefix = attempts_prefix(attempt.org_id, attempt.key.job_id)
    lines = [json.loads(line.content) for line in read_lines(store, prefix, list_chunks(store, prefix))]
    assert [(line["level"], line["logger"], line["fence"]) for line in lines] == [
        ("warning", "py.warnings", 1),
        ("error", "zhub.worker", 1),
    ]
    assert "this is old" in lines[0]["message"]
    assert "Traceback" in lines[1]["message"] and lines[1]["message"].endswith("ZeroDivisionError: seven by zero")


def test_a_record_outside_an_attempt_is_in_no_log(store: DirectoryStore) -> None:
    collect_records({})
    log = AttemptLog(1)
    with shipping(log, store.root.as_uri(), PREFIX):
        elsewhere = threading.Thread(target=logging.getLogger("x").info, args=("elsewhere",))
        elsewhere.start()
        elsewhere.join()
    logging.getLogger("x").info("afterwards")
    assert messages_in(store) == []


def test_secrets_of_the_environment_are_blotted_out(store: DirectoryStore) -> None:
    collect_records({
        "AWS_SECRET_ACCESS_KEY": "abcdefgh",
        "SOMEWHERE": "redis://:swordfish1@host",
        "TOKENIZERS_PARALLELISM": "plainword",
    })  # fmt: skip
    with shipping(AttemptLog(1), store.root.as_uri(), PREFIX):
        logging.getLogger("x").info("abcdefgh, swordfish1 and plainword")
    assert messages_in(store) == ["[secret], [secret] and plainword"]
    collect_records({})


def test_a_full_log_says_so_once_and_still_takes_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_log, "ATTEMPT_BYTES", 2000)
    log = AttemptLog(1)
    for number in range(100):
        log.add("info", "x", f"line {number}")
    log.add("error", "x", "why")
    said = [line["message"] for line in lines_in(log)]
    kept = said.index("line 0"), len(said) - 2
    assert said[: kept[1]] == [f"line {number}" for number in range(kept[1])] and 5 < kept[1] < 30
    assert said[-2].startswith("The log of this attempt is full") and said[-1] == "why"


def test_errors_have_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_log, "ATTEMPT_BYTES", 1000)
    monkeypatch.setattr(attempt_log, "ERROR_BYTES", 1000)
    log = AttemptLog(1)
    for _ in range(1000):
        log.add("error", "x", "why")
    assert len(lines_in(log)) < 30


def test_lines_that_the_store_does_not_take_go_oldest_first_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_log, "UNSENT_BYTES", 1000)
    log = AttemptLog(1)
    for number in range(100):
        log.add("info", "x", f"line {number}")
    first, *said = [line["message"] for line in lines_in(log)]
    assert said == [f"line {number}" for number in range(100 - len(said), 100)] and 5 < len(said) < 20
    assert first.startswith(f"{100 - len(said)} lines are left out here")


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    log = AttemptLog(1)
    log.add("info", "x", "a" + "-" * 100_000 + "z")
    (line,) = lines_in(log)
    assert line["message"][0] == "a" and line["message"][-1] == "z" and len(line["message"]) < 8100
    assert "92,002 characters left out" in line["message"]


def test_many_lines_become_numbered_chunks_of_bounded_size(store: DirectoryStore) -> None:
    log = AttemptLog(3)
    with shipping(log, store.root.as_uri(), PREFIX):
        for number in range(3000):
            log.add("info", "x", f"line {number}")
    chunks = list_chunks(store, PREFIX)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks))) and len(chunks) > 3
    assert all(store.size(key) <= attempt_log.CHUNK_BYTES for key in store.keys("t/"))
    assert messages_in(store) == [f"line {number}" for number in range(3000)]


def test_a_store_that_is_away_neither_fails_an_attempt_nor_costs_it_lines(
    tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_log, "MIN_FLUSH_S", 0.01)
    monkeypatch.setattr(attempt_log, "CLOSE_S", 0.1)
    root = tmp_path / "store"
    root.write_text("not a directory")
    log = AttemptLog(1)
    with shipping(log, root.as_uri(), PREFIX):
        log.add("info", "x", "one")
        # The thread has taken it, and the store has refused it.
        until(lambda: not log._lines)
        log.add("info", "x", "two")
    root.unlink()
    store = DirectoryStore(root)
    until(lambda: messages_in(store) == ["one", "two"])
    assert [chunk.number for chunk in list_chunks(store, PREFIX)] == [0, 1]
