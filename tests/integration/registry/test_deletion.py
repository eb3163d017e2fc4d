"""Deletion of experts and versions: refused while something needs them, and final."""

import io
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused, reinforcement
from claims import admit_queued, claim_one
from promoting import advance
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import ProgrammingError
from suites import GRADER, METHOD, manifest_of

from zhub import scheduler
from zhub.database.sessions import system_session, tenant_session
from zhub.errors import ConflictError, NotFoundError, StoreError
from zhub.evaluation import evaluations
from zhub.evaluation.evaluations import EvaluationRequest
from zhub.graders import parse_grader
from zhub.kinds import table
from zhub.manifest import MANIFEST_FILE, ROUTING_FILE, Z_FILE, FileEntry
from zhub.models import Expert, ExpertVersion, Job
from zhub.queue import attempts, invariants
from zhub.registry import deletion, versions
from zhub.registry.publish import publish
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
Publish = Callable[..., str]
AT_ONCE = timedelta(0)
FILES = [FileEntry(name=name, size_bytes=1, sha256=name) for name in (Z_FILE, ROUTING_FILE)]


@pytest.fixture
def train_to(system_engine: Engine, store: DirectoryStore, train_expert: Ask) -> Callable[..., str]:
    """Train ``summer`` the short way, with objects; return the name of the version."""

    def make(**options: Any) -> str:
        train_expert(**options)
        with system_session(system_engine) as session:
            admit_queued(session)
            claim = claim_one(session, "train")
        assert claim is not None
        manifest = manifest_of(claim.job_id, fence=claim.fence, files=FILES)
        prefix = f"t/{claim.org_id.hex}/jobs/{claim.job_id.hex}/attempts/{claim.fence}"
        for name in (MANIFEST_FILE, Z_FILE, ROUTING_FILE, "log.jsonl"):
            store.put(f"{prefix}/{name}", io.BytesIO(b"x"))
        with system_session(system_engine) as session:
            return f"main.summer@v{publish(session, claim.job_id, claim.fence, manifest, prefix, 7).version}"

    return make


def test_a_deleted_version_is_gone_and_says_so(client: openai.OpenAI, ask: Ask, publish_version: Publish) -> None:
    name = publish_version()
    deleted = client.models.delete(name)
    assert (deleted.id, deleted.deleted, deleted.object) == (name, True, "model")
    error = refused(lambda: client.models.retrieve(name))
    assert (error.status_code, error.code) == (404, "model_not_found") and "It was deleted" in str(error)
    assert refused(lambda: client.models.delete(name)).status_code == 404
    assert ask("get", "/experts?archived=true")["data"] == []
    assert ask("get", "/experts/main.summer/changes")["data"][0]["changes"] == deletion.DELETED


def test_the_number_of_a_deleted_version_is_never_given_again(
    ask: Ask, publish_version: Publish, system_engine: Engine
) -> None:
    publish_version()
    ask("delete", f"/experts/{publish_version()}")
    assert publish_version() == "main.summer@v3"
    ask("delete", "/experts/main.summer")
    assert publish_version() == "main.summer@v4"
    with system_session(system_engine) as session:
        rule = "the versions of an expert are numbered without a gap"
        assert rule not in {finding.rule for finding in invariants.examine(session)}


def test_an_expert_is_deleted_with_its_versions_and_begins_again_with_a_training(
    ask: Ask, publish_version: Publish, train_expert: Ask
) -> None:
    publish_version()
    ask("patch", "/experts/main.summer", {"description": "the first", "archived": True})
    ask("delete", "/experts/main.summer")
    for path in ("/experts/main.summer", "/experts/main.summer@v1"):
        assert "It was deleted" in str(refused(partial(ask, "get", path)))
    assert train_expert().status == "queued"
    assert publish_version() == "main.summer@v2"
    anew = ask("get", "/experts/main.summer")
    assert (anew["description"], anew["archived"], anew["versions"]) == (None, False, 1)


def test_what_an_alias_points_to_is_not_deleted_until_the_alias_is_removed(ask: Ask, publish_version: Publish) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    for path in (f"/experts/{name}", "/experts/main.summer", f"/models/{name}"):
        error = refused(partial(ask, "delete", path))
        assert error.status_code == 409 and "DELETE /v1/experts/{expert}/aliases/{alias}" in str(error)
    assert ask("delete", "/experts/main.summer/aliases/prod")["deleted"] is True
    assert ask("get", "/aliases")["data"] == []
    assert refused(lambda: ask("get", "/experts/main.summer@prod")).status_code == 404
    assert refused(lambda: ask("delete", "/experts/main.summer/aliases/prod")).status_code == 404
    ask("delete", f"/experts/{name}")
    removal, first = ask("get", "/experts/main.summer/aliases/prod")["moves"]
    assert (first["to"], removal["from"], removal["to"]) == (name, name, None)


def test_a_removed_alias_is_set_again_as_a_new_one(ask: Ask, publish_version: Publish, system_engine: Engine) -> None:
    name = publish_version()
    for _ in range(2):
        ask("put", "/experts/main.summer/aliases/prod", {"version": name, "expected": None})
        ask("delete", "/experts/main.summer/aliases/prod")
    assert len(ask("get", "/experts/main.summer/aliases/prod")["moves"]) == 4
    with system_session(system_engine) as session:
        assert not [finding for finding in invariants.examine(session) if "alias" in finding.rule]


def test_an_alias_that_a_schedule_watches_is_not_removed(ask: Ask, publish_version: Publish, suite_file: str) -> None:
    ask("put", "/experts/main.summer/aliases/prod", {"version": publish_version()})
    watch = {"name": "weekly", "dataset": "suite", "training": {"model": "tiny", "method": METHOD}}
    ask("post", "/schedules", watch | {"on_regression": "main.summer@prod"})
    error = refused(lambda: ask("delete", "/experts/main.summer/aliases/prod"))
    assert error.status_code == 409 and "schedule 'weekly'" in str(error)


def test_what_is_being_measured_is_not_deleted(ask: Ask, publish_version: Publish, suite_file: str) -> None:
    name = publish_version()
    evaluation = ask("post", "/evaluations", {"model": name, "file": suite_file, "grader": GRADER})
    error = refused(lambda: ask("delete", f"/experts/{name}"))
    assert error.status_code == 409 and evaluation["id"] in str(error)


def test_what_a_gate_decides_about_is_not_deleted_until_it_is_cancelled(
    ask: Ask, publish_version: Publish, suite_file: str, system_engine: Engine
) -> None:
    name = publish_version()
    gate = ask("post", "/promotions", {"model": name, "suites": [{"file": suite_file, "grader": GRADER}]})
    error = refused(lambda: ask("delete", "/experts/main.summer"))
    assert error.status_code == 409 and gate["id"] in str(error)
    ask("post", f"/promotions/{gate['id']}/cancel", {})
    advance(system_engine)
    assert ask("delete", "/experts/main.summer")["deleted"] is True


def test_what_a_gated_training_has_published_is_not_deleted_before_its_gate_has_looked(
    ask: Ask, train_to: Callable[..., str], suite_file: str
) -> None:
    name = train_to(promotion={"suites": [{"file": suite_file, "grader": GRADER}]})
    error = refused(lambda: ask("delete", f"/experts/{name}"))
    assert error.status_code == 409 and "gate" in str(error)


@pytest.mark.parametrize("how", ["named", "nearest"])
def test_what_a_training_may_begin_from_is_not_deleted_until_it_has_ended(
    ask: Ask, client: openai.OpenAI, train_to: Callable[..., str], suite_file: str, how: str
) -> None:
    name = train_to()
    nearest = reinforcement(hyperparameters={"warm_start": "nearest"})
    start = {"model": name, "method": METHOD} if how == "named" else {"model": "tiny", "method": nearest}
    job = client.fine_tuning.jobs.create(training_file=suite_file, suffix="other", **start)
    error = refused(lambda: ask("delete", f"/experts/{name}"))
    assert error.status_code == 409 and job.id in str(error)
    client.fine_tuning.jobs.cancel(job.id)


def test_an_expert_in_training_is_not_deleted(ask: Ask, train_expert: Ask) -> None:
    job = train_expert()
    error = refused(lambda: ask("delete", "/experts/main.summer"))
    assert error.status_code == 409 and job.id in str(error)


@pytest.mark.parametrize(
    "changed",
    [{"on_new_data": True}, {"training": {"suffix": "summer"}, "cron": "0 3 * * 1"}, {"on_feedback": 5}],
)
def test_an_expert_that_a_schedule_trains_is_not_deleted(
    ask: Ask, publish_version: Publish, suite_file: str, changed: dict[str, Any]
) -> None:
    expert = "summer" if "training" in changed else "suite"
    publish_version(expert)
    training = {"model": "tiny", "method": METHOD} | changed.pop("training", {})
    ask("post", "/schedules", {"name": "weekly", "dataset": "suite", "training": training} | changed)
    error = refused(lambda: ask("delete", f"/experts/main.{expert}"))
    assert error.status_code == 409 and "schedule 'weekly'" in str(error)


def test_a_version_that_the_trainings_of_a_schedule_begin_from_is_not_deleted(
    ask: Ask, train_to: Callable[..., str], suite_file: str
) -> None:
    name = train_to()
    training = {"model": name, "method": METHOD, "suffix": "other"}
    ask("post", "/schedules", {"name": "weekly", "dataset": "suite", "training": training, "on_new_data": True})
    error = refused(lambda: ask("delete", f"/experts/{name}"))
    assert error.status_code == 409 and "schedule 'weekly'" in str(error)


def test_what_is_not_an_expert_version_is_not_deleted_as_a_model(
    client: openai.OpenAI, publish_version: Publish, ask: Ask
) -> None:
    ask("put", "/experts/main.summer/aliases/prod", {"version": publish_version()})
    for name, status in (("tiny", 400), ("main.summer@prod", 400), ("main.none@v1", 404)):
        assert refused(partial(client.models.delete, name)).status_code == status


def test_a_deletion_and_an_evaluation_at_the_same_time_cannot_both_succeed(
    publish_version: Publish, suite_file: str, api_engine: Engine, caller: Caller
) -> None:
    name = publish_version()
    request = EvaluationRequest(model=name, file=suite_file, grader=GRADER)
    with tenant_session(api_engine, caller.org_id) as session:
        record = versions.get_version(session, caller.project_id, name)
        with tenant_session(api_engine, caller.org_id) as other:
            deletion.delete_version(other, caller, versions.get_version(other, caller.project_id, name))
        with pytest.raises(NotFoundError, match="It was deleted"):
            versions.keep(session, [record])
        session.rollback()
    with tenant_session(api_engine, caller.org_id) as session, pytest.raises(NotFoundError):
        evaluations.create(session, caller, request, parse_grader(GRADER, param="grader"))


def test_the_objects_of_a_deleted_version_are_removed_and_the_logs_of_its_job_stay(
    ask: Ask, train_to: Callable[..., str], system_engine: Engine, store: DirectoryStore
) -> None:
    kept, name = train_to(), train_to()
    ask("delete", f"/experts/{name}")
    assert deletion.sweep(system_engine, store) == 0  # a reader may have resolved the name a moment ago
    assert deletion.sweep(system_engine, store, after=AT_ONCE) == 1
    assert deletion.sweep(system_engine, store, after=AT_ONCE) == 0
    with system_session(system_engine) as session:
        prefixes = dict(session.execute(select(ExpertVersion.version, ExpertVersion.key_prefix)).all())
    assert list(store.keys(f"{prefixes[2]}/")) == [f"{prefixes[2]}/log.jsonl"]
    assert len(list(store.keys(f"{prefixes[1]}/"))) == 4
    assert ask("get", f"/experts/{kept}")["id"] == kept


def test_the_scheduler_sweeps_deleted_versions_beside_its_passes(
    ask: Ask,
    train_to: Callable[..., str],
    system_engine: Engine,
    store: DirectoryStore,
    until: Callable[..., Any],
) -> None:
    ask("delete", f"/experts/{train_to()}")
    with system_session(system_engine) as session:
        session.execute(text("UPDATE expert_versions SET deleted_at = now() - interval '1 hour'"))
    stopping = threading.Event()
    thread = threading.Thread(target=scheduler.sweep, args=(system_engine, store, stopping))
    thread.start()
    try:
        until(lambda: [key.rpartition("/")[2] for key in store.keys("t/") if "/jobs/" in key] == ["log.jsonl"])
    finally:
        stopping.set()
        thread.join(timeout=15)


def test_a_sweep_that_breaks_leaves_the_rest_to_the_next_one(
    ask: Ask, train_to: Callable[..., str], system_engine: Engine, store: DirectoryStore
) -> None:
    class Away(DirectoryStore):
        def delete(self, key: str) -> None:
            raise StoreError("away", key=key)

    ask("delete", f"/experts/{train_to()}")
    assert deletion.sweep(system_engine, Away(store.root), after=AT_ONCE) == 0
    assert deletion.sweep(system_engine, store, after=AT_ONCE) == 1


@pytest.mark.parametrize("column", ["manifest", "digest", "version", "key_prefix", "job_id", "score", "swept_at"])
def test_the_api_changes_nothing_of_what_training_made(api_engine: Engine, caller: Caller, column: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        tenant_session(api_engine, caller.org_id) as session,
    ):
        session.execute(text(f"UPDATE expert_versions SET {column} = {column}"))


def test_objects_stay_while_another_version_has_the_same_digest(
    unfrozen: None, ask: Ask, train_to: Callable[..., str], system_engine: Engine, store: DirectoryStore
) -> None:
    names = [train_to(), train_to()]
    with system_session(system_engine) as session:
        session.execute(text("UPDATE expert_versions SET digest = 'same', key_prefix = 'same', manifest = m.manifest "
                             "FROM (SELECT manifest FROM expert_versions LIMIT 1) m"))  # fmt: skip
    for name in (Z_FILE, ROUTING_FILE, MANIFEST_FILE):
        store.put(f"same/{name}", io.BytesIO(b"x"))
    ask("delete", f"/experts/{names[0]}")
    assert deletion.sweep(system_engine, store, after=AT_ONCE) == 1
    assert len(list(store.keys("same/"))) == 3
    ask("delete", f"/experts/{names[1]}")
    assert deletion.sweep(system_engine, store, after=AT_ONCE) == 1
    assert list(store.keys("same/")) == []


def test_a_dead_training_of_a_deleted_expert_is_not_redriven(
    ask: Ask, train_expert: Ask, system_engine: Engine
) -> None:
    train_expert()
    with system_session(system_engine) as session:
        admit_queued(session)
        claim = claim_one(session, "train")
        assert claim is not None
        attempts.fail(session, claim.job_id, claim.fence, attempts.Failure("x", "It broke.", retryable=False))
    ask("delete", "/experts/main.summer")
    with system_session(system_engine) as session:
        job = session.scalars(select(Job).where(Job.kind == "train")).one()
        with pytest.raises(ConflictError, match="deleted"):
            table.kind_of(job).check_redrive(session, job)
        assert session.scalars(select(Expert.deleted_at)).one() is not None
