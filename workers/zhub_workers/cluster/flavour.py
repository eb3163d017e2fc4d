"""The flavour of a cluster's workers: the resources that Ray reserves for each worker, and the nodes it may be on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zhub.process.config import Settings
from zhub_workers.cluster.gpu_shares import GpuShares

GIB = 2**30


@dataclass(frozen=True)
class Flavour:
    """The resources of each worker with torch that an agent keeps, and of each shard.

    ``cluster`` is the agent's cluster name. Several agents may share one Ray cluster; each sees only the workers of its
    own cluster name. Ray counts the reserved resources but enforces no limit. ``labels`` is a label selector of Ray.
    """

    cluster: str = "default"
    cpus: float = 0.0
    gpus: float = 0.0
    memory_gib: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def bundle(self) -> dict[str, float]:
        """The resources that a placement group reserves for one worker or shard; may be empty."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gib * GIB, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def options(self) -> dict[str, Any]:
        """The options of Ray's actor for a worker or shard."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "memory": self.memory_gib * GIB or None,
            "resources": dict(self.resources) or None,
        }

    def __str__(self) -> str:
        amounts = [f"{amount:g} {name}" for name, amount in self.bundle.items() if name != "memory"]
        amounts += [f"{self.memory_gib:g} GiB of memory"] if self.memory_gib else []
        requested = ", ".join(amounts) or "nothing"
        return requested + "".join(f", on a node with {name}={value}" for name, value in self.labels.items())


def flavour_of(settings: Settings, shares: GpuShares) -> Flavour:
    """The workers that an agent with these settings keeps."""
    return Flavour(
        cluster=settings.cluster,
        cpus=settings.worker_cpus,
        gpus=shares.worker,
        memory_gib=settings.worker_memory_gib,
        resources=settings.worker_resources,
        labels=settings.worker_labels,
    )
