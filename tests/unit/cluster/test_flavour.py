"""What settings make of an agent's workers, and the names by which agents of one Ray tell theirs from others'."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from zhub.process.config import Settings
from zhub_workers.attempts.attempt import AttemptKey
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour, flavour_of
from zhub_workers.cluster.gpu_shares import GpuShares

KEY = AttemptKey(uuid.UUID(int=7), 3)
clusters = st.from_regex("[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings as an agent reads them from its environment."""
    monkeypatch.setenv("ZHUB_DATABASE_URL", "postgresql://")
    monkeypatch.setenv("ZHUB_STORE_URL", "file:///")

    def read(**environment: str) -> Settings:
        for name, value in environment.items():
            monkeypatch.setenv(f"ZHUB_{name}", value)
        return Settings()  # type: ignore[call-arg]

    return read


def test_without_settings_a_worker_reserves_nothing_but_its_share_of_gpus(settings: Callable[..., Settings]) -> None:
    assert flavour_of(settings(), GpuShares(0, 0)).bundle == {}
    assert flavour_of(settings(), GpuShares(0.5, 0.25)).bundle == {"GPU": 0.5}


def test_an_environment_describes_workers(settings: Callable[..., Settings]) -> None:
    read = settings(
        CLUSTER="h100",
        WORKER_CPUS="2",
        WORKER_GPUS="1",
        WORKER_MEMORY_GIB="16",
        WORKER_RESOURCES='{"fast-disk": 0.5}',
        WORKER_LABELS='{"ray.io/accelerator-type": "H100"}',
    )
    flavour = flavour_of(read, GpuShares(1, 1))
    assert (flavour.cluster, flavour.labels) == ("h100", {"ray.io/accelerator-type": "H100"})
    assert flavour.bundle == {"CPU": 2, "GPU": 1, "memory": 16 * 2**30, "fast-disk": 0.5}
    assert str(flavour) == "2 CPU, 1 GPU, 0.5 fast-disk, 16 GiB of memory, on a node with ray.io/accelerator-type=H100"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORKER_LABELS": '{"kind": "fast"}'}, "needs ZHUB_WORKER_GPUS"),
        ({"WORKER_GPUS": "2"}, "less than or equal to 1"),
        ({"WORKER_RESOURCES": '{"disk": 0}'}, "greater than 0"),
        ({"CLUSTER": "H100"}, "should match pattern"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    settings: Callable[..., Settings], environment: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**environment)


def test_a_worker_that_asks_for_nothing_says_so() -> None:
    assert str(Flavour()) == "nothing"


@given(clusters, clusters)
def test_a_name_belongs_to_its_cluster_and_no_other(own: str, other: str) -> None:
    worker, shard = ray_cluster.worker_name("torch", own), ray_cluster.shard_name(own, KEY)
    assert (ray_cluster.pool_of(worker, own), ray_cluster.attempt_of_shard(shard, own)) == ("torch", KEY)
    assert (ray_cluster.pool_of(shard, own), ray_cluster.attempt_of_shard(worker, own)) == (None, None)
    if other != own:
        assert ray_cluster.pool_of(worker, other) is None and ray_cluster.attempt_of_shard(shard, other) is None
