"""Publication on real SQL: one job makes one version, numbered without a gap."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from job_moves import claimed, fail, publish_version, readmit
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError
from suites import manifest_of

from zhub.database.sessions import make_engine, system_session
from zhub.embedded.postgres import Urls
from zhub.errors import LeaseLostError, UnavailableError
from zhub.models import Expert, ExpertVersion
from zhub.registry.publish import publish, published


def test_a_version_carries_the_fence_that_its_job_had(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fail(system_engine, job_id, claimed(system_engine).fence)
    readmit(system_engine)
    publish_version(system_engine, job_id, claimed(system_engine).fence)
    with system_session(system_engine) as session:
        version = session.scalars(select(ExpertVersion)).one()
    assert (version.job_id, version.fence, version.digest) == (job_id, 2, manifest_of(job_id, fence=2).digest)


def test_versions_of_concurrent_publications_are_numbered_without_a_gap(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    claims = [(admitted(), claimed(system_engine))[1] for _ in range(9)]
    barrier = threading.Barrier(len(claims))

    def race(index: int) -> None:
        barrier.wait(timeout=10)
        with system_session(system_engine) as session:
            job_id, fence = claims[index].job_id, claims[index].fence
            publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7)
            if index % 3 == 0:  # a commit that never happens must not use up a number
                session.rollback()

    with ThreadPoolExecutor(len(claims)) as pool:
        list(pool.map(race, range(len(claims))))
    with system_session(system_engine) as session:
        numbers = session.scalars(select(ExpertVersion.version).order_by(ExpertVersion.version)).all()
        last = session.scalars(select(Expert.last_version)).one()
    assert (list(numbers), last) == ([1, 2, 3, 4, 5, 6], 6)


def test_60_writers_on_one_expert_each_publish_at_the_first_try(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    claims = [(admitted(), claimed(system_engine))[1] for _ in range(60)]

    def write(index: int) -> int:
        with system_session(system_engine) as session:
            job_id, fence = claims[index].job_id, claims[index].fence
            return publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7).version

    with ThreadPoolExecutor(20) as pool:  # as many connections as there are writers at a time
        numbers = list(pool.map(write, range(60)))
    # Each was called once: whoever waits for the expert's row gets the next number, and nobody tries again.
    assert sorted(numbers) == list(range(1, 61))


def test_each_expert_counts_its_own_versions(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    numbers = [publish_version(system_engine, admitted(expert=name), claimed(system_engine).fence) for name in "aba"]
    assert numbers == [1, 1, 2]


def test_the_database_holds_one_version_for_each_job(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    publish_version(system_engine, job_id, claimed(system_engine).fence)
    copied = text(
        "INSERT INTO expert_versions SELECT (jsonb_populate_record(v, "
        "jsonb_build_object('id', gen_random_uuid(), 'version', 2))).* FROM expert_versions v"
    )
    with pytest.raises(IntegrityError, match="uq_expert_versions_job_id"), system_session(system_engine) as session:
        session.execute(copied)


def test_a_publication_whose_acknowledgement_was_lost_is_found_and_not_repeated(
    system_engine: Engine, database: Urls, admitted: Callable[..., uuid.UUID], proxy: Any
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    engine = make_engine(proxy.url(database.system), pool_size=1)
    with system_session(engine) as session:
        assert published(session, job_id) is None
    proxy.swallow_commits()
    with pytest.raises(UnavailableError):
        publish_version(engine, job_id, fence)
    with pytest.raises(LeaseLostError):
        publish_version(engine, job_id, fence)
    with system_session(engine) as session:
        version = published(session, job_id)
    engine.dispose()
    assert version is not None and (version.version, version.fence) == (1, fence)


def test_a_publication_that_breaks_before_its_commit_may_be_repeated(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    with system_session(system_engine) as session:
        publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7)
        session.rollback()
    assert publish_version(system_engine, job_id, fence) == 1
