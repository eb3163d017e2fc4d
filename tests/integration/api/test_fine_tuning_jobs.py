"""Fine-tuning jobs through the API: created, retrieved, listed, cancelled, paused, and their events."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused, upload
from sqlalchemy import Engine, func, select
from suites import GRADER, METHOD

from zhub.database.sessions import system_session
from zhub.models import Job, JobEvent
from zhub.queue import job_events
from zhub.queue.desired import apply_requested_changes

Client = openai.OpenAI


def test_a_job_says_what_was_asked_with_every_auto_resolved(client: Client, checked_file: str) -> None:
    hyperparameters = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": "auto"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": hyperparameters}}
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=checked_file, method=method, suffix="Sum Mer", seed=7, metadata={"team": "maths"}
    )
    assert (job.object, job.model, job.training_file, job.seed) == ("fine_tuning.job", "tiny", checked_file, 7)
    assert (job.status, job.metadata, job.fine_tuned_model) == ("queued", {"team": "maths"}, None)
    assert job.hyperparameters.n_steps == 5  # type: ignore[attr-defined]  # 2 epochs x 20 rows / 8 a batch


def test_a_job_of_the_old_dialect_is_supervised(
    client: Client, check_files: Callable[[], None], make_base_model: Callable[..., uuid.UUID]
) -> None:
    make_base_model()
    lines = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "!"}]} for n in range(20)
    ]
    file = upload(client, content="\n".join(map(json.dumps, lines)).encode())
    check_files()
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, hyperparameters={"n_epochs": 4, "batch_size": 10}
    )
    assert job.method is not None and job.method.type == "supervised"
    assert job.hyperparameters.n_steps == 8  # type: ignore[attr-defined]


def test_a_job_can_be_trained_on_a_file_whose_name_has_no_latin_letter(
    client: Client, check_files: Callable[[], None], make_base_model: Callable[..., uuid.UUID]
) -> None:
    make_base_model()
    file = upload(client, "データ.jsonl")
    check_files()
    assert client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=METHOD).status == "queued"


def test_a_retrieved_job_is_the_one_created(client: Client, train: Callable[..., Any]) -> None:
    job = train()
    assert client.fine_tuning.jobs.retrieve(job.id).to_dict() == job.to_dict()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_paging_through_jobs_meets_each_once_newest_first(
    client: Client, train: Callable[..., Any], count: int
) -> None:
    made = [train(seed=n).id for n in range(count)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]


def test_validation_jobs_are_not_listed_as_fine_tuning(client: Client, checked_file: str) -> None:
    assert list(client.fine_tuning.jobs.list()) == []


def test_a_validation_job_cannot_be_fetched_as_fine_tuning(
    client: Client, checked_file: str, system_engine: Engine
) -> None:
    with system_session(system_engine) as session:
        job_id = session.scalars(select(Job.id)).one()
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(f"ftjob-{job_id.hex}")


def test_a_job_cancelled_in_the_queue_is_cancelled_at_once(client: Client, train: Callable[..., Any]) -> None:
    assert client.fine_tuning.jobs.cancel(train().id).status == "cancelled"


def test_cancelling_again_gives_the_same_answer(client: Client, train: Callable[..., Any]) -> None:
    job = train()
    first = client.fine_tuning.jobs.cancel(job.id)
    assert client.fine_tuning.jobs.cancel(job.id).to_dict() == first.to_dict()


def test_a_job_paused_in_the_queue_is_paused_at_once_and_resumed_at_once(
    client: Client, train: Callable[..., Any], system_engine: Engine
) -> None:
    job = train()
    seen: list[str] = [client.fine_tuning.jobs.pause(job.id).status, client.fine_tuning.jobs.resume(job.id).status]
    with system_session(system_engine) as session:
        apply_requested_changes(session)
    assert [*seen, client.fine_tuning.jobs.retrieve(job.id).status] == ["paused", "queued", "queued"]


def test_a_paused_job_stays_paused_until_it_is_resumed_or_cancelled(
    client: Client, train: Callable[..., Any], system_engine: Engine
) -> None:
    job = train()
    client.fine_tuning.jobs.pause(job.id)
    with system_session(system_engine) as session:
        apply_requested_changes(session)
    assert str(client.fine_tuning.jobs.retrieve(job.id).status) == "paused"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    refusal = refused(lambda: client.fine_tuning.jobs.resume(job.id))
    assert refusal.status_code == 409 and "being cancelled" in refusal.message


def test_a_job_that_has_succeeded_cannot_be_paused(client: Client, publish: Callable[..., str]) -> None:
    publish()
    (job,) = client.fine_tuning.jobs.list()
    with pytest.raises(openai.ConflictError, match="already succeeded"):
        client.fine_tuning.jobs.pause(job.id)


def test_a_job_that_has_succeeded_cannot_be_cancelled(client: Client, publish: Callable[..., str]) -> None:
    publish()
    (job,) = client.fine_tuning.jobs.list()
    with pytest.raises(openai.ConflictError, match="already succeeded"):
        client.fine_tuning.jobs.cancel(job.id)


def test_a_job_that_has_succeeded_names_its_model(client: Client, publish: Callable[..., str]) -> None:
    name = publish()
    (job,) = client.fine_tuning.jobs.list()
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", name, 7)
    assert job.finished_at is not None


def test_events_come_newest_first(client: Client, train: Callable[..., Any]) -> None:
    job = train()
    client.fine_tuning.jobs.cancel(job.id)
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert messages == ["Cancellation requested.", "Created fine-tuning job for expert main.sums."]


def test_paging_through_events_meets_each_once(
    client: Client, train: Callable[..., Any], system_engine: Engine
) -> None:
    job = train()
    with system_session(system_engine) as session:
        row = session.scalars(select(Job).where(Job.kind == "train")).one()
        for n in range(6):
            job_events.add(session, row.org_id, row.id, str(n))
    found = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=2)]
    assert found[:6] == ["5", "4", "3", "2", "1", "0"] and len(found) == 7


def test_the_ids_of_events_stay_the_same(client: Client, train: Callable[..., Any]) -> None:
    job = train()
    seen = [[event.id for event in client.fine_tuning.jobs.list_events(job.id)] for _ in range(2)]
    assert seen[0] == seen[1] and seen[0][0].startswith("ftevent-")


def test_paging_after_an_unknown_event_is_refused(client: Client, train: Callable[..., Any]) -> None:
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list_events(train().id, after=f"ftevent-{uuid.uuid4().hex}")


def test_no_event_of_a_job_is_lost_between_its_pages(
    client: Client, train: Callable[..., Any], system_engine: Engine
) -> None:
    job = train()
    with system_session(system_engine) as session:
        row = session.scalars(select(Job).where(Job.kind == "train")).one()
        for n in range(25):
            job_events.add(session, row.org_id, row.id, str(n))
        total = session.scalar(select(func.count()).select_from(JobEvent).where(JobEvent.job_id == row.id))
    ids = [event.id for event in client.fine_tuning.jobs.list_events(job.id, limit=7)]
    assert len(ids) == len(set(ids)) == total
