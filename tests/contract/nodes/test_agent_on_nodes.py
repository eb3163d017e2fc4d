"""An agent with its database and workers on two nodes."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_rig import AgentRig
from job_moves import lead
from pydantic import SecretStr
from ray._private.node import Node  # noqa: TID251
from ray_nodes import PLACE, drain, kill_node, node_of
from sqlalchemy import Engine, select

from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.models import Attempt as AttemptRow
from zhub.process.config import Settings
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller
from zhub_workers.agent.loop import Agent
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.cluster.flavour import Flavour

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("playing_cluster")]

Until = Callable[..., Any]
AddNode = Callable[..., Node]
MakeLauncher = Callable[..., RayLauncher]


@pytest.fixture
def rig(
    flavour: Flavour, database: Urls, system_engine: Engine, store: DirectoryStore, tmp_path: Path, until: Until
) -> AgentRig:
    settings = Settings(
        database_url=database.system,
        store_url=store.root.as_uri(),
        secret_key=SecretStr("not needed"),
        cache_dir=tmp_path / "cache",
        cluster=flavour.cluster,
    )
    return AgentRig(system_engine, settings, store, until)


@pytest.fixture
def on_two_nodes(
    add_node: AddNode, make_launcher: MakeLauncher, flavour: Flavour, rig: AgentRig
) -> tuple[Agent, RayLauncher, dict[str, Node]]:
    """An agent with a worker on each of two nodes."""
    nodes = {node.node_id: node for node in (add_node(resources=PLACE), add_node(resources=PLACE))}
    launcher = make_launcher(flavour, slots=2)
    return rig.agent(launcher), launcher, nodes


@pytest.fixture
def two_jobs(
    on_two_nodes: tuple[Agent, RayLauncher, dict[str, Node]], flavour: Flavour, tmp_path: Path, rig: AgentRig,
    make_job: Callable[..., uuid.UUID], caller: Caller, until: Until,
) -> tuple[Agent, RayLauncher, dict[uuid.UUID, Node]]:  # fmt: skip
    """An agent, and a job that runs on each of two nodes."""
    agent, launcher, nodes = on_two_nodes
    spec = {"do": "go on", "end": str(tmp_path / "end")}
    jobs = [make_job(caller, spec=spec, cluster=flavour.cluster, expert=f"e{n}") for n in range(2)]

    def run() -> bool:
        agent.round()
        lead(rig.engine)
        return rig.states(jobs) == ["running", "running"]

    until(run, timeout_s=90)
    return agent, launcher, {key.job_id: nodes[node_of(launcher, key)] for key in launcher.running()}


def finish(
    agent: Agent, rig: AgentRig, jobs: list[uuid.UUID], end: Path, until: Until, *, when: Callable[[], bool]
) -> None:
    """Go round until ``when``, let the jobs end, and go on until they have."""

    def reached() -> bool:
        rig.round(agent)
        return when()

    until(reached, timeout_s=90)
    end.touch()
    when = lambda: rig.states(jobs) == ["succeeded"] * len(jobs)  # noqa: E731
    until(reached, timeout_s=90)


def test_a_job_whose_node_dies_is_queued_again_and_finishes_elsewhere(
    two_jobs: tuple[Agent, RayLauncher, dict[uuid.UUID, Node]], rig: AgentRig, tmp_path: Path, until: Until
) -> None:
    agent, _, nodes = two_jobs
    hit, spared = nodes
    kill_node(nodes[hit])
    finish(agent, rig, [hit, spared], tmp_path / "end", until, when=lambda: rig.outcomes(hit) == ["lost"])
    assert (rig.outcomes(hit), rig.outcomes(spared)) == (["lost", "succeeded"], ["succeeded"])


def test_a_job_on_a_node_that_drains_leaves_it_without_paying_and_finishes_elsewhere(
    ray_head: str,
    two_jobs: tuple[Agent, RayLauncher, dict[uuid.UUID, Node]], rig: AgentRig, tmp_path: Path, until: Until,
) -> None:  # fmt: skip
    agent, launcher, nodes = two_jobs
    hit, spared = nodes
    drain(ray_head, nodes[hit].node_id)
    finish(agent, rig, [hit, spared], tmp_path / "end", until, when=lambda: rig.outcomes(hit)[0] == "preempted")
    assert (rig.outcomes(hit), rig.outcomes(spared)) == (["preempted", "succeeded"], ["succeeded"])
    assert rig.job(hit).infra_failures == 0
    assert nodes[hit].node_id not in {worker.node for worker in launcher._usable("torch").values()}


def test_a_job_that_brings_down_its_worker_on_two_nodes_is_not_tried_again(
    on_two_nodes: tuple[Agent, RayLauncher, dict[str, Node]], flavour: Flavour, tmp_path: Path, rig: AgentRig,
    make_job: Callable[..., uuid.UUID], caller: Caller, until: Until, come_to: Callable[..., None],
) -> None:  # fmt: skip
    agent, launcher, nodes = on_two_nodes
    come_to(launcher, 2)
    (tmp_path / "end").touch()
    job = make_job(caller, spec={"do": "die", "end": str(tmp_path / "end")}, cluster=flavour.cluster)

    def ended() -> bool:
        agent.round()
        lead(rig.engine)
        return rig.states([job]) == ["failed"]

    until(ended, timeout_s=90)
    assert rig.outcomes(job)[-2:] == ["lost", "failed_user"]
    with system_session(rig.engine) as session:
        died_on = set(session.scalars(select(AttemptRow.died_on).where(AttemptRow.job_id == job)))
    assert died_on == nodes.keys()
