"""The plans of the heaviest statements: each reads by its indexes, and no more rows than it needs.

``ZHUB_PLAN_ROWS=1000000`` fills the tables with a million rows each, as the figures beside the statements have it, and
``--log-cli-level=INFO`` shows what was read.
"""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial

import pytest
from filled_tables import EXPERTS, ORGANIZATIONS, fill
from query_plans import reads_of
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from zhub.admission import usage as admission_usage
from zhub.admission.admit import MAX_HEADS, MAX_LIGHT, admit
from zhub.admission.explain import MAX_EXPLAINED, explain
from zhub.admission.snapshot import read_clusters
from zhub.database.pages import MAX_SEARCHED, Page
from zhub.database.sessions import make_engine, system_session, tenant_session
from zhub.datasets import usage
from zhub.embedded.postgres import Urls
from zhub.kinds import table
from zhub.models import BaseModel, DatasetVersion
from zhub.queue import claims, job_events
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes
from zhub.queue.reaper import reap
from zhub.registry import catalogue, deletion, listing, search, versions
from zhub.registry.search_query import parse
from zhub.tenancy import worker_usage
from zhub.tenancy.keys import Caller
from zhub.training import bases, job_lists
from zhub.training.job_lists import JobFilter

ROWS = int(os.environ.get("ZHUB_PLAN_ROWS", "100000"))
log = logging.getLogger(__name__)
LARGE = {"jobs", "attempts", "job_events", "expert_versions", "catalogue_entries", "version_metrics"}

ORG, PROJECT, AGENT = (uuid.UUID(f"{prefix}{0:030x}") for prefix in ("0a", "0b", "0d"))
JOB, MIDDLE = (uuid.UUID(f"01{number:030x}") for number in (100, ROWS // 2))  # the first has half of the events

CALLER = Caller(uuid.UUID(int=0), ORG, PROJECT, "main", frozenset())


@dataclass(frozen=True)
class Statement:
    """A statement that ``call`` sends, known by ``marker``, with the indexes that it must use, and its rows at most."""

    call: Callable[[Session], object]
    marker: str
    indexes: set[str]
    rows: int
    of_tenant: bool = False
    searches: bool = False
    """By the role of a search."""


@contextmanager
def searching(api: Engine) -> Iterator[Session]:
    with tenant_session(api, ORG) as session:
        session.execute(text("SELECT set_config('role', 'zhub_search', true)"))
        yield session


def find_nothing(session: Session) -> None:
    scope = search.Scope(search.own_parts(CALLER), {})
    search.find(session, scope, parse("tag:nowhere"), search.Order("tokens"), after=None, limit=20)


def newest_versions(session: Session) -> None:
    base = session.scalars(select(BaseModel)).one()
    versions.newest(session, PROJECT, base, limit=EXPERTS)


def parents(session: Session) -> None:
    record = versions.find_version(session, PROJECT, "main.expert-1@v1")
    assert record is not None
    record.version.manifest = record.version.manifest | {"parent_digest": "unknown"}
    with session.no_autoflush:
        versions.parents(session, [record])
    session.expunge(record.version)


def refuse_used_file(session: Session) -> None:
    described = {"filename": "f", "version": 1, "purpose": "evals", "status": "processed"}
    file = DatasetVersion(id=JOB, org_id=ORG, project_id=PROJECT, dataset_id=JOB, **described)
    usage.refuse_used(session, file, also_trained=False)


STATEMENTS = {
    "claim": Statement(
        lambda session: claims.claim_up_to(session, 8, AGENT, "default", ["train"], lease_s=60, free=8),
        "FOR UPDATE SKIP LOCKED", {"ix_jobs_claim"}, 300,
    ),
    "admission": Statement(
        lambda session: read_clusters(session, table.names(), 30, MAX_HEADS),
        "AS heads", {"ix_jobs_rank", "ix_jobs_held"}, 3 * ORGANIZATIONS * MAX_HEADS,
    ),
    "light jobs": Statement(
        lambda session: admit(session, table.names(), agent_lost_after_s=30),
        "light AS (", {"ix_jobs_light", "pk_jobs"}, 3 * (MAX_LIGHT + 300),
    ),
    "explanation": Statement(
        lambda session: explain(session, table.names(), agent_lost_after_s=30),
        "elsewhere", {"ix_jobs_wish", "ix_jobs_retry", "ix_jobs_rank"}, 6 * MAX_EXPLAINED + 1000,
    ),
    "reaper": Statement(reap, "lease_until < now()", {"ix_jobs_lease", "pk_jobs"}, 300),
    "charges": Statement(admission_usage.charge, "by_day AS (", {"ix_attempts_charge"}, 300),
    "time of workers": Statement(
        partial(
            worker_usage.report, org_id=ORG, began=date(2026, 1, 1), until=date(2100, 1, 1), groups=(),
            only=worker_usage.Filter(),
        ),
        "AS running", {"ix_attempts_open", "ix_attempts_charge"}, 1000, of_tenant=True,
    ),
    "requested changes": Statement(
        apply_requested_changes, "desired = 'pause' AND state", {"ix_jobs_wish", "ix_jobs_paused"}, 600,
    ),
    "dependents": Statement(
        lambda session: release_dependents(session, table.names()), "), due AS (", {"ix_jobs_waiting", "pk_jobs"}, 4000,
    ),
    "trainings without a basis": Statement(bases.follow_decompositions, "b.status IN (", {"ix_jobs_waiting"}, 4000),
    "newest versions": Statement(
        newest_versions, "LATERAL", {"uq_expert_versions_expert_id_version"}, 2 * EXPERTS, of_tenant=True,
    ),
    "versions by age": Statement(
        partial(listing.list_versions, project_id=PROJECT, limit=20),
        "LATERAL", {"ix_expert_versions_age"}, 21 * EXPERTS, of_tenant=True,
    ),
    "versions by name": Statement(
        partial(listing.list_versions, project_id=PROJECT, limit=20, sort="name"),
        "LATERAL", {"uq_expert_versions_expert_id_version"}, 21 * EXPERTS, of_tenant=True,
    ),
    "versions by score": Statement(
        partial(listing.list_versions, project_id=PROJECT, limit=20, sort="score"),
        "LATERAL", {"ix_expert_versions_score"}, 21 * EXPERTS, of_tenant=True,
    ),
    "newest of a search": Statement(
        partial(catalogue.search_catalogue, caller=CALLER, query="-tag:team=7", limit=20),
        "UNION ALL", {"ix_catalogue_entries_created_at"}, 50, searches=True,
    ),
    "best of a search": Statement(
        partial(catalogue.search_catalogue, caller=CALLER, query="accuracy>0 -tag:team=7", limit=20),
        "UNION ALL", {"ix_version_metrics_best", "uq_catalogue_entries_version_id"}, 100, searches=True,
    ),
    "common of a search": Statement(
        partial(catalogue.search_catalogue, caller=CALLER, query="sums accuracy>0 tag:team=7", limit=20),
        "UNION ALL", {"ix_version_metrics_best", "uq_catalogue_entries_version_id"}, 2 * search.WINDOW, searches=True,
    ),
    "rare of a search": Statement(
        find_nothing,
        "MATERIALIZED", {"ix_catalogue_entries_terms"}, 0, searches=True,
    ),
    "versions to sweep": Statement(
        lambda session: session.scalars(deletion.due(timedelta(minutes=1))).all(),
        "swept_at IS NULL", {"ix_expert_versions_deleted"}, deletion.SWEEP_BATCH,
    ),
    "parents of versions": Statement(
        parents, "digest IN", {"ix_expert_versions_digest"}, 1, of_tenant=True,
    ),
    "jobs of a project": Statement(
        partial(job_lists.list_jobs, caller=CALLER, wanted=JobFilter(), page=Page(20, MIDDLE)),
        "ORDER BY jobs.id DESC", {"ix_jobs_project"}, 21, of_tenant=True,
    ),
    "failed jobs of a project": Statement(
        partial(job_lists.list_jobs, caller=CALLER, wanted=JobFilter(status=["failed"]), page=Page(20)),
        "ORDER BY jobs.id DESC", {"ix_jobs_failed"}, 21, of_tenant=True,
    ),
    "jobs that mention a text": Statement(
        partial(job_lists.list_jobs, caller=CALLER, wanted=JobFilter(search="nowhere"), page=Page(20)),
        "ORDER BY jobs.id DESC", {"ix_jobs_project"}, 2 * MAX_SEARCHED + EXPERTS, of_tenant=True,
    ),
    "jobs of a file": Statement(
        refuse_used_file, "LEFT OUTER JOIN evaluations", {"ix_jobs_dataset", "ix_jobs_validation"}, 10, of_tenant=True,
    ),
    "versions of a file": Statement(
        refuse_used_file, "OVER ()", {"ix_jobs_dataset", "ix_jobs_validation"}, 10, of_tenant=True,
    ),
    "newest events": Statement(
        partial(job_events.list_newest, job_id=JOB, before=None, limit=100),
        "ORDER BY", {"ix_job_events_job"}, 101, of_tenant=True,
    ),
    "events in order": Statement(
        partial(job_events.list_final, job_id=JOB, after=(20, 0), limit=100),
        "ORDER BY", {"ix_job_events_job"}, 101, of_tenant=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def urls(make_database: Callable[..., Urls], drop_database: Callable[[Urls], None]) -> Iterator[Urls]:
    made = make_database()
    fill(made.admin, ROWS)
    yield made
    drop_database(made)


@pytest.fixture(scope="module")
def leader(urls: Urls) -> Iterator[Engine]:
    engine = make_engine(urls.system)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def api(urls: Urls) -> Iterator[Engine]:
    engine = make_engine(urls.api)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_reads_by_its_indexes_and_no_more_than_it_needs(name: str, leader: Engine, api: Engine) -> None:
    statement = STATEMENTS[name]
    open_session = partial(tenant_session, api, ORG) if statement.of_tenant else partial(system_session, leader)
    if statement.searches:
        open_session = partial(searching, api)
    reads = reads_of(open_session, statement.call, statement.marker, LARGE)
    log.info(
        "%s: %d of %d rows in %.1f ms by %s", name, reads.rows, ROWS, reads.took_ms, ", ".join(sorted(reads.indexes))
    )
    assert reads.scanned == set()
    assert reads.indexes >= statement.indexes
    assert reads.rows <= statement.rows
