"""The HTTP API as the unmodified ``openai`` client meets it: real HTTP, real PostgreSQL, real worker threads."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from claims import admit_queued, claim_one
from fastapi import FastAPI
from sqlalchemy import Engine, func, select, text
from suites import GRADER, METHOD, manifest_of

from zhub import scheduler
from zhub.admission.explain import explain
from zhub.database.sessions import system_session
from zhub.datasets import files
from zhub.datasets.validation import validate
from zhub.embedded.children import free_ports
from zhub.embedded.postgres import Urls
from zhub.manifest import MANIFEST_FILE, ROUTING_FILE, Z_FILE, FileEntry
from zhub.models import Expert, Job, JobEvent, Quota
from zhub.process.config import Settings
from zhub.process.wakeup import PollingWakeup
from zhub.queue import attempts, job_events
from zhub.queue.desired import apply_requested_changes
from zhub.registry import publish as registry
from zhub.specs import DEFAULT_STEPS
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import Agent, record_success
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.worker import light_runner

Client = openai.OpenAI
OpenClient = Callable[..., openai.OpenAI]
MakeKey = Callable[..., str]

ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n} + 1 ="}], "answer": str(n + 1)}).encode() + b"\n"
    for n in range(20)
)
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "tiny",
    "input": [{"role": "user", "content": "Is this right? {{sample.output_text}}"}],
}
FILES = [FileEntry(name=name, size_bytes=1, sha256=name) for name in (Z_FILE, ROUTING_FILE)]


def upload(client: Client, name: str = "sums.jsonl", content: bytes = ROWS) -> Any:
    return client.files.create(file=(name, io.BytesIO(content)), purpose="fine-tune")


@pytest.fixture
def check_files(system_engine: Engine, store: DirectoryStore) -> Callable[[], None]:
    """Do what the workers do with every uploaded file, at once."""

    def check() -> None:
        with system_session(system_engine) as session:
            admit_queued(session)
            while claim := claim_one(session, "validate"):
                job = attempts.succeed(session, claim.job_id, claim.fence)
                content = io.BytesIO(b"".join(store.open(claim.spec["file"]["key"])))
                assert job.dataset_version_id is not None
                files.finish_validation(session, job.dataset_version_id, files.validation_report(validate(content)))

    return check


@pytest.fixture
def checked_file(client: Client, check_files: Callable[[], None], make_base_model: Callable[..., uuid.UUID]) -> str:
    """Id of a file that a job may train on, and a base model named ``tiny`` to train."""
    make_base_model(is_default=True)
    file_id: str = upload(client).id
    check_files()
    return file_id


@pytest.fixture
def train(client: Client, checked_file: str) -> Callable[..., Any]:
    """Create a fine-tuning job of the file and the base model that there are."""

    def create(**options: Any) -> Any:
        return client.fine_tuning.jobs.create(
            **({"model": "tiny", "training_file": checked_file, "method": METHOD} | options)
        )

    return create


@pytest.fixture
def publish(system_engine: Engine, store: DirectoryStore, train: Callable[..., Any]) -> Callable[..., str]:
    """Train an expert the short way; return the name of its version."""

    def make(suffix: str = "summer", **manifest_fields: Any) -> str:
        train(suffix=suffix)
        with system_session(system_engine) as session:
            admit_queued(session)
            claim = claim_one(session, "train")
            assert claim is not None
            fields = {"recipe": "reinforcement", "files": FILES} | manifest_fields
            manifest = manifest_of(claim.job_id, fence=claim.fence, **fields)
            prefix = f"t/{claim.org_id.hex}/jobs/{claim.job_id.hex}"
            store.put(f"{prefix}/{MANIFEST_FILE}", io.BytesIO(manifest.canonical()))
            version = registry.publish(session, claim.job_id, claim.fence, manifest, prefix, 7)
            return f"main.{suffix}@v{version.version}"

    return make


@pytest.fixture
def evaluate(client: Client, system_engine: Engine, store: DirectoryStore, checked_file: str) -> Callable[[], str]:
    """Evaluate the base model the short way; return the evaluation's id."""

    def make() -> str:
        body = {"model": "tiny", "file": checked_file, "grader": GRADER}
        answer: Any = client.post("/evaluations", body=body, cast_to=object)
        with system_session(system_engine) as session:
            admit_queued(session)
            claim = claim_one(session, "evaluate")
            assert claim is not None
            key = f"t/{claim.org_id.hex}/jobs/{claim.job_id.hex}/rows.jsonl"
            store.put(key, io.BytesIO(b"{}\n"))
            report = {"rewards": [1.0], "parsed": [True], "pass_at_k": None, "rows_key": key}
            record_success(session, AttemptKey(claim.job_id, claim.fence), report)
        return str(answer["id"])

    return make


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


# Files


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


@pytest.mark.parametrize("column", ["\\u0000", "\\ud800", "a\\u0000b"])
def test_a_file_with_text_that_cannot_be_stored_is_found_wrong_and_the_next_one_is_checked(
    client: Client, workers: None, column: str
) -> None:
    poison = b'{"messages": [{"role": "user", "content": "x"}], "%s": 1}\n' % column.encode()
    first = client.files.wait_for_processing(upload(client, content=poison).id, poll_interval=0.02, max_wait_seconds=30)
    second = client.files.wait_for_processing(upload(client).id, poll_interval=0.02, max_wait_seconds=30)
    assert (first.status, second.status) == ("error", "processed")


# Jobs


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


# What is refused, and by which name


def refused(call: Callable[[], Any]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    return caught.value


def reinforcement(**parts: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": GRADER} | parts}


HYPERPARAMETERS = "method.reinforcement.hyperparameters"


@pytest.mark.parametrize(
    ("options", "status", "code", "param"),
    [
        ({"model": "gpt-5"}, 404, "not_found", None),
        ({"model": "tiny\0"}, 400, "invalid_request", None),
        ({"training_file": "file-" + "0" * 32}, 400, "file_not_found", "training_file"),
        ({"training_file": "sums.jsonl"}, 400, "file_not_found", "training_file"),
        ({"validation_file": "file-" + "0" * 32}, 400, "file_not_found", "validation_file"),
        ({"suffix": ""}, 400, "invalid_request", "suffix"),
        ({"suffix": "a" * 65}, 400, "invalid_request", "suffix"),
        ({"suffix": "!!!"}, 400, "invalid_request", "suffix"),
        ({"suffix": "a\0"}, 400, "invalid_request", None),
        ({"metadata": {"a": "\0"}}, 400, "invalid_request", None),
        ({"metadata": {"a": 1}}, 400, "invalid_request", "metadata.a"),
        ({"seed": 10**30}, 400, "invalid_request", "seed"),
        ({"seed": "soon"}, 400, "invalid_request", "seed"),
        ({"integrations": [{"type": "wandb"}]}, 400, "invalid_request", "integrations"),
        ({"method": {"type": "ppo"}}, 400, "invalid_request", "method.type"),
        ({"method": {"type": "dpo"}}, 400, "wrong_schema", "training_file"),
        (
            {"method": reinforcement(grader=JUDGE | {"model": "another"})},
            400,
            "invalid_grader",
            "method.reinforcement.grader.model",
        ),
        ({"method": {"type": "reinforcement"}}, 400, "invalid_request", "method.reinforcement.grader"),
        (
            {"method": reinforcement(grader={"type": "pyton"})},
            400,
            "invalid_grader",
            "method.reinforcement.grader.type",
        ),
        (
            {"method": reinforcement(grader=GRADER | {"reference": "{{item.solution}}"})},
            400,
            "invalid_grader",
            "method.reinforcement.grader.reference",
        ),
        (
            {"method": reinforcement(grader=GRADER | {"name": "\0"})},
            400,
            "invalid_request",
            None,
        ),
        ({"method": reinforcement(graders=[])}, 400, "invalid_request", "method.graders"),
        ({"method": reinforcement(hyperparameters=["n_epochs"])}, 400, "invalid_request", HYPERPARAMETERS),
        (
            {"method": reinforcement(hyperparameters={"lerning_rate": 0.1})},
            400,
            "unknown_hyperparameter",
            f"{HYPERPARAMETERS}.lerning_rate",
        ),
        (
            {"method": reinforcement(hyperparameters={"learning_rate": -1})},
            400,
            "invalid_request",
            f"{HYPERPARAMETERS}.learning_rate",
        ),
        (
            {"method": reinforcement(hyperparameters={"n_epochs": 1e308})},
            400,
            "invalid_request",
            f"{HYPERPARAMETERS}.n_epochs",
        ),
        ({"method": METHOD, "hyperparameters": {"n_epochs": 1}}, 400, "invalid_request", "hyperparameters"),
        ({"extra_body": {"trainig_file": "x"}}, 400, "unknown_parameter", "trainig_file"),
    ],
)
def test_a_request_that_cannot_be_met_names_what_is_wrong(
    train: Callable[..., Any], options: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    error = refused(lambda: train(**options))
    assert (error.status_code, error.code, error.param) == (status, code, param)


def test_a_misspelt_hyperparameter_is_answered_with_the_nearest_one(train: Callable[..., Any]) -> None:
    error = refused(lambda: train(method=reinforcement(hyperparameters={"lerning_rate": 0.1})))
    assert "Did you mean 'learning_rate'?" in error.message


def spec_of(engine: Engine, job_id: str) -> dict[str, Any]:
    with system_session(engine) as session:
        spec: dict[str, Any] = session.scalars(
            select(Job.spec).where(Job.id == uuid.UUID(job_id.removeprefix("ftjob-")))
        ).one()
        return spec


def test_a_job_begins_from_the_expert_that_it_names(
    train: Callable[..., Any], publish: Callable[..., str], system_engine: Engine
) -> None:
    name = publish()
    job = train(model=name)
    (start,) = spec_of(system_engine, job.id)["starts"]
    assert (job.model, start["name"], start["z_sha256"], start["routing_sha256"]) == (name, name, Z_FILE, ROUTING_FILE)


def test_a_warm_start_chooses_among_the_newest_versions_that_are_not_the_base(
    train: Callable[..., Any], publish: Callable[..., str], system_engine: Engine
) -> None:
    publish("a")
    names = [publish("a"), publish("b", best_step=0, parent_digest="d")]
    publish("the-base", best_step=0)
    publish("a-lora", hyperparameters={"adapter": "lora"})
    job = train(method=reinforcement(hyperparameters={"warm_start": "nearest"}))
    assert [start["name"] for start in spec_of(system_engine, job.id)["starts"]] == names[::-1]
    assert spec_of(system_engine, train().id)["starts"] == []


def test_nobody_begins_from_the_experts_of_others(
    open_client: OpenClient,
    make_key: MakeKey,
    publish: Callable[..., str],
    check_files: Callable[[], None],
    system_engine: Engine,
) -> None:
    name = publish()
    stranger = open_client(make_key("globex"))
    file_id = upload(stranger).id
    check_files()
    nearest: Any = reinforcement(hyperparameters={"warm_start": "nearest"})
    create = partial(stranger.fine_tuning.jobs.create, training_file=file_id)
    assert refused(lambda: create(model=name, method=METHOD)).status_code == 404
    assert spec_of(system_engine, create(model="tiny", method=nearest).id)["starts"] == []


@pytest.mark.parametrize(
    ("hyperparameters", "published"),
    [
        ({"adapter": "lora"}, {}),
        ({"parameterisation": "sigmoid"}, {}),
        ({"warm_start": "nearest"}, {}),
        ({}, {"hyperparameters": {"adapter": "lora"}}),
        ({}, {"basis_fingerprint": "an earlier one"}),
    ],
)
def test_an_expert_that_a_job_cannot_begin_from_is_refused(
    train: Callable[..., Any], publish: Callable[..., str], hyperparameters: Any, published: Any
) -> None:
    name = publish(**published)
    error = refused(lambda: train(model=name, method=reinforcement(hyperparameters=hyperparameters)))
    assert (error.status_code, error.param) == (400, "model") and "base model" in error.message


def test_a_queued_job_says_what_it_waits_for(client: Client, train: Callable[..., Any], system_engine: Engine) -> None:
    job = train()
    path = f"/fine_tuning/jobs/{job.id}/queue"
    before: Any = client.get(path, cast_to=object)
    with system_session(system_engine) as session:
        explain(session, agent_lost_after_s=30)
    after: Any = client.get(path, cast_to=object)
    assert "has just been queued" in before["reason"]
    assert "No agent of cluster 'default' is alive" in after["reason"]
    assert (after["job_id"], after["status"], after["position"]) == (job.id, "queued", None)


def test_a_job_in_a_queue_knows_its_position(
    client: Client, train: Callable[..., Any], system_engine: Engine, make_agent: Callable[..., uuid.UUID]
) -> None:
    make_agent()
    jobs_ = [train(), train()]
    with system_session(system_engine) as session:
        explain(session, agent_lost_after_s=30)
    found: list[Any] = [client.get(f"/fine_tuning/jobs/{job.id}/queue", cast_to=object) for job in jobs_]
    assert [one["position"] for one in found] == [1, 2]
    assert found[1]["reason"] == "1 job is served before it: 1 of your organisation's."


@pytest.mark.parametrize(
    ("wish", "told"),
    [("pause", "It is paused, until somebody resumes it."), ("cancel", "It has ended.")],
)
def test_a_job_that_does_not_wait_says_so(
    client: Client, train: Callable[..., Any], system_engine: Engine, wish: str, told: str
) -> None:
    job = train()
    getattr(client.fine_tuning.jobs, wish)(job.id)
    with system_session(system_engine) as session:
        explain(session, agent_lost_after_s=30)
        apply_requested_changes(session)
    answer: Any = client.get(f"/fine_tuning/jobs/{job.id}/queue", cast_to=object)
    assert (answer["reason"], answer["position"]) == (told, None)


def test_a_job_beyond_the_quota_is_refused_and_not_retried(
    client: Client, train: Callable[..., Any], system_engine: Engine, caller: Caller
) -> None:
    train()
    with system_session(system_engine) as session:
        session.add(Quota(org_id=caller.org_id, max_queued=2))
    train()
    error = refused(train)
    assert (error.status_code, error.code) == (429, "quota_exceeded")
    assert "2 jobs of your organisation wait already" in error.message
    assert error.response.headers["x-should-retry"] == "false"


def test_a_job_expects_to_run_as_long_as_those_of_its_size_did(
    train: Callable[..., Any], system_engine: Engine
) -> None:
    def past(seconds: int, **hyperparameters: Any) -> None:
        job = train(method=reinforcement(hyperparameters={"n_steps": 10} | hyperparameters))
        with system_session(system_engine) as session:
            session.execute(
                text(
                    "UPDATE jobs SET state = 'succeeded', started_at = now() - make_interval(secs => :s), "
                    "finished_at = now() WHERE id = :id"
                ),
                {"s": seconds, "id": uuid.UUID(job.id.removeprefix("ftjob-"))},
            )

    def expected(**hyperparameters: Any) -> float | None:
        job = train(method=reinforcement(hyperparameters={"n_steps": 30} | hyperparameters))
        with system_session(system_engine) as session:
            return session.scalar(select(Job.expected_s).where(Job.id == uuid.UUID(job.id.removeprefix("ftjob-"))))

    assert expected() is None
    for seconds in (100, 120, 200):
        past(seconds)
    past(1000, batch_size=64)
    assert expected() == pytest.approx(360, rel=0.01)
    assert expected(batch_size=64) == pytest.approx(3000, rel=0.01)
    assert expected(batch_size=16) == pytest.approx(3 * (120 + 200) / 2, rel=0.01)


def test_a_job_names_the_cluster_that_trains_it_among_those_that_agents_offered_within_a_day(
    client: Client, checked_file: str, system_engine: Engine, make_agent: Callable[..., uuid.UUID]
) -> None:
    body: dict[str, Any] = {"model": "tiny", "training_file": checked_file, "method": reinforcement()}

    def create(**cluster: str) -> Any:
        return client.post("/fine_tuning/jobs", body=body | cluster, cast_to=object)

    assert create()["cluster"] == "default"
    with pytest.raises(openai.BadRequestError, match="none has been seen"):
        create(cluster="h100")
    for name in ("h100", "a10", "gone"):
        make_agent(cluster=name)
    with system_engine.begin() as connection:
        connection.execute(text("UPDATE agents SET seen_at = now() - interval '25 hours' WHERE cluster = 'gone'"))
    assert create(cluster="h100")["cluster"] == "h100"
    with pytest.raises(openai.BadRequestError, match="give one of: a10, h100") as refused:
        create(cluster="gone")
    assert refused.value.param == "cluster"


def test_a_base_is_decomposed_on_the_cluster_that_is_asked_for(
    client: Client, open_client: OpenClient, make_key: MakeKey, system_engine: Engine, make_agent: Callable[..., Any]
) -> None:
    for name in ("a10", "h100"):
        make_agent(cluster=name)
    hub = {"name": "big", "hub_id": "org/big", "hub_revision": "0" * 40}
    with pytest.raises(openai.BadRequestError, match="give one of: a10, h100") as refused:
        client.post("/base_models", body=hub | {"cluster": "b200"}, cast_to=object)
    assert refused.value.param == "cluster"
    for cluster in ("a10", "h100"):  # what was begun is begun again
        made: Any = client.post("/base_models", body=hub | {"cluster": cluster}, cast_to=object)
        assert made["cluster"] == cluster
    with pytest.raises(openai.NotFoundError, match="not complete"):
        client.get("/base_models/big/queue", cast_to=object)
    client.post("/base_models/big/complete", cast_to=object)
    with system_session(system_engine) as session:
        assert list(session.scalars(select(Job.cluster).where(Job.kind == "decompose"))) == ["h100"]
        session.execute(text("UPDATE agents SET seen_at = now() - interval '1 minute'"))
        explain(session, agent_lost_after_s=30)
    found: Any = client.get("/base_models/big/queue", cast_to=object)
    assert (found["object"], found["job_id"]) == ("base_model.queue", "big")
    assert "No agent of cluster 'h100' is alive" in found["reason"]
    with pytest.raises(openai.NotFoundError, match="another organisation"):
        open_client(make_key("globex")).get("/base_models/big/queue", cast_to=object)


def test_an_estimate_says_what_a_job_would_be_and_leaves_nothing_behind(
    client: Client, checked_file: str, system_engine: Engine
) -> None:
    body: dict[str, Any] = {"model": "tiny", "training_file": checked_file, "suffix": "new"}
    body |= {"method": reinforcement(hyperparameters={"data_parallel": 2})}
    answer: Any = client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)
    assert (answer["expert"], answer["workers"], answer["shares_a_worker"]) == ("main.new", 2, False)
    assert answer["method"]["reinforcement"]["hyperparameters"]["n_steps"] == DEFAULT_STEPS
    assert answer["expected_seconds"] is None
    with system_session(system_engine) as session:
        assert session.scalar(select(func.count()).select_from(Expert)) == 0
    assert list(client.fine_tuning.jobs.list()) == []


def test_an_estimate_refuses_what_creating_the_job_would(client: Client, checked_file: str) -> None:
    body = {"model": "tiny", "training_file": checked_file, "method": reinforcement(hyperparameters={"n_stepz": 2})}
    error = refused(lambda: client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object))
    assert error.code == "unknown_hyperparameter"


def test_a_small_job_may_share_a_worker_and_a_lora_may_not(train: Callable[..., Any], system_engine: Engine) -> None:
    train()
    train(method=reinforcement(hyperparameters={"adapter": "lora"}))
    with system_session(system_engine) as session:
        keys = list(session.scalars(select(Job.pack_key).where(Job.kind == "train").order_by(Job.id)))
    assert keys[0] is not None and keys[1:] == [None]


def test_a_request_that_is_refused_leaves_nothing_behind(train: Callable[..., Any], system_engine: Engine) -> None:
    refused(lambda: train(suffix="fresh", seed=10**30))
    refused(lambda: train(suffix="fresh", method=reinforcement(hyperparameters={"nope": 1})))
    with system_engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM experts")) == 0


def test_a_file_for_the_other_recipe_is_refused_with_a_line(client: Client, train: Callable[..., Any]) -> None:
    error = refused(lambda: train(method={"type": "supervised"}))
    assert (error.param, error.code) == ("training_file", "wrong_schema") and "line 1" in error.message


def test_a_file_that_failed_validation_brings_its_problems(
    client: Client, check_files: Callable[[], None], train: Callable[..., Any]
) -> None:
    file = upload(client, content=b"{}\n" * 3)
    check_files()
    error = refused(lambda: train(training_file=file.id))
    assert error.code == "invalid_dataset" and isinstance(error.body, dict)
    assert [problem["line"] for problem in error.body["errors"]] == [1, 2, 3]


def test_too_few_prompts_are_refused(
    client: Client, check_files: Callable[[], None], train: Callable[..., Any]
) -> None:
    file = upload(client, content=b"".join(ROWS.splitlines(keepends=True)[:9]))
    check_files()
    assert refused(lambda: train(training_file=file.id)).code == "dataset_too_small"


def test_a_base_model_in_the_making_is_a_conflict_that_passes(
    make_base_model: Callable[..., uuid.UUID], train: Callable[..., Any]
) -> None:
    make_base_model("big", status="decomposing")
    error = refused(lambda: train(model="big"))
    assert (error.status_code, error.code) == (409, "not_ready")


def test_a_base_model_that_was_refused_says_why(
    make_base_model: Callable[..., uuid.UUID], train: Callable[..., Any]
) -> None:
    make_base_model("odd", status="error", error="It has no linear layers.")
    error = refused(lambda: train(model="odd"))
    assert error.status_code == 409 and "It has no linear layers." in error.message


# Retries


class Counted(httpx.HTTPTransport):
    """Real HTTP that counts requests, and loses the answer to the first ``lost`` of them on the way back."""

    def __init__(self, lost: int = 0) -> None:
        super().__init__()
        self.requests = 0
        self._lost = lost

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        response = super().handle_request(request)
        if self.requests <= self._lost:
            response.read()
            response.close()
            raise httpx.ReadError("the answer was lost", request=request)
        return response


@pytest.fixture
def counting(open_client: OpenClient, make_key: MakeKey) -> Iterator[Callable[..., tuple[Client, Counted]]]:
    transports: list[httpx.Client] = []

    def make(*, lost: int = 0, max_retries: int = 2) -> tuple[Client, Counted]:
        transport = Counted(lost)
        transports.append(httpx.Client(transport=transport))
        return open_client(make_key(), max_retries=max_retries, http_client=transports[-1]), transport

    yield make
    for transport in transports:
        transport.close()


def test_a_file_that_is_not_checked_yet_is_a_conflict_that_the_client_retries(
    counting: Callable[..., tuple[Client, Counted]], make_base_model: Callable[..., uuid.UUID]
) -> None:
    make_base_model()
    client, transport = counting(max_retries=1)
    file = upload(client)
    before = transport.requests
    error = refused(lambda: client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=METHOD))
    assert (error.status_code, error.code, transport.requests - before) == (409, "not_ready", 2)


def test_a_conflict_that_never_passes_is_not_retried(
    counting: Callable[..., tuple[Client, Counted]], publish: Callable[..., str]
) -> None:
    publish()
    client, transport = counting(max_retries=2)
    (job,) = client.fine_tuning.jobs.list()
    before = transport.requests
    refused(lambda: client.fine_tuning.jobs.cancel(job.id))
    assert transport.requests - before == 1


def test_a_request_whose_answer_was_lost_makes_one_job(
    counting: Callable[..., tuple[Client, Counted]], checked_file: str
) -> None:
    client, transport = counting(lost=1)
    job = client.fine_tuning.jobs.create(model="tiny", training_file=checked_file, method=METHOD)
    assert transport.requests == 2
    assert [found.id for found in client.fine_tuning.jobs.list()] == [job.id]


def test_the_same_request_made_twice_on_purpose_makes_two_jobs(train: Callable[..., Any]) -> None:
    assert train().id != train().id


def test_a_retry_of_another_request_makes_another_job(train: Callable[..., Any]) -> None:
    first = train(seed=1)
    second = train(seed=2, extra_headers={"x-stainless-retry-count": "1"})
    assert first.id != second.id


def test_one_idempotency_key_makes_one_job(client: Client, train: Callable[..., Any]) -> None:
    made = {train(extra_headers={"Idempotency-Key": "k"}).id for _ in range(2)}
    assert made == {job.id for job in client.fine_tuning.jobs.list()} and len(made) == 1


def test_one_idempotency_key_with_two_bodies_is_refused(train: Callable[..., Any]) -> None:
    train(seed=1, extra_headers={"Idempotency-Key": "k"})
    error = refused(lambda: train(seed=2, extra_headers={"Idempotency-Key": "k"}))
    assert (error.status_code, error.code, error.param) == (422, "idempotency_mismatch", "Idempotency-Key")


def test_an_idempotency_key_belongs_to_its_project(
    open_client: OpenClient,
    make_key: MakeKey,
    train: Callable[..., Any],
    check_files: Callable[[], None],
) -> None:
    other = open_client(make_key("acme", "other"))
    file = upload(other)
    check_files()
    headers = {"Idempotency-Key": "k"}
    theirs = other.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=METHOD, extra_headers=headers)
    assert train(extra_headers=headers).id != theirs.id


def test_requests_with_one_idempotency_key_at_the_same_time_make_one_job(
    client: Client, train: Callable[..., Any]
) -> None:
    barrier = threading.Barrier(4)

    def create(_index: int) -> Any:
        barrier.wait(timeout=10)
        try:
            return train(extra_headers={"Idempotency-Key": "k"}).id
        except openai.ConflictError:  # still in flight: the client would try again by itself
            return None

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(create, range(4))) - {None}
    assert answers == {job.id for job in client.fine_tuning.jobs.list()} and len(answers) == 1


# The envelope of every error


def raw(api_url: str, key: str | None, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(timeout=20) as http:
        return http.request(
            method, api_url.removesuffix("/v1") + path, headers=headers | options.pop("headers", {}), **options
        )


JSON = {"content-type": "application/json"}
CREATE = "/v1/fine_tuning/jobs"


def with_seed(seed: str) -> bytes:
    return b'{"model": "tiny", "training_file": "file-0", "seed": %s}' % seed.encode()


def with_method(inside: str) -> bytes:
    return b'{"model": "tiny", "training_file": "file-0", "method": {"type": "x", "x": %s}}' % inside.encode()


def with_answer(text: str) -> bytes:
    asked = '"messages": [{"role": "user", "content": "x"}], "score": 1'
    return f'{{"model": "main.summer@v1", {asked}, "completion": "{text}"}}'.encode()


BAD_REQUESTS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "unknown route": (404, "GET", "/v1/nothing", {}),
    "wrong method": (405, "DELETE", "/v1/models", {}),
    "no body": (400, "POST", CREATE, {}),
    "not JSON": (400, "POST", CREATE, {"content": b"{", "headers": JSON}),
    "not UTF-8": (400, "POST", CREATE, {"content": b'{"model": "\xff"}', "headers": JSON}),
    "a list": (400, "POST", CREATE, {"content": b"[]", "headers": JSON}),
    "deeply nested": (400, "POST", CREATE, {"content": b"[" * 100_000, "headers": JSON}),
    "deeply nested value": (400, "POST", CREATE, {"content": with_method("[" * 400 + "]" * 400), "headers": JSON}),
    "huge number": (400, "POST", CREATE, {"content": with_seed("1" * 5000), "headers": JSON}),
    "half a character": (400, "POST", CREATE, {"content": with_method('{"a": "\\ud800"}'), "headers": JSON}),
    "half a character in feedback": (400, "POST", "/v1/feedback", {"content": with_answer("\\ud800"), "headers": JSON}),
    "form instead of JSON": (400, "POST", CREATE, {"data": {"model": "tiny"}}),
    "no file": (400, "POST", "/v1/files", {"data": {"purpose": "fine-tune"}}),
    "file that is text": (400, "POST", "/v1/files", {"data": {"purpose": "fine-tune", "file": "x"}}),
    "unknown purpose": (400, "POST", "/v1/files", {"data": {"purpose": "batch"}, "files": {"file": b"x"}}),
    "broken multipart": (
        400,
        "POST",
        "/v1/files",
        {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=y"}},
    ),
    "NUL in a name of a model": (400, "GET", "/v1/models/%00", {}),
    "NUL in a name of a base model": (400, "GET", "/v1/base_models/%00", {}),
    "NUL in an expert": (404, "GET", "/v1/experts/%00", {}),
    "NUL in a file id": (404, "GET", "/v1/files/file-%00", {}),
    "NUL in a purpose": (400, "GET", "/v1/files?purpose=%00", {}),
    "not UTF-8 in a path": (404, "GET", "/v1/models/%ff", {}),
    "limit of nothing": (400, "GET", "/v1/files?limit=0", {}),
    "limit in words": (400, "GET", "/v1/files?limit=ten", {}),
    "limit too high": (400, "GET", "/v1/fine_tuning/jobs?limit=101", {}),
    "unknown order": (400, "GET", "/v1/files?order=random", {}),
    "after nothing known": (404, "GET", "/v1/files?after=file-1", {}),
    "after another kind": (404, "GET", f"/v1/files?after=ftjob-{'0' * 32}", {}),
    "chat without messages": (400, "POST", "/v1/chat/completions", {"json": {"model": "tiny", "messages": []}}),
    "chat with a NUL": (
        400,
        "POST",
        "/v1/chat/completions",
        {"json": {"model": "\0", "messages": [{"role": "user", "content": "x"}]}},
    ),
    "pickled weights": (400, "PUT", "/v1/base_models/new/files/pytorch_model.bin", {"content": b"x"}),
    "file of no base model": (404, "PUT", "/v1/base_models/new/files/config.json", {"content": b"{}"}),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_every_bad_request_is_answered_in_the_dialects_envelope(api_url: str, make_key: MakeKey, what: str) -> None:
    status, method, path, options = BAD_REQUESTS[what]
    response = raw(api_url, make_key(), method, path, **options)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert error["message"] and error["type"] and error["code"]
    assert response.headers["x-request-id"]


def test_a_body_that_is_no_json_is_nobodys_parameter(api_url: str, make_key: MakeKey) -> None:
    response = raw(api_url, make_key(), "POST", CREATE, content=b'{"a": nonsense}', headers=JSON)
    assert response.json()["error"]["param"] is None


def test_an_error_carries_its_request_id_into_the_client(client: Client) -> None:
    error = refused(lambda: client.files.retrieve("file-1"))
    assert error.request_id and error.request_id.startswith("req_")


def test_a_request_id_of_the_callers_is_kept(api_url: str, make_key: MakeKey) -> None:
    response = raw(api_url, make_key(), "GET", "/v1/models", headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"


@pytest.fixture
def broken_database(owner_engine: Engine) -> None:
    with owner_engine.begin() as connection:
        connection.execute(text("ALTER TABLE datasets RENAME TO gone"))
        connection.execute(text("ALTER TABLE dataset_versions RENAME TO gone_too"))


def test_an_unexpected_failure_tells_its_user_nothing_of_its_inside(client: Client, broken_database: None) -> None:
    error = refused(lambda: client.files.list())
    assert (error.status_code, error.code) == (500, "internal_error")
    assert "dataset" not in error.message and "SELECT" not in error.message


def test_an_unexpected_failure_has_a_request_id(client: Client, broken_database: None) -> None:
    assert refused(lambda: client.files.list()).request_id


# Who may


PLACES = {
    "alias": "prod",
    "expert": "main.summer",
    "promotion_id": "promo-0",
    "schedule_id": "sched-0",
    "checkpoint_id": "ftckpt-0",
    "delivery_id": "whd-0",
    "endpoint_id": "whe-0",
    "evaluation_id": "eval-0",
    "feedback_id": "fb-0",
    "file_id": "file-0",
    "job_id": "ftjob-0",
    "model": "tiny",
    "name": "main.summer@v1",
    "filename": "config.json",
}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
SCHEDULE = {
    "name": "weekly",
    "dataset": "summer",
    "training": {"model": "tiny", "method": METHOD},
    "cron": "0 3 * * 1",
}
GRADERS = "/v1/fine_tuning/alpha/graders"
WEBHOOK = {"url": "https://example.com/hook", "event_types": ["fine_tuning.job.succeeded"]}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/files"): {"data": {"purpose": "fine-tune"}, "files": {"file": b"x"}},
    ("post", "/v1/fine_tuning/jobs"): {"json": {"model": "tiny", "training_file": "file-0"}},
    ("post", "/v1/fine_tuning/jobs/estimate"): {"json": {"model": "tiny", "training_file": "file-0"}},
    ("post", f"{GRADERS}/validate"): {"json": {"grader": GRADER}},
    ("post", f"{GRADERS}/run"): {"json": {"grader": GRADER, "model_sample": "x"}},
    ("post", "/v1/chat/completions"): {"json": CHAT},
    ("post", "/v1/evaluations"): {"json": {"model": "tiny", "file": "file-0", "grader": GRADER}},
    ("post", "/v1/base_models"): {"json": {"name": "new"}},
    ("post", "/v1/feedback"): {"json": CHAT | {"completion": "y", "score": 1}},
    ("put", "/v1/experts/{expert}/aliases/{alias}"): {"json": {"version": "main.summer@v1"}},
    ("post", "/v1/promotions"): {"json": {"model": "main.summer@v1", "suites": [{"file": "file-0", "grader": GRADER}]}},
    ("post", "/v1/schedules"): {"json": SCHEDULE},
    ("put", "/v1/schedules/{schedule_id}"): {"json": SCHEDULE},
    ("put", "/v1/base_models/{name}/files/{filename}"): {"content": b"x"},
    ("post", "/v1/webhook_endpoints"): {"json": WEBHOOK},
    ("post", "/v1/webhook_endpoints/{endpoint_id}"): {"json": {"name": "new"}},
    ("post", "/v1/webhook_endpoints/{endpoint_id}/test"): {"json": {"event_type": "fine_tuning.job.failed"}},
}
OPEN = {"/healthz", "/readyz"}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    return [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]


def at(path: str) -> str:
    return path.format_map(PLACES)


def test_every_route_asks_for_a_key(app: FastAPI, api_url: str, subtests: pytest.Subtests) -> None:
    for method, path in routes(app):
        with subtests.test(route=f"{method} {path}"):
            response = raw(api_url, None, method, at(path), **BODIES.get((method, path), {}))
            assert (response.status_code == 401) == (path not in OPEN)


def test_every_route_asks_for_a_scope(app: FastAPI, api_url: str, make_key: MakeKey, subtests: pytest.Subtests) -> None:
    key = make_key(scopes=())
    for method, path in routes(app):
        if path not in OPEN:
            with subtests.test(route=f"{method} {path}"):
                response = raw(api_url, key, method, at(path), **BODIES.get((method, path), {}))
                assert (response.status_code, response.json()["error"]["code"]) == (403, "missing_scope")


def owned(client: Client, version: str, file_id: str) -> dict[str, str]:
    """Make an alias, a promotion and a schedule; return where they are."""
    client.put("/experts/main.summer/aliases/prod", body={"version": version}, cast_to=object)
    body = {"model": version, "suites": [{"file": file_id, "grader": GRADER}]}
    promotion: Any = client.post("/promotions", body=body, cast_to=object)
    schedule: Any = client.post("/schedules", body=SCHEDULE | {"dataset": file_id}, cast_to=object)
    found = {"expert": "main.summer", "alias": "prod"}
    return found | {"promotion_id": promotion["id"], "schedule_id": schedule["id"]}


@pytest.mark.parametrize("other", [("globex", "main"), ("acme", "other")])
def test_what_a_project_owns_is_not_there_for_anybody_else(
    app: FastAPI,
    api_url: str,
    make_key: MakeKey,
    checked_file: str,
    client: Client,
    publish: Callable[..., str],
    evaluate: Callable[[], str],
    subtests: pytest.Subtests,
    other: tuple[str, str],
) -> None:
    name = publish()
    (job,) = client.fine_tuning.jobs.list()
    places = {"file_id": checked_file, "job_id": job.id, "model": name, "name": name, "filename": MANIFEST_FILE}
    places["evaluation_id"] = evaluate()
    places |= owned(client, name, checked_file)
    hook: Any = client.post("/webhook_endpoints", body=WEBHOOK, cast_to=object)
    places["endpoint_id"] = hook["id"]
    ours, theirs = make_key(), make_key(*other)
    # Base models belong to the platform, and their decomposition to who added them.
    shared = {"/v1/base_models/{name}", "/v1/base_models/{name}/queue"}
    for method, path in routes(app):
        if "{" in path and method == "get" and path not in shared:
            with subtests.test(route=path):
                url = path.format_map(places)
                statuses = [raw(api_url, key, "GET", url).status_code for key in (ours, theirs)]
                assert statuses == [200, 404]


@pytest.mark.parametrize("other", [("globex", "main"), ("acme", "other")])
def test_nobody_else_can_change_what_a_project_owns(
    open_client: OpenClient, make_key: MakeKey, train: Callable[..., Any], checked_file: str, other: tuple[str, str]
) -> None:
    stranger = open_client(make_key(*other))
    job = train()
    for call in (
        lambda: stranger.fine_tuning.jobs.cancel(job.id),
        lambda: stranger.fine_tuning.jobs.pause(job.id),
        lambda: stranger.fine_tuning.jobs.resume(job.id),
        lambda: stranger.files.delete(checked_file),
    ):
        assert refused(call).status_code == 404


def test_nobody_else_can_train_on_a_projects_file(
    open_client: OpenClient, make_key: MakeKey, checked_file: str
) -> None:
    stranger = open_client(make_key("globex"))
    error = refused(lambda: stranger.fine_tuning.jobs.create(model="tiny", training_file=checked_file, method=METHOD))
    assert error.code == "file_not_found"


def test_lists_show_nothing_of_others(open_client: OpenClient, make_key: MakeKey, publish: Callable[..., str]) -> None:
    name = publish()
    stranger = open_client(make_key("globex"))
    listed = [*stranger.files.list(), *stranger.fine_tuning.jobs.list()]
    assert listed == [] and name not in [model.id for model in stranger.models.list()]


def test_a_wrong_key_is_an_authentication_error(open_client: OpenClient) -> None:
    with pytest.raises(openai.AuthenticationError):
        open_client("sk-nothing").files.list()


def test_a_missing_scope_is_named(open_client: OpenClient, make_key: MakeKey) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="files:read"):
        open_client(make_key(scopes=("chat",))).files.list()


# Models and chat


def test_models_lists_experts_newest_first_then_bases_then_the_router(
    client: Client, publish: Callable[..., str]
) -> None:
    made = [publish("a"), publish("b"), publish("a")]
    assert made[2] == "main.a@v2"
    assert [model.id for model in client.models.list()] == [*made[::-1], "tiny", "auto"]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_while_serving_is_away_fails_soon_and_says_so(client: Client, checked_file: str, stream: bool) -> None:
    began = time.monotonic()
    error = refused(
        lambda: client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "1 + 1 ="}], stream=stream
        )
    )
    assert error.status_code == 503 and "Serving does not answer" in error.message
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("model", ["nothing", "main.summer@v9", "other.summer@v1", "main.summer", "auto:nothing"])
def test_chat_with_a_model_that_is_not_there_is_refused(
    client: Client, publish: Callable[..., str], model: str
) -> None:
    publish()
    error = refused(lambda: client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}]))
    assert (error.status_code, error.code) == (404, "not_found")


def test_chat_accepts_fields_that_only_steer_other_servers(client: Client, checked_file: str) -> None:
    error = refused(
        lambda: client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            service_tier="auto",
            user="u",
            extra_body={"no_such_field": 1},
        )
    )
    assert error.status_code == 503  # understood; only serving is missing


def test_readiness_says_who_is_there(api_url: str, system_engine: Engine, make_agent: Callable[..., uuid.UUID]) -> None:
    make_agent()
    assert raw(api_url, None, "GET", "/readyz").json() == {"status": "ok", "scheduler": False, "agents": 1}


def test_readiness_fails_while_the_database_is_away(
    settings: Settings, database: Urls, proxy: Any, serve: Callable[..., str]
) -> None:
    url = serve(settings.model_copy(update={"database_url": proxy.url(database.api)}))
    proxy.cut()
    response = raw(url, None, "GET", "/readyz")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")


def test_the_api_answers_again_when_the_database_is_back(
    settings: Settings, database: Urls, proxy: Any, serve: Callable[..., str], until: Callable[..., Any]
) -> None:
    url = serve(settings.model_copy(update={"database_url": proxy.url(database.api)}))
    proxy.cut()
    assert raw(url, None, "GET", "/readyz").status_code == 503
    proxy.mend()
    until(lambda: raw(url, None, "GET", "/readyz").status_code == 200)


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
