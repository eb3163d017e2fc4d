"""The checker of histories: silent on a sound one, and it finds each thing that must never be."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from claims import admit_queued, claim_one
from job_moves import execute
from sqlalchemy import Engine
from suites import manifest_of

from zhub.cli.database_operations import examine_history
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.models import Dataset, Promotion, Release, ReleaseExpert, ReleaseVersion, Schedule, ScheduleTick
from zhub.queue import attempts, claims, dependencies, invariants, job_events, jobs
from zhub.registry import aliases, versions
from zhub.registry.publish import publish
from zhub.tenancy.keys import Caller

REPORTS = [job_events.Event(seq, "info", "message", f"Step {seq}.") for seq in (1, 2)]
MakeJob = Callable[..., uuid.UUID]


def examine(engine: Engine) -> set[str]:
    with system_session(engine) as session:
        return {finding.rule for finding in invariants.examine(session)}


def claim(engine: Engine) -> claims.Claim:
    with system_session(engine) as session:
        admit_queued(session)
        claimed_job = claim_one(session, "train")
    assert claimed_job is not None
    return claimed_job


@pytest.fixture
def past(unfrozen: None, system_engine: Engine, make_job: MakeJob, make_agent: Any, caller: Caller) -> uuid.UUID:
    """A sound history: a job that was lost once and then made a version, which was promoted, and two that run.

    Returns the first.
    """
    make_agent(slots=2)
    made = make_job(caller)
    lost = claim(system_engine)
    with system_session(system_engine) as session:
        attempts.fail(session, made, lost.fence, attempts.Failure("lost", "x", retryable=True), outcome="lost")
    for table in ("attempts", "job_events"):
        execute(system_engine, f"UPDATE {table} SET created_at = created_at - interval '10 seconds'")
    execute(system_engine, "UPDATE attempts SET ended_at = ended_at - interval '10 seconds'")
    again = claim(system_engine)
    with system_session(system_engine) as session:
        attempts.heartbeat(session, made, again.fence, lease_s=60, progressed=True, events=REPORTS)
    with system_session(system_engine) as session:
        prefix = f"t/{caller.org_id.hex}/jobs/{made.hex}/attempts/{again.fence}"
        version = publish(session, made, again.fence, manifest_of(made, fence=again.fence), prefix, 1)
        record = versions.by_id(session, [version.id])[version.id]
        aliases.move(session, "prod", record, by="test")
        release = Release(org_id=caller.org_id, project_id=caller.project_id, name="support", last_version=1)
        session.add(release)
        session.flush()
        of_release = {"base_model_id": record.base.id, "strategy": "centroid", "digest": "d", "by": "test"}
        pinning = ReleaseVersion(org_id=caller.org_id, release_id=release.id, version=1, **of_release)
        session.add(pinning)
        session.flush()
        part = {"position": 0, "version_id": version.id, "weight": 1.0, "description": "sums"}
        session.add(ReleaseExpert(org_id=caller.org_id, release_version_id=pinning.id, **part))
    own = {"org_id": caller.org_id, "project_id": caller.project_id}
    gate = make_job(caller, kind="gate", state="waiting")
    running = [make_job(caller, expert=expert) for expert in ("another", "third")]
    with system_session(system_engine) as session:
        dependencies.add(session, jobs.get_job(session, running[0]), [made])
        finding = {"file": "f", "passed": True, "sentences": []}
        session.add(Promotion(job_id=gate, alias="prod", gate={}, promoted=True, findings=[finding], **own))
        dataset = Dataset(name="rows", **own)
        session.add(dataset)
        session.flush()
        timed = {"timezone": "UTC", "on_new_data": True, "misfire": "skip", "overlap": "skip", "catch_up_s": 0}
        timed |= {"max_backfill": 1, "jitter_s": 0, "max_failures": 1, "request": {}}
        schedule = Schedule(name="weekly", dataset_id=dataset.id, **timed, **own)
        session.add(schedule)
        session.flush()
        tick = {"schedule_id": schedule.id, "key": "k", "outcome": "fired", "job_id": running[0]}
        session.add(ScheduleTick(org_id=caller.org_id, **tick))
    for _ in running:
        claim(system_engine)
    return made


def test_a_sound_history_is_sound(system_engine: Engine, past: uuid.UUID) -> None:
    assert examine(system_engine) == set()


def test_a_job_that_waits_for_others_may_be_paused_for_as_long_as_it_waits(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    make_job(caller, state="waiting", desired="pause")
    execute(system_engine, "UPDATE job_events SET created_at = now() - interval '2 minutes'")
    assert examine(system_engine) == set()


HARM: dict[str, tuple[str, str]] = {
    "a failure with a version": (
        "a job makes at most one version, and only by succeeding",
        "UPDATE jobs /* any move */ SET state = 'failed' WHERE id = :past",
    ),
    "a version of another fence": (
        "a version was made by the attempt that owned its job",
        "UPDATE expert_versions SET fence = 1",
    ),
    "a version after a cancellation": (
        "no job whose cancellation was accepted makes a version",
        "UPDATE jobs SET desired = 'cancel' WHERE state = 'succeeded'",
    ),
    "a number left out": (
        "the versions of an expert are numbered without a gap",
        "UPDATE expert_versions SET version = 2",
    ),
    "an attempt without a row": (
        "there is one attempt for each fence that was given out",
        "DELETE FROM attempts WHERE fence = 1 AND job_id = :past",
    ),
    "a fence set back": (
        "there is one attempt for each fence that was given out",
        "UPDATE jobs SET fence = 1 WHERE id = :past",
    ),
    "an attempt that never ended": (
        "an attempt is open exactly while its job is active, and it is the last one",
        "UPDATE attempts SET ended_at = NULL, outcome = NULL WHERE fence = 2",
    ),
    "an active job without an attempt": (
        "an attempt is open exactly while its job is active, and it is the last one",
        "UPDATE attempts SET ended_at = now(), outcome = 'lost' WHERE ended_at IS NULL",
    ),
    "two attempts at a time": (
        "no attempt begins before the one before it has ended",
        "UPDATE attempts SET ended_at = now() + interval '1 minute' WHERE fence = 1 AND job_id = :past",
    ),
    "a lease that nobody takes back": (
        "a lease that ran out is taken back",
        "UPDATE jobs SET lease_until = now() - interval '2 minutes' WHERE lease_until IS NOT NULL",
    ),
    "a checkpoint of nobody": (
        "a checkpoint belongs to an attempt of its job",
        "INSERT INTO checkpoints (id, org_id, job_id, fence, step, key_prefix, digest, size_bytes, z, metrics) "
        "SELECT gen_random_uuid(), org_id, id, 9, 1, 'k', 'd', 1, '{}', '{}' FROM jobs WHERE id = :past",
    ),
    "a job that did not wait": (
        "a job that depends on others began after all of them had succeeded",
        "UPDATE job_dependencies SET needs_job_id = (SELECT max(id::text)::uuid FROM jobs WHERE state = 'starting')",
    ),
    "an alias that moved without a row": (
        "an alias points to the version of its last move",
        "DELETE FROM alias_moves",
    ),
    "a move from elsewhere": (
        "each move of an alias begins where the one before it ended",
        "UPDATE alias_moves SET from_version_id = to_version_id",
    ),
    "an alias of what was deleted": (
        "no alias points to a deleted version",
        "UPDATE expert_versions SET deleted_at = now()",
    ),
    "an alias of what was yanked": (
        "nothing asks a yanked version",
        "UPDATE expert_versions SET yanked_at = now()",
    ),
    "a release of what was deleted": (
        "no release pins a deleted version",
        "UPDATE expert_versions SET deleted_at = now()",
    ),
    "a promotion past its gate": (
        "a version that a gate promoted passed on every suite",
        """UPDATE promotions SET findings = '[{"passed": true}, {"passed": false}]'""",
    ),
    "a tick that fired nothing": (
        "a tick that fired has its job",
        "UPDATE schedule_ticks SET job_id = NULL",
    ),
    "a manifest of another attempt": (
        "a version's manifest names the attempt that made it, and lies where no other writes",
        "UPDATE expert_versions SET manifest = jsonb_set(manifest, '{fence}', '1')",
    ),
    "a manifest of another job": (
        "a version's manifest names the attempt that made it, and lies where no other writes",
        "UPDATE expert_versions SET manifest = jsonb_set(manifest, '{job_id}', '\"x\"')",
    ),
    "an artifact where another attempt writes": (
        "a version's manifest names the attempt that made it, and lies where no other writes",
        "UPDATE expert_versions SET key_prefix = regexp_replace(key_prefix, '2$', '1')",
    ),
    "a success of no attempt": (
        "a job has succeeded exactly if its last attempt has",
        "UPDATE attempts SET outcome = 'lost' WHERE job_id = :past",
    ),
    "a success before the last attempt": (
        "a job has succeeded exactly if its last attempt has",
        "UPDATE attempts SET outcome = CASE fence WHEN 1 THEN 'succeeded' ELSE 'lost' END WHERE job_id = :past",
    ),
    "a loss that was not counted": (
        "each failure of an attempt counts once against its job's budget",
        "UPDATE jobs SET infra_failures = 0",
    ),
    "a loss that somebody else pays": (
        "each failure of an attempt counts once against its job's budget",
        "UPDATE jobs SET infra_failures = 0, user_failures = 1 WHERE id = :past",
    ),
    "a beginning that nobody was told of": (
        "the start and the end of an attempt each have an event of the same transaction",
        "DELETE FROM job_events WHERE message = 'Attempt 2 started.'",
    ),
    "an end that nobody was told of": (
        "the start and the end of an attempt each have an event of the same transaction",
        "DELETE FROM job_events WHERE message LIKE 'Published%'",
    ),
    "a report that is gone": (
        "the events that an attempt reported are numbered without a gap",
        "DELETE FROM job_events WHERE seq = 1",
    ),
    "something after the end": (
        "nothing happens to a job that has ended",
        "INSERT INTO job_events (id, org_id, job_id, level, type, message, created_at) "
        "SELECT gen_random_uuid(), org_id, id, 'info', 'message', 'x', now() + interval '5 seconds' FROM jobs "
        "WHERE id = :past",
    ),
    "a requested change that is not applied": (
        "a requested change of a job without an attempt is applied",
        "WITH past AS (UPDATE job_events SET created_at = now() - interval '2 minutes') "
        "UPDATE jobs SET state = 'paused', lease_until = NULL WHERE state = 'starting'",
    ),
    "more workers than there are": (
        "a cluster's agents give out no more workers than they have",
        "UPDATE agents SET slots = 1",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_must_never_be_is_found(system_engine: Engine, past: uuid.UUID, harm: str) -> None:
    rule, statement = HARM[harm]
    execute(system_engine, statement, **({"past": past} if ":past" in statement else {}))
    assert rule in examine(system_engine)


def test_every_rule_is_seen_to_be_broken() -> None:
    # Another organisation's expert cannot be written at all: a foreign key forbids it.
    assert {rule for rule, _ in HARM.values()} == invariants.RULES.keys() - {
        "a job references only its own tenant's objects"
    }


def test_the_doctor_says_what_it_found_and_how_it_went(
    system_engine: Engine, database: Urls, past: uuid.UUID, capsys: pytest.CaptureFixture[str]
) -> None:
    examine_history(database.system)
    assert f"4 jobs, {len(invariants.RULES)} rules, nothing is wrong" in capsys.readouterr().err
    execute(system_engine, "UPDATE expert_versions SET version = 2")
    with pytest.raises(SystemExit) as ended:
        examine_history(database.system)
    shown = capsys.readouterr()
    assert ended.value.code == 1 and "numbered without a gap: last 1, 1 versions, the largest 2" in shown.out
