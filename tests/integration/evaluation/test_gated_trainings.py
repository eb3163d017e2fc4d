"""Trainings with a gate: what they publish is measured and promoted by itself, on the cluster that the gate names."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from promoting import advance, clusters_of_evaluations, points_to, publish_job
from sqlalchemy import Engine, select
from suites import GRADER

from zhub.database.sessions import system_session
from zhub.kinds import table
from zhub.models import Job, JobEvent
from zhub.queue.dependencies import release_dependents

Ask = Callable[..., Any]


def messages(engine: Engine, kind: str) -> list[str]:
    with system_session(engine) as session:
        statement = select(JobEvent.message).join(Job, Job.id == JobEvent.job_id).where(Job.kind == kind)
        return list(session.scalars(statement.order_by(JobEvent.position)))


def test_a_training_with_a_gate_is_measured_and_promoted_by_itself(
    ask: Ask, train_expert: Ask, suite_file: str, work: Ask, system_engine: Engine
) -> None:
    job = train_expert(promotion={"suites": [{"file": suite_file, "grader": GRADER}]})
    found = ask("get", f"/promotions/{job.promotion}")
    assert (found["status"], found["training_job"], found["model"]) == ("waiting", job.id, None)
    publish_job(system_engine, job.id, "aa")
    work(aa=30)
    found = ask("get", f"/promotions/{job.promotion}")
    assert (found["promoted"], found["model"], points_to(ask)) == (True, "main.summer@v1", "main.summer@v1")
    assert messages(system_engine, "gate")[-1] == "main.summer@v1 is @prod now."


@pytest.mark.parametrize(
    ("wanted", "found"), [({}, "h100"), ({"cluster": "a10"}, "a10"), ({"cluster": "default"}, "default")]
)
def test_the_gate_of_a_training_measures_where_it_was_trained_unless_it_names_another_cluster(
    ask: Ask, train_expert: Ask, suite_file: str, system_engine: Engine, make_agent: Ask, wanted: Any, found: str
) -> None:
    for cluster in ("a10", "h100"):
        make_agent(cluster=cluster)
    job = train_expert(cluster="h100", promotion={"suites": [{"file": suite_file, "grader": GRADER}]} | wanted)
    assert ask("get", f"/promotions/{job.promotion}")["gate"]["cluster"] == found
    publish_job(system_engine, job.id, "aa", "h100")
    advance(system_engine)
    assert clusters_of_evaluations(system_engine) == {found}


def test_a_gate_whose_training_has_ended_is_left_to_decide(
    ask: Ask, train_expert: Ask, suite_file: str, system_engine: Engine
) -> None:
    job = train_expert(promotion={"suites": [{"file": suite_file, "grader": GRADER}]})
    publish_job(system_engine, job.id, "aa")
    with system_session(system_engine) as session:
        assert release_dependents(session, table.names()) == 0
    assert ask("get", f"/promotions/{job.promotion}")["status"] == "waiting"


def test_a_training_that_failed_promotes_nothing(
    ask: Ask, train_expert: Ask, suite_file: str, system_engine: Engine
) -> None:
    job = train_expert(promotion={"suites": [{"file": suite_file, "grader": GRADER}]})
    ask("post", f"/fine_tuning/jobs/{job.id}/cancel")
    advance(system_engine)
    advance(system_engine)
    found = ask("get", f"/promotions/{job.promotion}")
    assert (found["status"], found["error"]["code"]) == ("cancelled", "dependency_failed")


def test_a_gate_on_a_cluster_that_nobody_offers_is_refused_where_it_is_asked_for(
    promote: Ask, train_expert: Ask, publish_version: Ask, suite_file: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="none has been seen") as refused:
        promote(publish_version(), cluster="h100")
    assert refused.value.param == "cluster"
    with pytest.raises(openai.BadRequestError, match="none has been seen") as refused:
        train_expert(promotion={"suites": [{"file": suite_file, "grader": GRADER}], "cluster": "h100"})
    assert refused.value.param == "promotion.cluster"
