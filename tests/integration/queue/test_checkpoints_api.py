"""Checkpoints through the API: listed, deleted, and used as models."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from checkpoint_reports import live_steps, report, report_of
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session
from zhub.errors import NotFoundError
from zhub.queue.claims import Claim
from zhub.registry import versions
from zhub.registry.resolve import MixturePart, resolve
from zhub.tenancy.keys import Caller

Client = openai.OpenAI

# The API


@pytest.fixture
def job(claim: Claim) -> str:
    return f"ftjob-{claim.job_id.hex}"


def test_checkpoints_are_listed_newest_first_in_the_dialects_shape(
    system_engine: Engine, client: Client, claim: Claim, job: str
) -> None:
    report(system_engine, claim, 10, 20)
    listed = list(client.fine_tuning.jobs.checkpoints.list(job))
    assert [checkpoint.step_number for checkpoint in listed] == [20, 10]
    first = listed[0]
    assert first.object == "fine_tuning.job.checkpoint" and first.id.startswith("ftckpt-")
    assert first.fine_tuning_job_id == job and first.metrics.step == 20
    assert first.metrics.to_dict()["valid_reward_mean"] == 0.5
    assert first.fine_tuned_model_checkpoint == f"main.summer@{job}:step-20"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_paging_through_checkpoints_meets_each_once(
    system_engine: Engine, client: Client, claim: Claim, job: str, limit: int
) -> None:
    report(system_engine, claim, 10, 20, 30)
    pages = client.fine_tuning.jobs.checkpoints.list(job, limit=limit)
    assert [checkpoint.step_number for checkpoint in pages] == [30, 20, 10]


def test_paging_after_an_unknown_checkpoint_is_refused(client: Client, job: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.checkpoints.list(job, after=f"ftckpt-{uuid.uuid4().hex}")


def test_a_checkpoint_is_deleted_through_the_api(system_engine: Engine, client: Client, claim: Claim, job: str) -> None:
    report(system_engine, claim, 10, 20)
    newest, older = client.fine_tuning.jobs.checkpoints.list(job)
    where = f"/fine_tuning/jobs/{job}/checkpoints"
    answer: Any = client.delete(f"{where}/{older.id}", cast_to=object)
    assert answer == {"id": older.id, "object": "fine_tuning.job.checkpoint", "deleted": True}
    with pytest.raises(openai.ConflictError, match="newest checkpoint"):
        client.delete(f"{where}/{newest.id}", cast_to=object)


@pytest.fixture
def stranger(open_client: Callable[..., Client], make_key: Callable[..., str]) -> Iterator[Client]:
    yield open_client(make_key("acme", "other"))


def test_another_project_sees_and_deletes_no_checkpoint(
    system_engine: Engine, client: Client, stranger: Client, claim: Claim, job: str
) -> None:
    report(system_engine, claim, 10, 20)
    (_newest, older) = client.fine_tuning.jobs.checkpoints.list(job)
    with pytest.raises(openai.NotFoundError):
        stranger.fine_tuning.jobs.checkpoints.list(job)
    with pytest.raises(openai.NotFoundError):
        stranger.delete(f"/fine_tuning/jobs/{job}/checkpoints/{older.id}", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        stranger.models.retrieve(older.fine_tuned_model_checkpoint)
    assert live_steps(system_engine) == [10, 20]


# As a model


def test_a_checkpoint_resolves_to_its_own_z(system_engine: Engine, claim: Claim, caller: Caller) -> None:
    report(system_engine, claim, 10)
    name = f"main.summer@ftjob-{claim.job_id.hex}:step-10"
    with system_session(system_engine) as session:
        resolved = resolve(session, caller, name, [])
    (part,) = resolved.experts
    assert isinstance(part.record, versions.CheckpointRecord)
    assert (part.record.name, part.weight, resolved.base.name) == (name, 1.0, "tiny")
    assert part.record.checkpoint.key_prefix == report_of(claim, 10)["key_prefix"]


def test_a_mixture_may_hold_checkpoints(system_engine: Engine, claim: Claim, caller: Caller) -> None:
    report(system_engine, claim, 10, 20)
    names = [f"main.summer@ftjob-{claim.job_id.hex}:step-{step}" for step in (10, 20)]
    with system_session(system_engine) as session:
        resolved = resolve(session, caller, "tiny", [MixturePart(name, 0.5) for name in names])
    assert [part.record.name for part in resolved.experts] == names


def test_a_checkpoint_is_retrieved_as_a_model_but_is_in_no_list_and_never_routed_to(
    system_engine: Engine, client: Client, claim: Claim, job: str, caller: Caller
) -> None:
    report(system_engine, claim, 10)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE base_models SET is_default = true"))
        assert resolve(session, caller, "auto", []).candidates == []
    name = f"main.summer@{job}:step-10"
    model: Any = client.models.retrieve(name).to_dict()
    assert (model["kind"], model["base_model"]) == ("checkpoint", "tiny")
    assert name not in [model.id for model in client.models.list()]


def test_chat_reaches_for_a_checkpoint(system_engine: Engine, client: Client, claim: Claim, job: str) -> None:
    report(system_engine, claim, 10)
    with pytest.raises(openai.InternalServerError, match="Serving does not answer"):  # all before serving went well
        client.chat.completions.create(
            model=f"main.summer@{job}:step-10", messages=[{"role": "user", "content": "1 + 1 ="}]
        )


@pytest.mark.parametrize("name", ["{0}:step-11", "{0}:step-010", "{0}:step-", "{0}", "{0}:step-99999999999", "ftjob-0"])
def test_what_names_no_checkpoint_is_not_found(
    system_engine: Engine, claim: Claim, job: str, caller: Caller, name: str
) -> None:
    report(system_engine, claim, 10)
    with pytest.raises(NotFoundError), system_session(system_engine) as session:
        resolve(session, caller, f"main.summer@{name.format(job)}", [])


def test_a_deleted_checkpoint_answers_no_more(system_engine: Engine, claim: Claim, job: str, caller: Caller) -> None:
    report(system_engine, claim, 10, 20, 30, 40)
    with pytest.raises(NotFoundError), system_session(system_engine) as session:
        resolve(session, caller, f"main.summer@{job}:step-10", [])
