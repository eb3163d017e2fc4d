"""A file that something needs is not deleted, and the refusal names what needs it and what to do."""

import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from sqlalchemy import Engine, text
from suites import GRADER, METHOD, ROWS, right_in, run

from zhub.database.sessions import system_session
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
Ask = Callable[..., Any]
SCHEDULE: dict[str, Any] = {
    "name": "weekly",
    "dataset": "suite",
    "training": {"model": "tiny", "method": METHOD, "suffix": "summer"},
    "cron": "0 3 * * 1",
}


@pytest.fixture
def other_file(make_file: Ask, suite_file: str, caller: Caller) -> str:
    """A file of another dataset, and the base ``tiny``."""
    return str(make_file(caller, ROWS, name="other.jsonl", purpose="evals"))


def refusal(client: Client, file_id: str) -> str:
    with pytest.raises(openai.ConflictError) as refused:
        client.files.delete(file_id)
    assert client.files.retrieve(file_id).id == file_id
    return refused.value.body["message"]  # type: ignore[index,no-any-return]


def end_jobs(engine: Engine) -> None:
    with system_session(engine) as session:
        session.execute(text("/* any move */ UPDATE jobs SET state = 'cancelled', finished_at = now()"))


def test_a_training_keeps_both_of_its_files_until_it_has_ended(
    client: Client, train_expert: Ask, suite_file: str, other_file: str, system_engine: Engine
) -> None:
    job = train_expert(validation_file=other_file)
    for file_id in (suite_file, other_file):
        assert f"{job.id} still needs it: wait for the end, or cancel the job." in refusal(client, file_id)
    end_jobs(system_engine)
    for file_id in (suite_file, other_file):
        assert client.files.delete(file_id).deleted


def test_an_evaluation_keeps_its_file_until_it_has_ended(
    client: Client, ask: Ask, other_file: str, system_engine: Engine, store: DirectoryStore
) -> None:
    made = ask("post", "/evaluations", {"model": "tiny", "file": other_file, "grader": GRADER})
    assert f"{made['id']} still needs it" in refusal(client, other_file)
    run(system_engine, store, lambda _spec: right_in(30))
    assert client.files.delete(other_file).deleted


def test_a_gate_keeps_the_files_of_its_suites_until_it_is_decided(
    client: Client, ask: Ask, publish_version: Ask, other_file: str
) -> None:
    suites = [{"file": other_file, "grader": GRADER}]
    made = ask("post", "/promotions", {"model": publish_version(), "suites": suites})
    assert f"{made['id']} still measures on it: cancel the promotion" in refusal(client, other_file)
    ask("post", f"/promotions/{made['id']}/cancel")
    assert client.files.delete(other_file).deleted


def test_a_schedule_keeps_the_last_version_of_its_dataset(
    client: Client, ask: Ask, make_file: Ask, suite_file: str, caller: Caller
) -> None:
    newer = make_file(caller, ROWS + ROWS.replace(b"+ 1", b"+ 2"))
    made = ask("post", "/schedules", SCHEDULE)
    assert client.files.delete(newer).deleted
    assert "The schedule 'weekly' still needs it: delete or change that first." in refusal(client, suite_file)
    ask("delete", f"/schedules/{made['id']}")
    assert client.files.delete(suite_file).deleted


@pytest.mark.parametrize("place", ["promotion", "validation_file"])
def test_a_schedule_keeps_the_files_that_its_training_names(
    client: Client, ask: Ask, other_file: str, place: str
) -> None:
    named = {"promotion": {"suites": [{"file": other_file, "grader": GRADER}]}, "validation_file": other_file}
    training = SCHEDULE["training"] | {place: named[place]}
    ask("post", "/schedules", SCHEDULE | {"training": training})
    assert "The schedule 'weekly' still needs it" in refusal(client, other_file)


def trained_version(engine: Engine, publish_version: Ask, file_id: str) -> str:
    name = publish_version()
    with system_session(engine) as session:
        session.execute(
            text(
                "/* any move */ UPDATE jobs SET dataset_version_id = :file FROM expert_versions v "
                "WHERE v.job_id = jobs.id"
            ),
            {"file": uuid.UUID(file_id.removeprefix("file-"))},
        )
    return str(name)


def test_what_a_published_version_was_trained_on_is_deleted_by_force_only(
    client: Client, ask: Ask, publish_version: Ask, other_file: str, system_engine: Engine
) -> None:
    names = [trained_version(system_engine, publish_version, other_file) for _ in range(5)]
    told = refusal(client, other_file)
    assert f"{names[4]}, {names[3]}, {names[2]} and 2 more were trained on it" in told and "'force'" in told
    assert ask("delete", f"/files/{other_file}?force=true")["deleted"]


def test_a_deleted_version_keeps_no_file(
    client: Client, ask: Ask, publish_version: Ask, other_file: str, system_engine: Engine
) -> None:
    name = trained_version(system_engine, publish_version, other_file)
    assert name in refusal(client, other_file)
    ask("delete", f"/experts/{name}")
    assert client.files.delete(other_file).deleted


def test_force_deletes_nothing_that_is_still_to_run(
    client: Client, ask: Ask, train_expert: Ask, suite_file: str
) -> None:
    train_expert()
    with pytest.raises(openai.ConflictError, match="ftjob-"):
        ask("delete", f"/files/{suite_file}?force=true")


def test_a_file_is_deleted_with_what_needs_it_detached(
    client: Client, ask: Ask, train_expert: Ask, suite_file: str
) -> None:
    job = train_expert()
    ask("post", "/schedules", SCHEDULE)
    assert "still needs it" in refusal(client, suite_file)
    assert ask("delete", f"/files/{suite_file}?detach=true")["deleted"] is True
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    (schedule,) = ask("get", "/schedules")["data"]
    assert "'suite.jsonl' v1, which it needs, was deleted" in schedule["paused_because"]


# Search


@pytest.mark.parametrize(
    ("search", "expected"),
    [("sum", ["more sums_1.jsonl", "SUMS.jsonl"]), ("_", ["more sums_1.jsonl"]), ("%", []), ("é", ["é.jsonl"])],
)
def test_files_are_searched_by_a_part_of_their_name(
    client: Client, make_file: Ask, caller: Caller, search: str, expected: list[str]
) -> None:
    for name in ("SUMS.jsonl", "é.jsonl", "more sums_1.jsonl"):
        make_file(caller, ROWS, name=name)
    listed = client.files.list(extra_query={"search": search}, limit=1)
    assert [file.filename for file in listed] == expected


def test_an_upload_says_whether_it_brought_anything_new(client: Client) -> None:
    answers = [client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune") for _ in range(2)]
    assert [answer.is_new for answer in answers] == [True, False]  # type: ignore[attr-defined]
    assert [answer.dataset for answer in answers] == ["a", "a"]  # type: ignore[attr-defined]
