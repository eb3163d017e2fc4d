"""How the GPUs of a cluster are divided between training and serving: a pure function."""

from typing import NamedTuple

SERVING_SHARE = 0.25  # of one GPU, if there are too few GPUs for serving to have its own


class GpuShares(NamedTuple):
    """GPUs of one training worker and of one serving replica, as Ray counts them: zero, a share, or one."""

    worker: float
    replica: float


def gpu_shares(gpus: float, slots: int, worker: float | None = None) -> GpuShares:
    """Divide ``gpus`` between ``slots`` training workers and one serving replica; ``worker`` sets a worker's share.

    Each gets a GPU of its own if there are enough. Otherwise serving takes a quarter of one GPU and the workers share
    the rest evenly. Ray hides all GPUs from an actor that requests none, so both must request a share. Ray only counts
    shares: they do not limit memory.
    """
    if worker is not None:
        return GpuShares(worker, 1 if worker == 1 else SERVING_SHARE if worker else 0)
    if gpus < 1:
        return GpuShares(0, 0)
    if gpus >= slots + 1:
        return GpuShares(1, 1)
    workers_to_a_gpu = -(-slots // int(gpus))
    return GpuShares(int(100 * (1 - SERVING_SHARE) / workers_to_a_gpu) / 100, SERVING_SHARE)
