"""Two tenants with a row in every table, and rows as tests read and write them."""

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.models import (
    Alias,
    AliasMove,
    AliasProtection,
    AliasRequest,
    Attempt,
    Attestation,
    AuditEvent,
    BaseModel,
    BudgetNotice,
    CardRevision,
    Checkpoint,
    ClassifiedExpert,
    CompletionDataset,
    CompletionSettings,
    Dataset,
    DatasetVersion,
    Evaluation,
    Expert,
    ExpertChange,
    ExpertExport,
    ExpertGrant,
    ExpertVersion,
    Feedback,
    Invitation,
    Job,
    JobDependency,
    JobEvent,
    MonthCost,
    MonthUsage,
    Organization,
    ProjectMember,
    Promotion,
    QueuePlace,
    Quota,
    Release,
    ReleaseExpert,
    ReleaseVersion,
    Schedule,
    ScheduleTick,
    ShadowTrial,
    SharedUsage,
    SigningKey,
    StoredCompletion,
    StoredUsage,
    TokenCount,
    TokenUsage,
    Usage,
    User,
    VersionMetric,
    WebhookDelivery,
    WebhookEndpoint,
    WorkerUsage,
)
from zhub.tenancy import keys
from zhub.tenancy.bootstrap import ensure_project
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import SCOPES


@dataclass(frozen=True)
class FilledDatabase:
    """A database with the rows of two tenants, which no test changes: what a test writes is refused or rolled back."""

    urls: Urls
    owner: Engine
    api: Engine
    system: Engine
    ours: Caller
    theirs: Caller
    spare: dict[tuple[uuid.UUID, str], uuid.UUID]
    """By organisation and table: one more row that nothing points at yet."""


def tenant_column(table: str) -> str:
    return "id" if table == "organizations" else "org_id"


def count_rows(session: Session, table: str) -> int:
    return session.scalar(text(f"SELECT count(*) FROM {table}")) or 0


def first_row(engine: Engine, table: str, org_id: uuid.UUID) -> dict[str, Any]:
    """The first row of a tenant in a table, as JSON has it."""
    with system_session(engine) as session:
        statement = text(f"SELECT to_jsonb(t) FROM {table} t WHERE {tenant_column(table)} = :org ORDER BY id LIMIT 1")
        row: dict[str, Any] = session.scalars(statement, {"org": org_id}).one()
        return row


def insert_row(session: Session, table: str, row: dict[str, Any]) -> None:
    statement = text(f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, cast(:row AS jsonb))")
    session.execute(statement, {"row": json.dumps(row)})


def make_tenant(session: Session, organization: str) -> Caller:
    project = ensure_project(session, organization, "main")
    key, _secret = keys.create_api_key(session, project, "test", scopes=SCOPES, secret_key="0" * 64)
    return Caller(key.id, project.org_id, project.id, project.name, frozenset(SCOPES))


def fill_tables(session: Session, caller: Caller) -> dict[tuple[uuid.UUID, str], uuid.UUID]:
    """Make a row of the tenant in every table, and return the spare ones."""
    base = session.scalar(select(BaseModel).where(BaseModel.name == "tiny"))
    if base is None:
        base = BaseModel(name="tiny", source={})
        session.add(base)
    own: dict[str, Any] = {"org_id": caller.org_id}
    within = own | {"project_id": caller.project_id}
    datasets, experts = ([kind(name=name, **within) for name in ("summer", "spare")] for kind in (Dataset, Expert))
    jobs = [Job(kind="validate", spec={}, **within) for _ in range(2)]
    session.add_all([*datasets, *experts, *jobs])
    session.flush()
    described = {"filename": "f", "purpose": "fine-tune", "size_bytes": 1, "sha256": "0", "key": "k"}
    files = [DatasetVersion(dataset_id=dataset.id, version=1, **within, **described) for dataset in datasets]
    version = ExpertVersion(
        expert_id=experts[0].id,
        base_model_id=base.id,
        job_id=jobs[0].id,
        **{"version": 1, "fence": 1, "digest": "d", "manifest": {}, "key_prefix": "k", "size_bytes": 1},
        **own,
    )
    attempt = Attempt(job_id=jobs[0].id, fence=1, agent_id=uuid.uuid4(), **own)
    session.add_all([*files, version, attempt, JobEvent(job_id=jobs[0].id, message="m", **own)])
    another = Job(kind="train", spec={}, **within)
    session.add(another)
    session.flush()
    spare_version = ExpertVersion(
        expert_id=experts[1].id,
        base_model_id=base.id,
        job_id=another.id,
        **{"version": 1, "fence": 1, "digest": "d", "manifest": {}, "key_prefix": "k", "size_bytes": 1},
        **own,
    )
    checkpoint = Checkpoint(
        job_id=jobs[0].id,
        **{"fence": 1, "step": 1, "key_prefix": "k", "digest": "d", "size_bytes": 1, "z": {}, "metrics": {}},
        **own,
    )
    session.add_all([spare_version, checkpoint])
    session.flush()
    measured = {"base_model_id": base.id, "version_id": version.id, "suite_digest": "d", "suite": {}}
    session.add(Evaluation(job_id=jobs[0].id, **measured, **within))
    session.add(TokenCount(dataset_version_id=files[0].id, base_model_id=base.id, job_id=jobs[0].id, **own))
    session.add(MonthCost(month=date(2026, 1, 1), amount=1, at=datetime(2026, 1, 1, tzinfo=UTC), **own))
    session.add(BudgetNotice(month=date(2026, 1, 1), unit="hours", percent=80, budget=1, **own))
    session.add(MonthUsage(month=date(2026, 1, 1), worker_seconds=1.0, **own))
    day = {"day": date(2026, 1, 1), **within}
    session.add(
        WorkerUsage(cluster="c", kind="train", expert="", base_model="", worker_seconds=1.0, trained_tokens=1, **day)
    )
    session.add(StoredUsage(byte_hours=1, sampled_at=datetime(2026, 1, 1, tzinfo=UTC), **day))
    tokens = {"requests": 1, "prompt_tokens": 2, "cached_tokens": 1, "completion_tokens": 1}
    hour = {"hour": datetime(2026, 1, 1, tzinfo=UTC), "base_model": "tiny", "experts": ""}
    session.add(TokenUsage(key_id=caller.key_id, **hour, **tokens, **within))
    session.add_all([Quota(**own), Usage(cluster="default", worker_seconds=1.0, **own)])
    session.add(QueuePlace(job_id=jobs[0].id, reason="r", **own))
    session.add(JobDependency(job_id=jobs[0].id, needs_job_id=another.id, **own))
    alias, next_one = (Alias(expert_id=experts[0].id, name=n, version_id=version.id, **own) for n in ("prod", "next"))
    timed = {"timezone": "UTC", "on_new_data": True, "misfire": "skip", "overlap": "skip", "catch_up_s": 0}
    timed |= {
        "on_feedback": 1,
        "feedback_expert_id": experts[0].id,
        "max_backfill": 1,
        "jitter_s": 0,
        "max_failures": 1,
        "request": {},
    }
    weekly, daily = (Schedule(name=n, dataset_id=datasets[0].id, **timed, **within) for n in ("weekly", "daily"))
    promotions = [Promotion(job_id=job.id, alias="prod", gate={}, **within) for job in (jobs[0], another)]
    session.add_all([alias, next_one, weekly, daily, *promotions])
    session.flush()
    session.add(AliasMove(alias_id=alias.id, to_version_id=version.id, by="key", **own))
    asked = {"expert_id": experts[0].id, "alias": "prod", "version_id": version.id, "by": "key", "person": "key"}
    keys = [SigningKey(rotation=rotation, key_id="k", public_key="p", **own) for rotation in (1, 2)]
    session.add_all(keys)
    session.flush()
    signed = {"version_id": version.id, "signing_key_id": keys[0].id, "envelope": {}, "key": "k", "sha256": "s"}
    session.add(Attestation(**signed, **own))
    session.add(AliasProtection(name="prod", by="key", **within))
    session.add(AliasRequest(expires_at=datetime(2026, 1, 1, tzinfo=UTC), **asked, **within))
    session.add(ExpertChange(expert_id=experts[0].id, version_id=version.id, by="key", changes={}, **own))
    # The entries of the catalogue are there: triggers make them.
    session.add(CardRevision(expert_id=experts[0].id, revision=1, text="t", links=[], by="key", **own))
    figure = {"listed": False, "suite": "test", "metric": "accuracy", "value": 0.5}
    session.add(VersionMetric(expert_id=experts[0].id, version_id=version.id, **figure, **own))
    session.add(ExpertExport(version_id=version.id, job_id=jobs[0].id, format="lora", **within))
    outside = session.scalar(select(Organization).where(Organization.name == "initech"))
    if outside is None:
        outside = Organization(name="initech")
        session.add(outside)
        session.flush()
    granted = {"grantee_org_id": outside.id, "subject": "s", "grantee": "initech", "permission": "use", "by": "key"}
    session.add(ExpertGrant(expert_id=experts[0].id, version_id=version.id, status="active", **granted, **own))
    counts = {"hour": hour["hour"], "requests": 1, "prompt_tokens": 2, "completion_tokens": 1}
    session.add(SharedUsage(version_id=version.id, user_org_id=outside.id, user="initech", **counts, **own))
    session.add(ScheduleTick(schedule_id=weekly.id, key="k", outcome="fired", **own))
    endpoints = [WebhookEndpoint(name="n", url="https://example.com", event_types=[], **within) for _ in range(2)]
    session.add_all(endpoints)
    session.flush()
    about = {"event_id": uuid.uuid4(), "type": "t", "data": {}, "tries_left": 1}
    session.add(WebhookDelivery(endpoint_id=endpoints[0].id, **about, **own))
    session.flush()
    releases, release_versions = _fill_releases(session, base, version, within)
    trial = {"alias_id": alias.id, "share": 0.5, "by": "key"}
    trial |= {"live_version_id": release_versions[0].id, "shadow_version_id": release_versions[1].id}
    session.add(ShadowTrial(**trial, **own))
    session.flush()
    completion = _fill_completions(session, version, within)
    users = _fill_people(session, within)
    spare = {
        "datasets": datasets[1],
        "experts": experts[1],
        "jobs": jobs[1],
        "dataset_versions": files[1],
        "expert_versions": spare_version,
        "aliases": next_one,
        "promotions": promotions[1],
        "signing_keys": keys[1],
        "releases": releases[1],
        "release_versions": release_versions[1],
        "schedules": daily,
        "webhook_endpoints": endpoints[1],
        "stored_completions": completion,
        "users": users[1],
    }
    spare_ids = {table: row.id for table, row in spare.items()} | {"projects": caller.project_id}
    spare_ids["api_keys"] = caller.key_id
    return {(caller.org_id, table): row_id for table, row_id in spare_ids.items()}


def _fill_releases(
    session: Session, base: BaseModel, version: ExpertVersion, within: dict[str, Any]
) -> tuple[list[Release], list[ReleaseVersion]]:
    """Two releases with a version each, of which the first pins an expert version that a classifier knows."""
    own = {"org_id": within["org_id"]}
    releases = [Release(name=name, **within) for name in ("support", "spare")]
    session.add_all(releases)
    session.flush()
    of_base = {"base_model_id": base.id, "strategy": "centroid", "digest": "d", "by": "key"}
    release_versions = [ReleaseVersion(release_id=release.id, version=1, **of_base, **own) for release in releases]
    session.add_all(release_versions)
    session.flush()
    pinned = {"position": 0, "version_id": version.id, "weight": 1.0, "description": "sums"}
    session.add(ReleaseExpert(release_version_id=release_versions[0].id, **pinned, **own))
    file = session.scalars(select(DatasetVersion).where(DatasetVersion.org_id == within["org_id"]).limit(1)).one()
    known = {"position": 0, "label": "sums", "version_id": version.id, "rows": 1}
    session.add(ClassifiedExpert(dataset_version_id=file.id, **known, **own))
    session.flush()
    return releases, release_versions


def _fill_people(session: Session, within: dict[str, Any]) -> list[User]:
    """Two service accounts, of which the first has a role and accepted an invitation, and what was done."""
    own = {"org_id": within["org_id"]}
    users = [User(kind="service_account", name=name, role="member", **within) for name in ("ci", "spare")]
    session.add_all(users)
    session.flush()
    session.add(ProjectMember(user_id=users[0].id, role="viewer", **within))
    soon = datetime(2100, 1, 1, tzinfo=UTC)
    to = {"email": "a@b.org", "role": "viewer", "projects": [], "invited_by": "key"}
    session.add(Invitation(token_hash=own["org_id"].hex, expires_at=soon, user_id=users[0].id, **to, **own))
    session.add(AuditEvent(action="user.added", target="user-0", actor="key", user_id=users[0].id, **within))
    session.flush()
    return users


def _fill_completions(session: Session, version: ExpertVersion, within: dict[str, Any]) -> StoredCompletion:
    """Two stored completions, of which the first has feedback, and a dataset of them; return the second."""
    session.add(CompletionSettings(enabled=True, kept_days=30, redactors=[], **within))
    stored = {"model": "tiny", "request": {}, "answer": {}, "labels": {}, "size_bytes": 4, "change": 1}
    completions = [StoredCompletion(version_id=version.id, **stored, **within) for _ in range(2)]
    session.add(CompletionDataset(dataset="liked", where="rating:up", method="dpo", max_rows=10, **within))
    session.add_all(completions)
    session.flush()
    said = {"version_id": version.id, "choice": 0, "messages": [], "completion": "c", "score": 1.0}
    session.add(Feedback(completion_id=completions[0].id, **said, **within))
    session.flush()
    return completions[1]
