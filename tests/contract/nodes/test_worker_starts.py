"""Workers that cannot start yet, or hang while they start."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import playing
import pytest
from ray._private.node import Node  # noqa: TID251

from zhub_workers.agent import ray_launcher
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.cluster.flavour import Flavour

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("playing_cluster")]

Until = Callable[..., Any]
AddNode = Callable[..., Node]
MakeLauncher = Callable[..., RayLauncher]


def test_a_worker_without_a_place_says_what_it_asks_for_does_not_count_and_starts_when_a_node_comes(
    add_node: AddNode, make_launcher: MakeLauncher, flavour: Flavour, come_to: Callable[..., None],
    until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_launcher, "START_TIMEOUT_S", 0.5)
    launcher = make_launcher(replace(flavour, resources={"gold": 1.0}, cpus=0.5, labels={"kind": "fast"}))
    before = launcher.slots()

    def complained() -> bool:
        launcher.restore_pool_sizes()
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
        launcher.restore_pool_sizes()
        return stuck not in launcher._starting

    until(replaced, timeout_s=60)
    monkeypatch.setattr(ray_launcher, "START_TIMEOUT_S", 300.0)
    come_to(launcher, 1)
