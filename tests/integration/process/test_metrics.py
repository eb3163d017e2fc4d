"""What Prometheus is told: parsed as it parses, and compared with a state of the database that is known."""

import logging
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from claims import claim_one
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from zhub import scheduler
from zhub.admission import metrics
from zhub.admission.metrics import QueueCollector, QueueState
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.kinds import table
from zhub.process.metrics import DATABASE_UP, database_answers
from zhub.queue import attempts, leadership
from zhub.tenancy.keys import Caller
from zhub_workers.agent.metrics import SERVING_UP  # and with it come the others of the agent

LEADER = uuid.UUID(int=9)
DOCS = Path(__file__).parents[3] / "docs" / "guides"
MakeJob = Callable[..., uuid.UUID]


def parsed(exposition: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def scrape(collector: QueueCollector) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    registry.register(DATABASE_UP)
    return parsed(generate_latest(registry).decode())


def value(samples: Any, metric: str, /, **labels: Any) -> float | None:
    found: float | None = samples.get((metric, frozenset((key, str(label)) for key, label in labels.items())))
    return found


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def lead(system_engine: Engine) -> int:
    with system_session(system_engine) as session:
        term = leadership.elect(session, LEADER, lease_s=600)
    assert term is not None
    return term


@pytest.fixture
def collector(system_engine: Engine, lead: int) -> QueueCollector:
    return QueueCollector(system_engine, table.names(), lambda: lead)


# The leader's view of SQL


def test_the_leader_tells_the_queue_the_workers_and_the_shares(
    system_engine: Engine,
    collector: QueueCollector,
    lead: int,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    make_caller: Callable[..., Caller],
) -> None:
    acme, umbrella = make_caller("acme"), make_caller("umbrella")
    agent = make_agent(slots=3)
    make_agent(slots=3)
    for _ in range(3):
        make_job(acme)
    scheduler.admission_pass(system_engine, LEADER, lead)
    with system_session(system_engine) as session:
        assert claim_one(session, "train", agent=agent) is not None
    make_job(acme, kind="evaluate")
    make_job(umbrella)
    make_job(umbrella)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE jobs SET created_at = now() - interval '1 hour' WHERE kind = 'evaluate'"))
    samples = scrape(collector)
    assert value(samples, "zhub_queue_depth", org_id=acme.org_id, kind="evaluate") == 1
    assert value(samples, "zhub_queue_depth", org_id=umbrella.org_id, kind="train") == 2
    assert value(samples, "zhub_queue_depth", org_id=acme.org_id, kind="train") is None
    assert value(samples, "zhub_queue_oldest_seconds") == pytest.approx(3600, abs=60)
    assert value(samples, "zhub_agents_alive", cluster="default") == 2
    assert value(samples, "zhub_workers", cluster="default") == 3
    assert value(samples, "zhub_workers_reserved", cluster="default") == 3
    assert value(samples, "zhub_workers_busy", cluster="default") == 1
    for who, name, due, had in ((acme, "acme", 0.5, 1.0), (umbrella, "umbrella", 0.5, 0.0)):
        where = {"cluster": "default", "org_id": who.org_id}
        assert value(samples, "zhub_fair_share_due_ratio", **where) == due
        assert value(samples, "zhub_fair_share_had_ratio", **where) == had
        assert value(samples, "zhub_organization_info", org_id=who.org_id, name=name) == 1
    assert value(samples, "zhub_checkpoints_unswept") == 0


def test_organisations_beyond_those_listed_are_added_up(
    collector: QueueCollector,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    make_caller: Callable[..., Caller],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "MAX_ORGANIZATIONS", 1)
    make_agent()
    busiest = make_caller("busiest")
    for caller, count in ((busiest, 3), (make_caller("second"), 2), (make_caller("third"), 1)):
        for _ in range(count):
            make_job(caller)
    samples = scrape(collector)
    assert value(samples, "zhub_queue_depth", org_id=busiest.org_id, kind="train") == 3
    assert value(samples, "zhub_queue_depth", org_id="other", kind="train") == 3
    assert value(samples, "zhub_fair_share_due_ratio", cluster="default", org_id="other") == pytest.approx(2 / 3)
    assert sum(name == "zhub_queue_depth" for name, _ in samples) == 2


def test_only_the_leader_tells_of_the_queue(
    system_engine: Engine, lead: int, make_job: MakeJob, caller: Caller
) -> None:
    make_job(caller)
    follower = scrape(QueueCollector(system_engine, table.names(), lambda: None))
    assert [name for name, _ in follower] == ["zhub_database_up"]
    deposed = scrape(QueueCollector(system_engine, table.names(), lambda: lead - 1))
    assert not any(name == "zhub_queue_depth" for name, _ in deposed)


def test_scrapes_that_follow_each_other_read_once(collector: QueueCollector, make_job: MakeJob, caller: Caller) -> None:
    make_job(caller)
    before = scrape(collector)
    make_job(caller)
    assert scrape(collector) == before


def test_a_scrape_ends_without_the_database_and_says_so(
    database: Urls,
    proxy: Any,
    lead: int,
    open_engine: Callable[[str], Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = QueueCollector(open_engine(proxy.url(database.system)), table.names(), lambda: lead)
    database_answers.came()
    assert value(scrape(collector), "zhub_database_up") == 1
    proxy.cut()
    monkeypatch.setattr(metrics, "FRESH_S", 0)
    collector._fresh_until = 0
    assert scrape(collector) == {("zhub_database_up", frozenset()): 0}


def test_a_scrape_ends_while_a_statement_hangs(
    system_engine: Engine, collector: QueueCollector, until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FRESH_S", 0)
    with system_engine.begin() as connection:
        connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        assert scrape(collector) == {("zhub_database_up", frozenset()): 0}
    until(lambda: value(scrape(collector), "zhub_checkpoints_unswept") == 0)


def test_a_database_that_was_silent_for_long_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    database_answers.came()
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    (family,) = DATABASE_UP.collect()
    assert family.samples[0].value == 0


# What the processes count


def test_the_leader_counts_waits_ends_and_lost_leases(
    system_engine: Engine, lead: int, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    agent = make_agent(slots=2)
    for minutes in (1, 3):
        job_id = make_job(caller)
        with system_session(system_engine) as session:
            session.execute(
                text("UPDATE jobs SET created_at = now() - make_interval(mins => :m) WHERE id = :id"),
                {"m": minutes, "id": job_id},
            )
    waits = counted("zhub_admission_wait_seconds_sum"), counted("zhub_admission_wait_seconds_count")
    lost = counted("zhub_lease_lost_total", reason="expired")
    ended = counted("zhub_attempts_ended_total", kind="train", outcome="lost")
    failed = counted("zhub_attempts_ended_total", kind="train", outcome="failed_user")
    scheduler.admission_pass(system_engine, LEADER, lead)
    assert counted("zhub_admission_wait_seconds_count") - waits[1] == 2
    assert counted("zhub_admission_wait_seconds_sum") - waits[0] == pytest.approx(240, abs=30)
    with system_session(system_engine) as session:
        first, second = (claim_one(session, "train", agent=agent) for _ in range(2))
        assert first is not None and second is not None
        attempts.fail(session, second.job_id, second.fence, attempts.Failure("bad", "It was bad."))
        expire = text("UPDATE jobs SET lease_until = now() - interval '1 second' WHERE id = :id")
        session.execute(expire, {"id": first.job_id})
    for _ in range(2):
        scheduler.maintenance_pass(system_engine, LEADER, lead)
    assert counted("zhub_lease_lost_total", reason="expired") - lost == 1
    assert counted("zhub_attempts_ended_total", kind="train", outcome="lost") - ended == 1
    assert counted("zhub_attempts_ended_total", kind="train", outcome="failed_user") - failed == 1


def test_a_claim_says_how_long_the_job_waited_for_it(
    system_engine: Engine, lead: int, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    agent = make_agent()
    make_job(caller)
    scheduler.admission_pass(system_engine, LEADER, lead)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE jobs SET admitted_at = now() - interval '90 seconds'"))
        claim = claim_one(session, "train", agent=agent)
    assert claim is not None and claim.waited_s == pytest.approx(90, abs=10)


def test_every_metric_of_ours_has_a_type_a_help_and_a_conventional_name() -> None:
    families = [
        family
        for family in text_string_to_metric_families(generate_latest().decode())
        if family.name.startswith("zhub_")
    ]
    assert len(families) > 15
    for family in families:
        assert family.documentation and family.type != "unknown", family.name
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name


# The API


@pytest.fixture
def root_url(api_url: str) -> str:
    return api_url.removesuffix("/v1")


def test_the_api_counts_requests_by_route_and_not_by_path(root_url: str, make_key: Callable[..., str]) -> None:
    authorization = {"Authorization": f"Bearer {make_key()}"}

    def requests(**labels: str) -> float:
        return value(parsed(httpx.get(f"{root_url}/metrics").text), "zhub_http_requests_total", **labels) or 0

    labels = {"method": "GET", "route": "/v1/fine_tuning/jobs/{job_id}", "status": "404"}
    nowhere = {"method": "GET", "route": "none", "status": "404"}
    before, lost = requests(**labels), requests(**nowhere)
    for job_id in (uuid.uuid4(), uuid.uuid4()):
        httpx.get(f"{root_url}/v1/fine_tuning/jobs/ftjob-{job_id.hex}", headers=authorization)
    httpx.get(f"{root_url}/no/such/route/{uuid.uuid4()}")
    assert requests(**labels) - before == 2
    assert requests(**nowhere) - lost == 1
    samples = parsed(httpx.get(f"{root_url}/metrics").text)
    assert value(samples, "zhub_http_requests_in_flight") == 1
    route = {"method": "GET", "route": "/v1/fine_tuning/jobs/{job_id}"}
    assert (value(samples, "zhub_http_request_duration_seconds_count", **route) or 0) >= 2


def test_the_metrics_are_no_part_of_the_interface(app: Any) -> None:
    assert "/metrics" not in app.openapi()["paths"]


@pytest.fixture
def access_log() -> Iterator[list[logging.LogRecord]]:
    """The records of requests."""
    kept: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "action", None) == "request":
                kept.append(record)

    log, handler = logging.getLogger("zhub.api"), Keep()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield kept
    log.removeHandler(handler)
    log.setLevel(level)


def test_a_request_is_logged_once_with_its_organisation_and_without_its_secrets(
    root_url: str,
    make_key: Callable[..., str],
    caller: Caller,
    access_log: list[logging.LogRecord],
    until: Callable[..., Any],
) -> None:
    key = make_key()
    headers = {"Authorization": f"Bearer {key}", "x-request-id": "mine"}
    answer = httpx.get(f"{root_url}/v1/models?limit=3&api_key=hidden", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "api_key")
    assert answer.headers["x-request-id"] == "mine"
    (record,) = until(lambda: list(access_log))
    fields = vars(record)
    assert (fields["method"], fields["path"], fields["route"]) == ("GET", "/v1/models", "/v1/models")
    assert (fields["status"], fields["org_id"]) == (400, caller.org_id)
    everything = repr(fields) + record.getMessage()
    assert key not in everything and "hidden" not in everything


def test_probes_are_not_logged_while_they_succeed(
    root_url: str, access_log: list[logging.LogRecord], until: Callable[..., Any]
) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v1/models"):
        httpx.get(f"{root_url}{path}")
    assert [vars(record)["path"] for record in until(lambda: list(access_log))] == ["/v1/models"]


# What is written about them


def names() -> set[str]:
    """Every metric of ours."""
    registered = [*REGISTRY.collect(), *DATABASE_UP.collect(), *SERVING_UP.collect(), *metrics.families(QueueState())]
    found = {family.name + "_total" * (family.type == "counter") for family in registered}
    return {name for name in found if name.startswith("zhub_")}


def test_the_guide_has_every_metric_and_no_other(app: Any) -> None:
    table = (DOCS / "operations.md").read_text().partition("## Metrics")[2].partition("## Alarms")[0]
    assert set(re.findall(r"`(zhub_\w+)", table)) == names()


def test_every_alarm_is_about_a_metric_that_there_is_and_is_told_in_the_guide(app: Any) -> None:
    rules = (DOCS / "alarms.yml").read_text()
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bzhub_\w+", rules)}
    assert asked and asked <= names()
    guide = (DOCS / "operations.md").read_text()
    assert {alert for alert in re.findall(r"alert: (\w+)", rules) if f"`{alert}`" not in guide} == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_can_read_the_alarms() -> None:
    checked = subprocess.run(["promtool", "check", "rules", DOCS / "alarms.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
