"""Whether a worker has room for a base, told in numbers before anything large is fetched."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from zhub.errors import UnsupportedModelError
from zhub.registry.model_sizes import ModelSizes
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import ObjectStore

LARGER = "Add it with a cluster whose workers have more, or add a smaller model."


def check_disk(name: str, sizes: ModelSizes, cache_dir: Path, store: ObjectStore) -> None:
    """Refuse a base whose weights and basis the worker's disk has no room for.

    Raises:
        UnsupportedModelError: with the numbers.
    """
    copies = 2 if _is_on_disk_of(store, cache_dir) else 1
    needed, free = sizes.checkpoint_bytes + copies * sizes.basis_bytes, shutil.disk_usage(cache_dir).free
    if needed > free:
        raise UnsupportedModelError(
            f"{name} does not fit: its weights take {_gb(sizes.checkpoint_bytes)} of disk and its basis "
            f"{_gb(sizes.basis_bytes)}{', once more in the store on the same disk' if copies > 1 else ''}; the worker "
            f"has {_gb(free)} free in {cache_dir}. Free some, or add it with a cluster whose workers have more."
        )


def check_memory(name: str, sizes: ModelSizes, memory_bytes: int) -> str | None:
    """Refuse a base that cannot even answer in so much memory. Returns a warning where it cannot be trained in it.

    Raises:
        UnsupportedModelError: with the numbers.
    """
    parts = f"weights {_gb(sizes.weights_bytes)}, factors of its basis {_gb(sizes.factors_bytes)}"
    serve, train = sizes.needs["serve"].device_bytes, sizes.needs["train"].device_bytes
    if serve > memory_bytes:
        raise UnsupportedModelError(
            f"{name} does not fit: to answer takes at least {_gb(serve)} of memory ({parts}), and the worker has "
            f"{_gb(memory_bytes)}. {LARGER}"
        )
    if train > memory_bytes:
        return (
            f"To train {name} takes at least {_gb(train)} of memory ({parts}, an expert's weights "
            f"{_gb(sizes.merged_bytes)}, the rest a batch), and this worker has {_gb(memory_bytes)}. Train it on a "
            "cluster whose workers have more."
        )
    return None


def told_basis(sizes: ModelSizes) -> str:
    """For who waits for the decomposition: what it will make."""
    return (
        f"Experts can adapt {sizes.matrices:,} matrices, {sizes.adapted_parameters / sizes.parameters:.0%} of the "
        f"parameters. Their basis takes {_in_units(sizes.basis_bytes)} on disk and up to "
        f"{_in_units(sizes.factors_bytes)} of a worker's memory."
    )


def told_unreached(names: Sequence[str]) -> str:
    """What experts cannot adapt, and why."""
    return (
        "Experts leave these weights of mixture-of-experts layers as they are, because zhub does not know how this "
        f"architecture uses them: {', '.join(names)}."
    )


def _is_on_disk_of(store: ObjectStore, cache_dir: Path) -> bool:
    return isinstance(store, DirectoryStore) and store.root.stat().st_dev == cache_dir.stat().st_dev


def _gb(size_bytes: int) -> str:
    """In one unit, to be compared."""
    return f"{size_bytes / 1e9:,.2f} GB"


def _in_units(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"
