"""Where a version comes from, and what came of it: files, jobs, attempts, versions, and what uses them.

One recursive statement walks from version to version, by the digests in their manifests, up to parents and down to
children; a few more, as many whatever the number of versions, tell what hangs on each of them. Deleted versions are
part of it: their rows stay. Functions take a Session and never commit.
"""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import and_, or_, select, text
from sqlalchemy.orm import Session

from zhub.errors import NotFoundError
from zhub.ids import PREFIXES, parse_id, public_id
from zhub.models import (
    Alias,
    Attempt,
    ClassifiedExpert,
    DatasetVersion,
    Evaluation,
    Expert,
    ExpertVersion,
    Job,
    Promotion,
    Release,
    ReleaseExpert,
    ReleaseVersion,
    Schedule,
)
from zhub.queue.statuses import status_of
from zhub.registry import missing, versions
from zhub.registry.publish import public_job_id
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

MAX_DEPTH = 20
MAX_VERSIONS = 200
MAX_EACH = 200
"""Of each kind of what hangs on the versions."""

Kind = Literal[
    "file", "fine-tuning job", "expert import", "attempt", "version", "evaluation", "promotion", "alias", "release",
    "schedule",
]  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One thing of a lineage; ``name`` is for people, ``id`` leads to it."""

    id: str
    kind: Kind
    name: str
    state: str
    digest: str | None = None


@dataclass(frozen=True)
class Edge:
    """``to`` came of ``origin``, or uses it."""

    origin: str
    to: str
    relation: str


@dataclass
class Lineage:
    """What was walked from ``of``. ``truncated``: there is more than is told."""

    of: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)
    truncated: bool = False

    def add(self, node: Node) -> str:
        self.nodes.setdefault(node.id, node)
        return node.id

    def link(self, origin: str, to: str, relation: str) -> None:
        self.edges.setdefault(Edge(origin, to, relation))


def of(session: Session, caller: Caller, subject: str) -> Lineage:
    """The lineage of a version, by its name or by an alias, or of a file, by its id.

    Raises:
        NotFoundError: there is no such version or file, and never was.
    """
    if subject.startswith(f"{PREFIXES['file']}-"):
        file = _file(session, caller, subject)
        lineage = Lineage(subject)
        start = _trained_on(session, file)
    else:
        record = versions.find_version(session, caller.project_id, subject)
        if record is None:
            raise missing.model(session, caller.project_id, subject)
        lineage = Lineage(record.name)
        start = [record.version.id]
    walked = _walk(session, caller.project_id, start)
    lineage.truncated = len(walked) > MAX_VERSIONS
    records = versions.by_id(session, list(walked)[:MAX_VERSIONS])
    for record in records.values():
        lineage.add(_version(record))
    for version_id, (parent_id, relation) in ((v, edge) for v, edges in walked.items() for edge in edges):
        if version_id in records and parent_id in records:
            lineage.link(records[parent_id].name, records[version_id].name, relation)
    if subject not in lineage.nodes and subject.startswith(f"{PREFIXES['file']}-"):
        lineage.add(_file_node(file))
    _add_origins(session, lineage, records)
    _add_measured(session, lineage, records)
    _add_users(session, lineage, caller, records)
    return lineage


# A version's parents: what its training began from, and what a few-shot search mixed. Its children: the reverse.
_WALK = text(
    """
    WITH RECURSIVE up AS (
        SELECT v.id, v.id AS child, '' AS relation, 0 AS depth FROM expert_versions v WHERE v.id = ANY(:start)
         UNION
        SELECT p.id, v.id, r.relation, up.depth + 1
          FROM up JOIN expert_versions v ON v.id = up.id
               CROSS JOIN LATERAL (
                   SELECT v.manifest->>'parent_digest' AS digest, 'is the start of' AS relation
                    UNION ALL
                   SELECT mixed->>'digest', 'was mixed into'
                     FROM jsonb_array_elements(v.manifest->'mixture'->'experts') AS mixed) r
               JOIN expert_versions p ON p.org_id = v.org_id AND p.digest = r.digest
               JOIN experts e ON e.id = p.expert_id AND e.project_id = :project
         WHERE up.depth < :depth
    ), down AS (
        SELECT v.id, v.id AS parent, '' AS relation, 0 AS depth FROM expert_versions v WHERE v.id = ANY(:start)
         UNION
        SELECT c.id, v.id, c.relation, down.depth + 1
          FROM down JOIN expert_versions v ON v.id = down.id
               CROSS JOIN LATERAL (
                   SELECT b.id, b.expert_id, 'is the start of' AS relation FROM expert_versions b
                    WHERE b.org_id = v.org_id AND b.manifest->>'parent_digest' = v.digest
                    UNION ALL
                   SELECT m.id, m.expert_id, 'was mixed into' FROM expert_versions m
                    WHERE m.org_id = v.org_id AND m.manifest->'mixture' IS NOT NULL AND m.manifest->'mixture'->'experts'
                          @> jsonb_build_array(jsonb_build_object('digest', v.digest))) c
               JOIN experts e ON e.id = c.expert_id AND e.project_id = :project
         WHERE down.depth < :depth
    )
    SELECT child AS version, id AS parent, relation, depth FROM up
     UNION
    SELECT id, parent, relation, depth FROM down
     ORDER BY depth LIMIT :rows
    """
)


def _walk(
    session: Session, project_id: uuid.UUID, start: Sequence[uuid.UUID]
) -> dict[uuid.UUID, set[tuple[uuid.UUID, str]]]:
    """The versions around these, the nearest first, each with its parents: (the parent, how it came of it)."""
    asked = {"start": list(start), "project": project_id, "depth": MAX_DEPTH, "rows": 10 * MAX_VERSIONS}
    walked: dict[uuid.UUID, set[tuple[uuid.UUID, str]]] = {}
    for version, parent, relation, _depth in session.execute(_WALK, asked):
        walked.setdefault(parent, set())
        parents = walked.setdefault(version, set())
        if relation:
            parents.add((parent, relation))
    return walked


def _file(session: Session, caller: Caller, subject: str) -> DatasetVersion:
    """A file of the project, also a deleted one."""
    file = session.get(DatasetVersion, parse_id("file", subject))
    if file is None or file.project_id != caller.project_id:
        raise NotFoundError("file", subject)
    return file


def _trained_on(session: Session, file: DatasetVersion) -> list[uuid.UUID]:
    of_file = or_(Job.dataset_version_id == file.id, Job.validation_version_id == file.id)
    trained = select(ExpertVersion.id).join(Job, Job.id == ExpertVersion.job_id).where(of_file)
    return list(session.scalars(trained.order_by(ExpertVersion.id.desc()).limit(MAX_VERSIONS)))


def _version(record: VersionRecord) -> Node:
    return Node(record.name, "version", record.name, record.version.state, record.version.digest)


def _file_node(file: DatasetVersion) -> Node:
    state = "deleted" if file.deleted_at is not None else file.status
    return Node(public_id("file", file.id), "file", f"{file.filename} v{file.version}", state, file.sha256)


def _add_origins(session: Session, lineage: Lineage, records: Mapping[uuid.UUID, VersionRecord]) -> None:
    """The attempt and the job that made each version, the files that it was trained on, and whose prompts they are."""
    by_job = {record.version.job_id: record.version for record in records.values()}
    jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(by_job)))}
    files = _files(session, jobs.values())
    fences = or_(*(and_(Attempt.job_id == one.job_id, Attempt.fence == one.fence) for one in by_job.values()))
    attempts = {attempt.job_id: attempt for attempt in session.scalars(select(Attempt).where(fences))} if by_job else {}
    for record in records.values():
        version, job = record.version, jobs[record.version.job_id]
        made_by = public_job_id(version)
        kind: Kind = "expert import" if job.kind == "import" else "fine-tuning job"
        lineage.add(Node(made_by, kind, made_by, status_of(job)))
        if attempt := attempts.get(job.id):
            node = Node(
                f"{made_by}/attempts/{attempt.fence}",
                "attempt",
                f"attempt {attempt.fence} on {job.cluster}",
                attempt.outcome or "running",
            )
            lineage.link(made_by, lineage.add(node), "ran as")
            lineage.link(node.id, record.name, "published")
        else:
            lineage.link(made_by, record.name, "published")
        for file_id, relation in (
            (job.dataset_version_id, "was trained on by"),
            (job.validation_version_id, "was validated on by"),
        ):
            if file_id is not None:
                lineage.link(lineage.add(_file_node(files[file_id])), made_by, relation)
    _add_labels(session, lineage, files)


def _files(session: Session, jobs: Collection[Job]) -> dict[uuid.UUID, DatasetVersion]:
    ids = {
        file_id
        for job in jobs
        for file_id in (job.dataset_version_id, job.validation_version_id)
        if file_id is not None
    }
    return {file.id: file for file in session.scalars(select(DatasetVersion).where(DatasetVersion.id.in_(ids)))}


def _add_labels(session: Session, lineage: Lineage, files: Mapping[uuid.UUID, DatasetVersion]) -> None:
    """The versions whose prompts a classifier's file has."""
    labels = select(ClassifiedExpert).where(ClassifiedExpert.dataset_version_id.in_(files)).limit(MAX_EACH)
    listed = list(session.scalars(labels))
    named = versions.by_id(session, [label.version_id for label in listed])
    for label in listed:
        origin = lineage.add(_version(named[label.version_id]))
        lineage.link(origin, public_id("file", label.dataset_version_id), "has its prompts in")


def _add_measured(session: Session, lineage: Lineage, records: Mapping[uuid.UUID, VersionRecord]) -> None:
    """Evaluations and gates of the versions."""
    measured = select(Evaluation, Job).join(Job, Job.id == Evaluation.job_id)
    measured = measured.where(Evaluation.version_id.in_(records)).order_by(Evaluation.id.desc())
    for evaluation, job in _bounded(lineage, session.execute(measured.limit(MAX_EACH + 1)).all()):
        mean = f", mean {evaluation.results['mean']:.3g}" if evaluation.results else ""
        name = f"{evaluation.suite['file']['name']}{mean}"
        node = Node(public_id("evaluation", evaluation.id), "evaluation", name, status_of(job))
        if evaluation.version_id is not None:
            lineage.link(records[evaluation.version_id].name, lineage.add(node), "measured by")
    gates = select(Promotion, Job).join(Job, Job.id == Promotion.job_id).where(Promotion.version_id.in_(records))
    listed = session.execute(gates.order_by(Promotion.id.desc()).limit(MAX_EACH + 1)).all()
    for promotion, job in _bounded(lineage, listed):
        state = {True: "promoted", False: "not promoted", None: status_of(job)}[promotion.promoted]
        node = Node(public_id("promotion", promotion.id), "promotion", f"gate to @{promotion.alias}", state)
        if promotion.version_id is not None:
            lineage.link(records[promotion.version_id].name, lineage.add(node), "decided by")


def _add_users(session: Session, lineage: Lineage, caller: Caller, records: Mapping[uuid.UUID, VersionRecord]) -> None:
    """Aliases that point to the versions, releases that pin them, and schedules whose trainings begin from them."""
    pointing = select(Alias, Expert.name).join(Expert, Expert.id == Alias.expert_id)
    pointing = pointing.where(Alias.version_id.in_(records)).order_by(Alias.name).limit(MAX_EACH + 1)
    for alias, expert in _bounded(lineage, session.execute(pointing).all()):
        name = f"{caller.project}.{expert}@{alias.name}"
        if alias.version_id is not None:
            lineage.link(records[alias.version_id].name, lineage.add(Node(name, "alias", name, "ready")), "named by")
    for version_id, release, version, alias_name in _bounded(lineage, _pins(session, caller, records)):
        name = f"{caller.project}.{release}@v{version.version}"
        state = "deleted" if version.deleted_at is not None else "ready"
        lineage.link(
            records[version_id].name, lineage.add(Node(name, "release", name, state, version.digest)), "pinned by"
        )
        if alias_name is not None:
            of_release = f"{caller.project}.{release}@{alias_name}"
            lineage.link(name, lineage.add(Node(of_release, "alias", of_release, "ready")), "named by")
    of_project = (Schedule.project_id == caller.project_id, Schedule.deleted_at.is_(None))
    for schedule in session.scalars(select(Schedule).where(*of_project).order_by(Schedule.name).limit(MAX_EACH)):
        named = versions.find_version(session, caller.project_id, str(schedule.request.get("model")))
        if named is not None and named.version.id in records:
            state = "paused" if schedule.paused_because else "active"
            node = Node(public_id("schedule", schedule.id), "schedule", schedule.name, state)
            lineage.link(named.name, lineage.add(node), "is the start of")


def _pins(
    session: Session, caller: Caller, records: Mapping[uuid.UUID, VersionRecord]
) -> Sequence[tuple[uuid.UUID, str, ReleaseVersion, str | None]]:
    """Releases that pin the versions, or ask them as their classifier: with the name of an alias of theirs, if any."""
    columns = (Release.name, ReleaseVersion, Alias.name)
    of_project = Release.project_id == caller.project_id
    pinned = (
        select(ReleaseExpert.version_id, *columns)
        .join(ReleaseVersion, ReleaseVersion.id == ReleaseExpert.release_version_id)
        .join(Release, Release.id == ReleaseVersion.release_id)
        .outerjoin(Alias, Alias.release_version_id == ReleaseVersion.id)
        .where(ReleaseExpert.version_id.in_(records), of_project)
        .limit(MAX_EACH + 1)
    )
    asked = (
        select(ReleaseVersion.classifier_version_id, *columns)
        .join(Release, Release.id == ReleaseVersion.release_id)
        .outerjoin(Alias, Alias.release_version_id == ReleaseVersion.id)
        .where(ReleaseVersion.classifier_version_id.in_(records), of_project)
        .limit(MAX_EACH + 1)
    )
    rows = [*session.execute(pinned), *session.execute(asked)]
    return [(version_id, name, version, alias) for version_id, name, version, alias in rows if version_id is not None]


def _bounded(lineage: Lineage, listed: Sequence[Any]) -> Iterator[Any]:
    lineage.truncated = lineage.truncated or len(listed) > MAX_EACH
    yield from listed[:MAX_EACH]
