"""Nodes that drain, pools that become smaller, and a head that does not answer."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray._private.node import Node  # noqa: TID251
from ray_nodes import LEASE_S, drain

from zhub_workers.agent import ray_launcher
from zhub_workers.agent.launcher import WorkerLostError
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.attempts.attempt import Attempt
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("playing_cluster")]

Until = Callable[..., Any]
AddNode = Callable[..., Node]
MakeLauncher = Callable[..., RayLauncher]


def test_a_head_that_does_not_answer_keeps_no_attempt_from_being_polled(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch, until: Until, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    launcher = make_launcher(replace(flavour, resources={}))
    come_to(launcher, 1)
    made = attempt()
    launcher.start("torch", made, LEASE_S)
    answer = threading.Event()
    monkeypatch.setattr(ray_launcher, "VIEW_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ray_cluster, "placement_group_table", lambda: answer.wait(60) and {})
    launcher.clean_up()
    assert "Ray's head does not answer" in caplog.text
    assert launcher.poll(made.key, 0, LEASE_S).state == "running"
    answer.set()

    def answers() -> bool:
        caplog.clear()
        launcher.clean_up()
        return not caplog.text

    until(answers)
    monkeypatch.delattr(ray_cluster, "placement_group_table")
    launcher.clean_up()
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
    launcher.clean_up()
    assert (launcher.leaving(), launcher.free("torch")) == ({made.key}, 0)
    assert launcher.poll(made.key, 0, LEASE_S).state == "running"
    with pytest.raises(WorkerLostError):
        launcher.start("torch", attempt(), LEASE_S)
    launcher.restore_pool_sizes()
    other = add_node(resources={"place": 2.0})
    come_to(launcher, 2)
    assert {worker.node for worker in launcher._usable("torch").values()} == {other.node_id}
