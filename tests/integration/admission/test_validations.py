"""Which cluster validates a file."""

import uuid
from collections.abc import Callable

from admission_passes import admit, places
from claims import claim_one
from job_moves import execute
from sqlalchemy import Engine, text

from zhub.admission import admit as admission
from zhub.admission.admit import withdraw
from zhub.database.sessions import system_session
from zhub.kinds import table
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def validations(engine: Engine) -> dict[uuid.UUID, tuple[str, str]]:
    """State and cluster of each."""
    with system_session(engine) as session:
        rows = session.execute(text("SELECT id, state, cluster FROM jobs WHERE kind = 'validate'"))
        return {row.id: (row.state, row.cluster) for row in rows}


def test_a_file_is_validated_by_another_cluster_where_its_own_has_no_agent(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    make_agent(cluster="h100")
    made = make_job(acme, kind="validate")
    with system_session(system_engine) as session:
        (admitted,) = admission.admit(session, table.names(), agent_lost_after_s=30)
        assert (admitted.job_id, admitted.cluster) == (made, "h100")  # the agent that is woken
        claimed = claim_one(session, *table.of_pool("light"), cluster="h100")
        assert claimed is not None and claimed.job_id == made


def test_a_file_is_validated_by_its_own_cluster_where_that_has_an_agent(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    for cluster in ("a10", "default"):
        make_agent(cluster=cluster)
    made = make_job(acme, kind="validate")
    admit(system_engine)
    assert validations(system_engine)[made] == ("admitted", "default")


def test_a_validation_whose_cluster_goes_away_is_done_by_another(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    make_agent(cluster="a10")
    made = make_job(acme, kind="validate")
    admit(system_engine)
    execute(system_engine, "UPDATE jobs SET admitted_at = now() - interval '1 minute'")
    execute(system_engine, "UPDATE agents SET seen_at = now() - interval '1 minute'")
    make_agent(cluster="h100")
    with system_session(system_engine) as session:
        assert withdraw(session, agent_lost_after_s=30) == [made]
    admit(system_engine)
    assert validations(system_engine)[made] == ("admitted", "h100")


def test_a_validation_waits_for_any_agent_and_is_told_so(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    made = make_job(acme, kind="validate")
    assert admit(system_engine) == []
    assert places(system_engine)[made].reason == (
        "No agent of cluster 'default' is alive: nothing runs there until one is started. Nor is one of any other "
        "cluster."
    )
    make_agent(cluster="h100")
    assert made not in places(system_engine)  # the next pass admits it
    assert admit(system_engine) == [made]
