"""Jobs that wait: their reason, position, expected time and cluster, and the quota of what may wait."""

import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused, reinforcement
from sqlalchemy import Engine, select, text

from zhub.admission.explain import explain
from zhub.database.sessions import system_session
from zhub.kinds import table
from zhub.models import Job, Quota
from zhub.queue.desired import apply_requested_changes
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
OpenClient = Callable[..., openai.OpenAI]
MakeKey = Callable[..., str]


def test_a_queued_job_says_what_it_waits_for(client: Client, train: Callable[..., Any], system_engine: Engine) -> None:
    job = train()
    path = f"/fine_tuning/jobs/{job.id}/queue"
    before: Any = client.get(path, cast_to=object)
    with system_session(system_engine) as session:
        explain(session, table.names(), agent_lost_after_s=30)
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
        explain(session, table.names(), agent_lost_after_s=30)
    found: list[Any] = [client.get(f"/fine_tuning/jobs/{job.id}/queue", cast_to=object) for job in jobs_]
    assert [one["position"] for one in found] == [1, 2]
    assert found[1]["reason"] == "1 job is served before it: 1 of your organisation's."


def test_a_job_with_a_priority_goes_before_an_older_one(
    client: Client, train: Callable[..., Any], system_engine: Engine, make_agent: Callable[..., uuid.UUID]
) -> None:
    make_agent()
    old, urgent = train(), train(extra_body={"priority": 2})
    assert (old.priority, urgent.priority) == (0, 2)
    with system_session(system_engine) as session:
        explain(session, table.names(), agent_lost_after_s=30)
    places: list[Any] = [client.get(f"/fine_tuning/jobs/{job.id}/queue", cast_to=object) for job in (old, urgent)]
    assert [place["position"] for place in places] == [2, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [("pause", "It is paused, until somebody resumes it."), ("cancel", "It has ended.")],
)
def test_a_job_that_does_not_wait_says_so(
    client: Client, train: Callable[..., Any], system_engine: Engine, change: str, reason: str
) -> None:
    job = train()
    getattr(client.fine_tuning.jobs, change)(job.id)
    with system_session(system_engine) as session:
        explain(session, table.names(), agent_lost_after_s=30)
        apply_requested_changes(session)
    answer: Any = client.get(f"/fine_tuning/jobs/{job.id}/queue", cast_to=object)
    assert (answer["reason"], answer["position"]) == (reason, None)


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
                    "UPDATE jobs /* any move */ SET state = 'succeeded', "
                    "started_at = now() - make_interval(secs => :s), finished_at = now() WHERE id = :id"
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
        explain(session, table.names(), agent_lost_after_s=30)
    found: Any = client.get("/base_models/big/queue", cast_to=object)
    assert (found["object"], found["job_id"]) == ("base_model.queue", "big")
    assert "No agent of cluster 'h100' is alive" in found["reason"]
    with pytest.raises(openai.NotFoundError, match="another organisation"):
        open_client(make_key("globex")).get("/base_models/big/queue", cast_to=object)
