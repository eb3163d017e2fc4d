"""What a base takes on disk and in memory, and the least machine for it.

Arithmetic only: `zhub_workers/compute/sizes.py` counts the tensors.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

Use = Literal["decompose", "train", "serve"]
USES: tuple[Use, ...] = ("decompose", "train", "serve")

# Nominal memory, in GB, as their makers state it.
GPUS = {"RTX 4090": 24, "L40S": 48, "A100 or H100": 80, "H200": 141, "B200": 180}
HOSTS = {f"{size} GB": size for size in (8, 16, 32, 64, 128, 256, 512, 1024, 2048)}
USABLE = 0.9  # of a machine's memory: the rest is the system's, the libraries' and what fragments leave
BATCH_SHARE = 2  # a batch takes half of the memory that is free, see zhub_workers/compute/batches.py


class Need(BaseModel):
    """Bytes that one use takes. ``device_bytes`` is the memory that computes: of a GPU, or of the host without one.

    ``loading_bytes`` is what the host takes beside a GPU, while the weights go through it.
    """

    model_config = ConfigDict(frozen=True)
    disk_bytes: int
    device_bytes: int
    loading_bytes: int


class ModelSizes(BaseModel):
    """A base in numbers, all from its ``config.json``.

    Attributes:
        parameters: of the model, tied ones once.
        matrices: those that experts adapt; ``adapted_parameters`` is how many numbers they have, ``multipliers`` how
            many an expert on all of them has.
        checkpoint_bytes: the files of the weights, in the type that the config names.
        basis_bytes: the files of U, s and V of all matrices.
        weights_bytes: the weights as they are loaded.
        factors_bytes: the square factors and singular values of all matrices, which stay beside the weights.
        merged_bytes: the weights of one expert, which a training holds beside the base's.
        decomposition_bytes: of the one matrix that takes most.
        row_tokens: of a prompt with its answer, which the next two are about.
        activations_bytes: what one row keeps for its backward.
        cache_bytes: the keys and values of one row.
    """

    model_config = ConfigDict(frozen=True)
    architecture: str
    parameters: int
    matrices: int
    adapted_parameters: int
    multipliers: int
    checkpoint_bytes: int
    basis_bytes: int
    weights_bytes: int
    factors_bytes: int
    merged_bytes: int
    decomposition_bytes: int
    row_tokens: int
    activations_bytes: int
    cache_bytes: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def needs(self) -> dict[Use, Need]:
        """The least of each use: with room for one row at a time. More memory makes it faster."""
        disk = self.checkpoint_bytes + self.basis_bytes
        resident = self.weights_bytes + self.factors_bytes
        row = max(self.activations_bytes, self.cache_bytes)
        return {
            "decompose": Need(
                disk_bytes=disk, device_bytes=self.decomposition_bytes, loading_bytes=self.decomposition_bytes
            ),
            "train": Need(
                disk_bytes=disk,
                device_bytes=resident + self.merged_bytes + BATCH_SHARE * row,
                loading_bytes=self.weights_bytes,
            ),
            "serve": Need(
                disk_bytes=disk,
                device_bytes=resident + BATCH_SHARE * self.cache_bytes,
                loading_bytes=self.weights_bytes,
            ),
        }


def least(machines: Mapping[str, int], size_bytes: int) -> str | None:
    """The first machine, smallest first, whose memory has room for so many bytes; None: none has."""
    return next((name for name, memory in machines.items() if size_bytes <= USABLE * memory * 1e9), None)
