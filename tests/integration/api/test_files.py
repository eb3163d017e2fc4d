"""Files through the API: uploads, versions, pages, deletion, and what their validation says."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from api_requests import ROWS, raw, upload
from sqlalchemy import Engine

from zhub import scheduler
from zhub.embedded.children import free_ports
from zhub.embedded.postgres import Urls
from zhub.process.config import Settings
from zhub.process.wakeup import PollingWakeup
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import Agent
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.worker import light_runner

Client = openai.OpenAI
MakeKey = Callable[..., str]


@pytest.fixture
def workers(system_engine: Engine, database: Urls, settings: Settings) -> Iterator[None]:
    """A scheduler and an agent whose workers are threads; only the validation of files is really done."""
    stopping = threading.Event()

    def no_training(_attempt: Attempt, _context: AttemptContext) -> dict[str, Any]:
        raise AssertionError("nothing is trained here")

    def pause(_seconds: float) -> None:
        stopping.wait(0.02)

    wakeup = PollingWakeup(pause)
    agent = Agent(
        settings.model_copy(update={"database_url": database.system}),
        system_engine,
        ThreadLauncher({"light": light_runner.run, "torch": no_training}),
    )
    threads = [
        threading.Thread(target=lambda: scheduler.run(system_engine, wakeup, stopping, leader_lease_s=15)),
        threading.Thread(target=agent.run, args=(wakeup, stopping)),
    ]
    for thread in threads:
        thread.start()
    yield
    stopping.set()
    for thread in threads:
        thread.join(timeout=15)


def test_a_file_comes_back_byte_for_byte(client: Client) -> None:
    file = upload(client)
    assert client.files.content(file.id).read() == ROWS


def test_a_file_says_what_it_is(client: Client) -> None:
    file = upload(client, "sums.jsonl")
    described = (file.object, file.filename, file.purpose, file.bytes, file.status, file.sha256, file.version)
    assert described == ("file", "sums.jsonl", "fine-tune", len(ROWS), "uploaded", hashlib.sha256(ROWS).hexdigest(), 1)


def test_the_same_name_makes_the_next_version(client: Client) -> None:
    versions = [upload(client, name, content).version for name, content in (("a.jsonl", b"1"), ("a.jsonl", b"2"))]
    assert [*versions, upload(client, "b.jsonl").version] == [1, 2, 1]


def test_equal_bytes_under_one_name_are_the_version_that_there_is(client: Client) -> None:
    first = upload(client, "a.jsonl")
    assert upload(client, "a.jsonl").id == first.id
    assert upload(client, "b.jsonl").id != first.id
    client.files.delete(first.id)
    again = upload(client, "a.jsonl")
    assert (again.id != first.id, again.version) == (True, 2)


def test_concurrent_uploads_of_equal_bytes_are_one_version(client: Client) -> None:
    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(lambda _n: upload(client, "a.jsonl").id, range(6)))
    assert len(ids) == 1 == len(client.files.list().data)


def test_a_file_may_be_there_for_an_evaluation_only(client: Client) -> None:
    for purpose in ("evals", "user_data"):
        file = client.files.create(file=("a.jsonl", ROWS), purpose=purpose)
        assert file.purpose == purpose
    assert [file.purpose for file in client.files.list(purpose="evals")] == ["evals"]


def test_concurrent_uploads_of_one_name_get_numbers_without_a_gap(client: Client) -> None:
    with ThreadPoolExecutor(6) as pool:
        versions = pool.map(lambda n: upload(client, "a.jsonl", str(n).encode()).version, range(6))
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["данные.jsonl", "../../etc/passwd", "a b?.jsonl", ".jsonl", "a" * 300 + ".jsonl"])
def test_a_file_may_have_any_name(client: Client, name: str) -> None:
    file = upload(client, name)
    assert client.files.content(file.id).read() == ROWS


def test_an_empty_file_is_stored_and_found_wrong_later(client: Client) -> None:
    assert upload(client, content=b"").bytes == 0


def test_a_deleted_file_is_gone_and_the_answer_says_so(client: Client) -> None:
    file = upload(client)
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_deleted_file_is_not_listed(client: Client) -> None:
    kept, dropped = upload(client, "a.jsonl"), upload(client, "b.jsonl")
    client.files.delete(dropped.id)
    assert [file.id for file in client.files.list()] == [kept.id]


def test_a_file_that_a_job_needs_cannot_be_deleted(
    client: Client, checked_file: str, train: Callable[..., Any]
) -> None:
    train()
    with pytest.raises(openai.ConflictError, match="ftjob-"):
        client.files.delete(checked_file)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_paging_through_files_meets_each_once_newest_first(client: Client, count: int) -> None:
    made = [upload(client, content=str(n).encode()).id for n in range(count)]
    assert [file.id for file in client.files.list(limit=3)] == made[::-1]


@pytest.mark.parametrize(("count", "has_more"), [(2, False), (3, False), (4, True)])
def test_a_page_says_whether_more_follow(client: Client, count: int, has_more: bool) -> None:
    for n in range(count):
        upload(client, content=str(n).encode())
    assert client.files.list(limit=3).has_more is has_more


def test_files_are_listed_oldest_first_on_request(client: Client) -> None:
    made = [upload(client, content=str(n).encode()).id for n in range(4)]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made


def test_paging_goes_on_after_a_file_that_was_deleted_meanwhile(client: Client) -> None:
    made = [upload(client, content=str(n).encode()).id for n in range(3)]
    client.files.delete(made[1])
    assert [file.id for file in client.files.list(after=made[1])] == [made[0]]


def test_a_good_file_is_processed(client: Client, workers: None) -> None:
    file = client.files.wait_for_processing(upload(client).id, poll_interval=0.02, max_wait_seconds=30)
    assert (file.status, file.status_details, file.validation["rows"]) == ("processed", None, 20)  # type: ignore[attr-defined]


def test_a_bad_file_names_its_lines(client: Client, workers: None) -> None:
    content = ROWS + b'{"messages": []}\nnot json\n'
    file = client.files.wait_for_processing(upload(client, content=content).id, poll_interval=0.02, max_wait_seconds=30)
    assert file.status == "error" and file.status_details is not None
    assert [line.split(":")[0] for line in file.status_details.split("\n")] == ["line 21", "line 22"]


def test_a_table_that_was_sent_as_it_is_gets_one_sentence_that_says_what_converts_it(
    client: Client, workers: None
) -> None:
    sent = upload(client, "quiz.csv", b"question,answer\n2 + 2?,4\n3 + 3?,6\n")
    file = client.files.wait_for_processing(sent.id, poll_interval=0.02, max_wait_seconds=30)
    assert (file.status, file.status_details) == (
        "error",
        "The file is CSV separated by commas, and a dataset is JSON Lines in UTF-8; "
        "`zhub datasets convert FILE -o rows.jsonl` makes it one.",
    )


@pytest.mark.parametrize("column", ["\\u0000", "\\ud800", "a\\u0000b"])
def test_a_file_with_text_that_cannot_be_stored_is_found_wrong_and_the_next_one_is_checked(
    client: Client, workers: None, column: str
) -> None:
    poison = b'{"messages": [{"role": "user", "content": "x"}], "%s": 1}\n' % column.encode()
    first = client.files.wait_for_processing(upload(client, content=poison).id, poll_interval=0.02, max_wait_seconds=30)
    second = client.files.wait_for_processing(upload(client).id, poll_interval=0.02, max_wait_seconds=30)
    assert (first.status, second.status) == ("error", "processed")


def test_a_large_upload_is_not_held_in_memory(
    settings: Settings, make_key: MakeKey, tmp_path: Path, until: Callable[..., Any]
) -> None:
    (port,) = free_ports(1)
    environment = {
        "ZHUB_DATABASE_URL": settings.database_url,
        "ZHUB_STORE_URL": settings.store_url,
        "ZHUB_SECRET_KEY": settings.secret_key.get_secret_value(),
        "ZHUB_PORT": str(port),
        "TMPDIR": str(tmp_path),
    }
    url, key = f"http://127.0.0.1:{port}", make_key()
    large = tmp_path / "large.jsonl"
    with large.open("wb") as file:
        for _ in range(50):
            file.write(os.urandom(1 << 20))

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def send(content: Any) -> None:
        response = raw(url, key, "POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": content})
        assert response.status_code == 200

    with subprocess.Popen([sys.executable, "-m", "zhub_api"], env=os.environ | environment) as server:
        try:
            until(answers, timeout_s=60)
            send(b"warm")
            before = peak_bytes(server.pid)
            with large.open("rb") as content:
                send(content)
            grown = peak_bytes(server.pid) - before
        finally:
            server.terminate()
    assert grown < 20 << 20


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever held: VmHWM, in kB, where Linux is; elsewhere what it holds now."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return psutil.Process(pid).memory_info().rss
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
