import math

import pytest

from zhub_workers.cluster.gpu_shares import gpu_shares


@pytest.mark.parametrize("gpus", range(1, 9))
@pytest.mark.parametrize("slots", range(1, 12))
def test_workers_and_the_replica_fit_the_gpus_one_by_one(gpus: int, slots: int) -> None:
    """Packs the shares onto the GPUs as Ray does, whole or in parts of one, and finds a place for each."""
    worker, replica = gpu_shares(gpus, slots)
    free = [1.0] * gpus
    for share in [*[worker] * slots, replica]:
        assert 0 < share <= 1
        place = next((i for i, left in enumerate(free) if left >= share - 1e-9), None)
        assert place is not None, f"{share} does not fit {free}"
        free[place] -= share


def test_serving_has_its_own_gpu_where_there_are_enough() -> None:
    assert gpu_shares(4, 3) == (1, 1)


def test_a_cluster_without_gpus_asks_for_none() -> None:
    assert gpu_shares(0, 2) == (0, 0)


@pytest.mark.parametrize(("worker", "replica"), [(1.0, 1.0), (0.5, 0.25), (0.0, 0.0)])
def test_a_share_that_is_given_holds_whatever_the_cluster_has_now(worker: float, replica: float) -> None:
    assert gpu_shares(0, 8, worker) == gpu_shares(64, 8, worker) == (worker, replica)


def test_shares_are_numbers_that_ray_can_add_up() -> None:
    assert all(math.isclose(share * 100, round(share * 100)) for share in gpu_shares(1, 3))
