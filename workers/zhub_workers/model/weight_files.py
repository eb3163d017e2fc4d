"""The safetensors files of a model by their headers alone: whole, unquantised, and how much memory they need.

What is found here is named by its file; the loader's own errors name neither file nor remedy.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from zhub.errors import UnsupportedModelError

INDEX_FILE = "model.safetensors.index.json"
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
LENGTH_BYTES = 8  # of the header, before it
MAX_HEADER_BYTES = 100_000_000  # as the format has it
# Of weights that are stored as small numbers times scales; what they mean is said by a configuration that is missing.
QUANTISED = ("I8", "U8", "I4", "U4", "F8_", "F4", "F6")
OF_WEIGHTS = ("weight", "proj")


def check_weight_files(directory: Path, name: str) -> int:
    """Check that the files are whole and their weights plain numbers; return how many numbers they hold.

    Raises:
        UnsupportedModelError: names the file, and what to do.
    """
    _check_shards(directory, name)
    numbers = 0
    for file in sorted(directory.glob("*.safetensors")):
        for tensor, description in _tensors(file, name):
            dtype, shape = description["dtype"], description["shape"]
            if dtype.startswith(QUANTISED) and len(shape) > 1 and any(part in tensor for part in OF_WEIGHTS):
                raise UnsupportedModelError(
                    f"{name}: {file.name} holds '{tensor}' as {dtype}, and config.json has no quantization_config that "
                    "says how it was quantised. Add the unquantised checkpoint: singular values of rounded weights are "
                    "not those of the model."
                )
            numbers += math.prod(shape)
    return numbers


def device_memory_bytes(device: torch.device) -> int:
    """All memory of a GPU, or what this machine has or its container may take; whatever is free of it now."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return total


def _check_shards(directory: Path, name: str) -> None:
    """All files that the index names are there."""
    index = directory / INDEX_FILE
    if not index.is_file():
        return
    try:
        files = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UnsupportedModelError(
            f"{name}: {INDEX_FILE} is not an index of weights: {exc}. Take it from the checkpoint again."
        ) from exc
    if missing := sorted(file for file in files if not (directory / str(file)).is_file()):
        raise UnsupportedModelError(
            f"{name}: {len(missing)} of the {len(files)} files of its weights are missing, first {missing[0]}. "
            f"Add the model again with all files that {INDEX_FILE} names."
        )


def _tensors(file: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and description of each tensor of a file that is as long as its header says."""
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        header = opened.read(header_bytes) if header_bytes <= min(size_bytes, MAX_HEADER_BYTES) else b""
    try:
        tensors: dict[str, Any] = {key: value for key, value in json.loads(header).items() if key != "__metadata__"}
        content_bytes = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        expected = LENGTH_BYTES + header_bytes + content_bytes
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UnsupportedModelError(
            f"{name}: {file.name} ({size_bytes:,} bytes) does not begin as a safetensors file. It is cut short or "
            "another format: download it again, and add the model again."
        ) from exc
    if size_bytes != expected:
        what = "is cut short" if size_bytes < expected else "is longer than its content"
        raise UnsupportedModelError(
            f"{name}: {file.name} {what}: it has {size_bytes:,} bytes, its header says {expected:,}. Download it "
            "again, and add the model again."
        )
    yield from tensors.items()
