"""Launchers under cluster names of their own, and agents with workers on several Ray nodes of this machine."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import PLACE

from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.attempts.attempt import Attempt, AttemptKey
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour

Until = Callable[..., Any]
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
            launcher.clean_up()
            launcher.restore_pool_sizes()
            return launcher.free("torch") == free

        until(reached, timeout_s=60)

    return wait
