"""Several Ray nodes: where workers are, what becomes of attempts whose node goes away, and who sees whose workers.

The nodes are real raylets on this machine. A worker takes one ``place``; the head has none.
"""

import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import playing
import pytest
import ray  # noqa: TID251
from pydantic import SecretStr
from ray._private.node import Node  # noqa: TID251
from ray.util import placement_group  # noqa: TID251
from ray_nodes import drain, groups, kill_node
from sqlalchemy import Engine, select, text

from zhub import scheduler
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.models import Attempt as AttemptRow
from zhub.models import Job
from zhub.process.config import Settings
from zhub.queue import leadership
from zhub.tenancy.keys import Caller
from zhub_workers.agent import ray_launcher
from zhub_workers.agent.launcher import WorkerLostError, WorkerSilentError
from zhub_workers.agent.loop import Agent
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.attempts.attempt import Attempt, AttemptKey
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("playing_cluster")]

LEASE_S = 60.0
PLACE = {"place": 1.0}
Until = Callable[..., Any]
AddNode = Callable[..., Node]
MakeLauncher = Callable[..., RayLauncher]


@pytest.fixture
def flavour() -> Flavour:
    """Of a cluster name of this test's own."""
    return Flavour(cluster=f"c{uuid.uuid4().hex[:8]}", resources=PLACE)


@pytest.fixture
def make_launcher() -> Iterator[MakeLauncher]:
    """Make launchers whose workers are gone after the test."""
    clusters: set[str] = set()

    def make(flavour: Flavour, *, slots: int = 1, jobs_per_worker: int = 1) -> RayLauncher:
        clusters.add(flavour.cluster)
        return RayLauncher(flavour, slots=slots, jobs_per_worker=jobs_per_worker, device="cpu", log_format="text")

    yield make
    names = ray_cluster.names()
    ray_cluster.kill_all([name for name in names if any(ray_cluster.pool_of(name, one) for one in clusters)])


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., Attempt]:
    def make(do: str = "go on", **changed: Any) -> Attempt:
        spec = {"do": do, "end": str(tmp_path / "end")}
        made = Attempt(AttemptKey(uuid.uuid4(), 1), uuid.uuid4(), spec, "file:///nowhere", tmp_path, None)
        return replace(made, **changed)

    return make


@pytest.fixture
def come_to(until: Until) -> Callable[..., None]:
    """Fill the pools until so many workers with torch are free."""

    def wait(launcher: RayLauncher, free: int) -> None:
        def reached() -> bool:
            launcher.tidy()
            launcher.fill_pools()
            return launcher.free("torch") == free

        until(reached, timeout_s=60)

    return wait


def is_lost(launcher: RayLauncher, key: AttemptKey) -> bool:
    try:
        launcher.poll(key, 0, LEASE_S)
    except WorkerLostError:
        return True
    except WorkerSilentError:
        return False
    return False


def node_of(launcher: RayLauncher, key: AttemptKey) -> str:
    return launcher._workers[launcher.running()[key]].node


def pid_of(launcher: RayLauncher, name: str) -> int:
    pid: int = ray.get(launcher._workers[name].actor.__ray_call__.remote(lambda _self: os.getpid()))
    return pid


# Nodes that die


def test_workers_are_spread_and_those_of_a_node_that_dies_are_lost_alone_and_replaced_once_there_is_room(
    add_node: AddNode, make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt],
    come_to: Callable[..., None], until: Until,
) -> None:  # fmt: skip
    nodes = {node.node_id: node for node in (add_node(resources=PLACE), add_node(resources=PLACE))}
    launcher = make_launcher(flavour, slots=2)
    come_to(launcher, 2)
    first, second = attempt(), attempt()
    for made in (first, second):
        launcher.start("torch", made, LEASE_S)
    assert {node_of(launcher, first.key), node_of(launcher, second.key)} == nodes.keys()
    gone, stays = node_of(launcher, first.key), node_of(launcher, second.key)
    kill_node(nodes[gone])
    until(lambda: is_lost(launcher, first.key), timeout_s=60)
    assert (launcher.died_on(first.key), launcher.died_on(second.key)) == (gone, None)
    assert stays in launcher.nodes() and gone not in launcher.nodes()
    launcher.fill_pools()
    assert launcher.poll(second.key, 0, LEASE_S).state == "running"
    assert launcher.free("torch") == 0
    add_node(resources=PLACE)
    come_to(launcher, 1)


def test_an_attempt_whose_worker_is_killed_for_want_of_memory_is_lost_and_its_worker_replaced(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None],
    until: Until,
) -> None:  # fmt: skip
    launcher = make_launcher(replace(flavour, resources={}), jobs_per_worker=2)
    come_to(launcher, 1)
    made, beside = (attempt("die", pack_key="pack") for _ in range(2))
    for one in (made, beside):
        launcher.start("torch", one, LEASE_S)
    node = node_of(launcher, made.key)
    Path(made.spec["end"]).touch()
    until(lambda: is_lost(launcher, made.key) and is_lost(launcher, beside.key), timeout_s=60)
    assert [launcher.died_on(one.key) for one in (made, beside, made)] == [node, node, None]
    assert node in launcher.nodes()
    come_to(launcher, 1)


def test_a_free_worker_that_dies_is_replaced_before_it_costs_a_job_an_attempt(
    make_launcher: MakeLauncher, flavour: Flavour, come_to: Callable[..., None], until: Until
) -> None:
    launcher = make_launcher(replace(flavour, resources={}))
    come_to(launcher, 1)
    (name,) = launcher._usable("torch")
    os.kill(pid_of(launcher, name), signal.SIGKILL)

    def noticed() -> bool:
        launcher.tidy()
        return launcher.free("torch") == 0

    until(noticed, timeout_s=60)
    come_to(launcher, 1)


def test_a_worker_that_is_silent_is_asked_again_once_it_has_answered(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None],
    until: Until, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_launcher, "CALL_TIMEOUT_S", 1.0)
    launcher = make_launcher(replace(flavour, resources={}))
    come_to(launcher, 1)
    made = attempt()
    pid = pid_of(launcher, launcher.start("torch", made, LEASE_S))
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(WorkerSilentError, match="within 1 s"):
        launcher.poll(made.key, 0, LEASE_S)
    with pytest.raises(WorkerSilentError, match="still"):
        launcher.poll(made.key, 0, LEASE_S)
    os.kill(pid, signal.SIGCONT)

    def answers() -> bool:
        try:
            return launcher.poll(made.key, 0, LEASE_S).state == "running"
        except WorkerSilentError:
            return False

    until(answers)


# Starts


def test_a_worker_without_a_place_says_what_it_asks_for_does_not_count_and_starts_when_a_node_comes(
    add_node: AddNode, make_launcher: MakeLauncher, flavour: Flavour, come_to: Callable[..., None],
    until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_launcher, "START_TIMEOUT_S", 0.5)
    launcher = make_launcher(replace(flavour, resources={"gold": 1.0}, cpus=0.5, labels={"kind": "fast"}))
    before = launcher.slots()

    def complained() -> bool:
        launcher.fill_pools()
        return "0.5 CPU, 1 gold, on a node with kind=fast" in caplog.text

    with caplog.at_level(logging.ERROR, logger="zhub.agent"):
        until(complained)
    assert (before, launcher.slots(), launcher.free("torch")) == (1, 0, 0)
    monkeypatch.undo()
    monkeypatch.setattr(ray_launcher, "ACTORS", {"light": playing.PlayingActor, "torch": playing.PlayingActor})
    add_node(resources={"gold": 1.0}, labels={"kind": "slow"})
    node = add_node(resources={"gold": 1.0}, labels={"kind": "fast"})
    come_to(launcher, 1)
    (worker,) = launcher._usable("torch").values()
    assert (launcher.slots(), worker.node) == (1, node.node_id)


def test_a_worker_that_hangs_while_it_starts_is_replaced(
    make_launcher: MakeLauncher, flavour: Flavour, come_to: Callable[..., None], until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_launcher, "START_TIMEOUT_S", 2.0)
    working = ray_launcher.ACTORS
    monkeypatch.setattr(ray_launcher, "ACTORS", working | {"torch": playing.StuckActor})
    launcher = make_launcher(replace(flavour, resources={}))
    (stuck,) = [name for name, start in launcher._starting.items() if start.pool == "torch"]
    monkeypatch.setattr(ray_launcher, "ACTORS", working)

    def replaced() -> bool:
        launcher.fill_pools()
        return stuck not in launcher._starting

    until(replaced, timeout_s=60)
    monkeypatch.setattr(ray_launcher, "START_TIMEOUT_S", 300.0)
    come_to(launcher, 1)


# Nodes that drain


def test_a_head_that_does_not_answer_keeps_no_attempt_from_being_polled(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch, until: Until, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    launcher = make_launcher(replace(flavour, resources={}))
    come_to(launcher, 1)
    made = attempt()
    launcher.start("torch", made, LEASE_S)
    answer = threading.Event()
    monkeypatch.setattr(ray_launcher, "LOOK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ray_cluster, "placement_group_table", lambda: answer.wait(60) and {})
    launcher.tidy()
    assert "Ray's head does not answer" in caplog.text
    assert launcher.poll(made.key, 0, LEASE_S).state == "running"
    answer.set()

    def answers() -> bool:
        caplog.clear()
        launcher.tidy()
        return not caplog.text

    until(answers)
    monkeypatch.delattr(ray_cluster, "placement_group_table")
    launcher.tidy()
    assert "NameError" in caplog.text
    assert launcher.poll(made.key, 0, LEASE_S).state == "running"


def test_a_pool_that_becomes_smaller_ends_free_workers_and_none_that_is_busy(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None]
) -> None:
    launcher = make_launcher(replace(flavour, resources={}), slots=2)
    come_to(launcher, 2)
    made = attempt()
    launcher.start("torch", made, LEASE_S)
    smaller = make_launcher(replace(flavour, resources={}))
    assert (set(smaller.running()), smaller.free("torch"), smaller.slots()) == ({made.key}, 0, 1)


def test_a_node_that_drains_takes_no_attempt_loses_its_free_workers_and_says_which_attempts_leave(
    ray_head: str, add_node: AddNode, make_launcher: MakeLauncher, flavour: Flavour,
    attempt: Callable[..., Attempt], come_to: Callable[..., None],
) -> None:  # fmt: skip
    going, staying = add_node(resources={"place": 2.0}), add_node()
    launcher = make_launcher(flavour, slots=2)
    come_to(launcher, 2)
    made = attempt()
    launcher.start("torch", made, LEASE_S)
    drain(ray_head, going.node_id)
    assert going.node_id in ray_cluster.draining_nodes() and staying.node_id not in ray_cluster.draining_nodes()
    launcher.tidy()
    assert (launcher.leaving(), launcher.free("torch")) == ({made.key}, 0)
    assert launcher.poll(made.key, 0, LEASE_S).state == "running"
    with pytest.raises(WorkerLostError):
        launcher.start("torch", attempt(), LEASE_S)
    launcher.fill_pools()
    other = add_node(resources={"place": 2.0})
    come_to(launcher, 2)
    assert {worker.node for worker in launcher._usable("torch").values()} == {other.node_id}


# Several agents and what earlier ones left


def test_agents_of_other_names_on_the_same_ray_do_not_see_each_others_workers(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None]
) -> None:
    one, other = replace(flavour, resources={}), Flavour(cluster=f"{flavour.cluster}-b")
    first, second = make_launcher(one), make_launcher(other)
    for launcher in (first, second):
        come_to(launcher, 1)
    made = attempt()
    first.start("torch", made, LEASE_S)
    successor = make_launcher(other)
    assert successor.running() == {}
    assert successor._usable("torch").keys() == second._usable("torch").keys()
    assert make_launcher(one).running() == first.running()


def test_a_worker_that_an_earlier_agent_started_late_is_found_with_its_attempt(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], until: Until
) -> None:
    launcher = make_launcher(replace(flavour, resources={}))
    made = attempt()
    name = ray_cluster.worker_name("torch", flavour.cluster)
    stranger: Any = ray.remote(playing.PlayingActor).options(
        name=name, namespace=ray_cluster.NAMESPACE, lifetime="detached", max_concurrency=4, num_cpus=0
    ).remote(None, "text", flavour)  # fmt: skip
    ray.get(stranger.start.remote(made, LEASE_S))
    launcher.tidy()

    def adopted() -> bool:
        launcher.fill_pools()
        return launcher.running() == {made.key: name}

    until(adopted, timeout_s=60)


def test_shards_and_groups_of_attempts_that_no_worker_holds_are_removed_and_no_others(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None],
    until: Until,
) -> None:  # fmt: skip
    launcher = make_launcher(replace(flavour, resources={}))
    come_to(launcher, 1)
    held, gone = attempt(), attempt()
    launcher.start("torch", held, LEASE_S)
    elsewhere = f"{flavour.cluster}-b"
    owners = [(flavour.cluster, held.key), (flavour.cluster, gone.key), (elsewhere, gone.key)]
    shards = [ray_cluster.shard_name(*owner) for owner in owners]
    for name in shards:
        options: dict[str, Any] = {"name": name, "namespace": ray_cluster.NAMESPACE, "lifetime": "detached"}
        actor: Any = ray.remote(playing.PlayingActor).options(num_cpus=0, **options).remote(None, "text", flavour)
        ray.get(actor.held.remote())
    for owner in owners:
        placement_group([{"CPU": 0.01}], name=ray_cluster.group_name(*owner), lifetime="detached").wait(10)
    launcher.tidy()
    until(lambda: set(ray_cluster.names()) & set(shards) == {shards[0], shards[2]})
    until(lambda: groups(flavour.cluster) == {held.key})
    assert groups(elsewhere) == {gone.key}
    ray_cluster.kill_all([shards[0], shards[2]])
    ray_cluster.remove_groups([ray_cluster.group_name(*owner) for owner in owners])


def test_free_workers_make_way_for_the_shards_of_a_job_and_come_back_after_it(
    add_node: AddNode, make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt],
    come_to: Callable[..., None], until: Until,
) -> None:  # fmt: skip
    add_node(resources={"place": 3.0})
    launcher = make_launcher(flavour, slots=3)
    come_to(launcher, 3)
    made = attempt(workers=3)
    launcher.start("torch", made, LEASE_S)
    group = placement_group([flavour.bundle] * 2, name=ray_cluster.group_name(flavour.cluster, made.key))
    assert group.wait(30)
    launcher.tidy()
    launcher.fill_pools()
    assert (launcher.free("torch"), launcher.slots(), len(launcher._starting)) == (0, 3, 0)
    assert make_launcher(flavour, slots=3).slots() == 3
    launcher.kill(made.key)
    come_to(launcher, 3)


# The agent, with its database


class Rows:
    """Jobs in the database and the leader that admits them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def lead(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET not_before = NULL WHERE state = 'queued'"))
        with system_session(self._engine) as session:
            term = leadership.elect(session, "scheduler", uuid.UUID(int=7), lease_s=60)
        assert term is not None
        scheduler.maintenance_pass(self._engine, uuid.UUID(int=7), term)
        scheduler.admission_pass(self._engine, uuid.UUID(int=7), term)

    def states(self, jobs: list[uuid.UUID]) -> list[str]:
        with system_session(self._engine) as session:
            found = {job.id: job.state for job in session.scalars(select(Job))}
        return [found[job] for job in jobs]

    def outcomes(self, job: uuid.UUID) -> list[str | None]:
        with system_session(self._engine) as session:
            statement = select(AttemptRow.outcome).where(AttemptRow.job_id == job).order_by(AttemptRow.fence)
            return list(session.scalars(statement))

    def died_on(self, job: uuid.UUID) -> set[str | None]:
        with system_session(self._engine) as session:
            return set(session.scalars(select(AttemptRow.died_on).where(AttemptRow.job_id == job)))

    def infra_failures(self, job: uuid.UUID) -> int:
        with system_session(self._engine) as session:
            return session.scalars(select(Job.infra_failures).where(Job.id == job)).one()


@pytest.fixture
def rows(system_engine: Engine) -> Rows:
    return Rows(system_engine)


@pytest.fixture
def on_two_nodes(
    add_node: AddNode, make_launcher: MakeLauncher, flavour: Flavour, database: Urls, system_engine: Engine,
    tmp_path: Path,
) -> tuple[Agent, RayLauncher, dict[str, Node]]:  # fmt: skip
    """An agent with a worker on each of two nodes."""
    nodes = {node.node_id: node for node in (add_node(resources=PLACE), add_node(resources=PLACE))}
    launcher = make_launcher(flavour, slots=2)
    settings = Settings(
        database_url=database.system,
        store_url=(tmp_path / "store").as_uri(),
        secret_key=SecretStr("not needed"),
        cache_dir=tmp_path / "cache",
        cluster=flavour.cluster,
    )
    return Agent(settings, system_engine, launcher), launcher, nodes


@pytest.fixture
def two_jobs(
    on_two_nodes: tuple[Agent, RayLauncher, dict[str, Node]], flavour: Flavour, tmp_path: Path, rows: Rows,
    make_job: Callable[..., uuid.UUID], caller: Caller, until: Until,
) -> tuple[Agent, RayLauncher, dict[uuid.UUID, Node]]:  # fmt: skip
    """An agent, and a job that runs on each of two nodes."""
    agent, launcher, nodes = on_two_nodes
    spec = {"do": "go on", "end": str(tmp_path / "end")}
    jobs = [make_job(caller, spec=spec, cluster=flavour.cluster, expert=f"e{n}") for n in range(2)]

    def run() -> bool:
        agent.round()
        rows.lead()
        return rows.states(jobs) == ["running", "running"]

    until(run, timeout_s=90)
    return agent, launcher, {key.job_id: nodes[node_of(launcher, key)] for key in launcher.running()}


def finish(
    agent: Agent, rows: Rows, jobs: list[uuid.UUID], end: Path, until: Until, *, when: Callable[[], bool]
) -> None:
    """Go round until ``when``, let the jobs end, and go on until they have."""

    def reached() -> bool:
        agent._reconciled_at = float("-inf")
        agent.round()
        rows.lead()
        return when()

    until(reached, timeout_s=90)
    end.touch()
    when = lambda: rows.states(jobs) == ["succeeded"] * len(jobs)  # noqa: E731
    until(reached, timeout_s=90)


def test_a_job_whose_node_dies_is_queued_again_and_finishes_elsewhere(
    two_jobs: tuple[Agent, RayLauncher, dict[uuid.UUID, Node]], rows: Rows, tmp_path: Path, until: Until
) -> None:
    agent, _, nodes = two_jobs
    hit, spared = nodes
    kill_node(nodes[hit])
    finish(agent, rows, [hit, spared], tmp_path / "end", until, when=lambda: rows.outcomes(hit) == ["lost"])
    assert (rows.outcomes(hit), rows.outcomes(spared)) == (["lost", "succeeded"], ["succeeded"])


def test_a_job_on_a_node_that_drains_leaves_it_without_paying_and_finishes_elsewhere(
    ray_head: str,
    two_jobs: tuple[Agent, RayLauncher, dict[uuid.UUID, Node]], rows: Rows, tmp_path: Path, until: Until,
) -> None:  # fmt: skip
    agent, launcher, nodes = two_jobs
    hit, spared = nodes
    drain(ray_head, nodes[hit].node_id)
    finish(agent, rows, [hit, spared], tmp_path / "end", until, when=lambda: rows.outcomes(hit)[0] == "preempted")
    assert (rows.outcomes(hit), rows.outcomes(spared)) == (["preempted", "succeeded"], ["succeeded"])
    assert rows.infra_failures(hit) == 0
    assert nodes[hit].node_id not in {worker.node for worker in launcher._usable("torch").values()}


def test_a_job_that_brings_down_its_worker_on_two_nodes_is_not_tried_again(
    on_two_nodes: tuple[Agent, RayLauncher, dict[str, Node]], flavour: Flavour, tmp_path: Path, rows: Rows,
    make_job: Callable[..., uuid.UUID], caller: Caller, until: Until, come_to: Callable[..., None],
) -> None:  # fmt: skip
    agent, launcher, nodes = on_two_nodes
    come_to(launcher, 2)
    (tmp_path / "end").touch()
    job = make_job(caller, spec={"do": "die", "end": str(tmp_path / "end")}, cluster=flavour.cluster)

    def ended() -> bool:
        agent.round()
        rows.lead()
        return rows.states([job]) == ["failed"]

    until(ended, timeout_s=90)
    assert rows.outcomes(job)[-2:] == ["lost", "failed_user"]
    assert rows.died_on(job) == nodes.keys()
