"""Nodes and workers that die or fall silent: which attempts are lost, and who replaces their workers."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray._private.node import Node  # noqa: TID251
from ray_nodes import LEASE_S, PLACE, is_lost, kill_node, node_of, pid_of

from zhub_workers.agent import ray_launcher
from zhub_workers.agent.launcher import WorkerSilentError
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.attempts.attempt import Attempt
from zhub_workers.cluster.flavour import Flavour

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("playing_cluster")]

Until = Callable[..., Any]
AddNode = Callable[..., Node]
MakeLauncher = Callable[..., RayLauncher]


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
    launcher.restore_pool_sizes()
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
        launcher.clean_up()
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
