"""What experts of the leading singular directions learn, and what finding only these costs: by rank, over all of them.

Learning: the shipped base (matrices of 128 directions) on three task families, with zhub's defaults and the same seeds
at each rank, measured on test prompts that no training saw. Cost: the processor time of a decomposition to a rank over
that of a whole one, on square matrices of the size of Llama-3-8B's (4,096) whose singular values fall as ``1 / i``.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import shipped
import torch
from rich.console import Console
from rich.table import Table

from zhub.demo.task_families import FAMILIES, sample_rows
from zhub.manifest import canonical_json
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import carried_shares, decompose_base, load_basis
from zhub_workers.model.svf import decompose

LEARNT = ("sorting", "choice", "counting")
RANKS = (8, 16, 32, 64)
STEPS, ROWS = 40, 1000
SIDE, SIDE_RANKS = 4096, (64, 512)
GAIN_BAR = 0.8  # of the whole basis's gain, with half of the directions
TIME_BAR = 0.5  # of the whole decomposition's processor time, at an eighth of the directions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(LEARNT))
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        learnt = {
            rank: of_rank(rank, arguments.families, arguments.seeds, Path(scratch), console) for rank in (None, *RANKS)
        }
    costs = {rank: spent(arguments.side, rank) for rank in (None, *SIDE_RANKS)}
    gains = {rank: statistics.fmean(of["gain"].values()) for rank, of in learnt.items()}
    show(learnt, gains, costs, arguments.side, console)
    half, eighth = gains[64] / gains[None], costs[512] / costs[None]
    result = {
        "name": "leading_directions",
        "machine": f"{platform.machine()}, {arguments.threads} of {os.cpu_count()} cores, torch {torch.__version__}",
        "results": {
            "learnt": {str(rank or "all"): of for rank, of in learnt.items()},
            "side": arguments.side,
            "processor seconds": {str(rank or "all"): seconds for rank, seconds in costs.items()},
        },
        "bars": {
            "gain with 64 of 128 directions over that with all": {"value": half, "bar": GAIN_BAR, "better": "higher"},
            "processor time of an eighth of the directions over that of all": {
                "value": eighth,
                "bar": TIME_BAR,
                "better": "lower",
            },
        },
    }
    (Path(__file__).parent / "results" / "leading_directions.json").write_text(json.dumps(result, indent=1) + "\n")


def of_rank(rank: int | None, families: list[str], seeds: int, scratch: Path, console: Console) -> dict[str, Any]:
    """Gains in test accuracy by family, the mean over seeds, and what the directions carry of the weights."""
    base, directory = load_base_model(shipped.DIRECTORY), scratch / f"basis-{rank}"
    adapted = AdaptedModel(base, load_basis(directory, decompose_base(base, directory, rank=rank)))
    gain = {
        family: statistics.fmean(trained(adapted, family, seed, scratch) for seed in range(1, seeds + 1))
        for family in families
    }
    console.print(f"rank {rank or 'all'}: {', '.join(f'{name} {value:+.3f}' for name, value in gain.items())}")
    return {
        "gain": gain,
        "parameters": adapted.basis.parameters,
        "least carried": min(carried_shares(directory), default=1.0),
    }


def trained(adapted: AdaptedModel, family: str, seed: int, scratch: Path) -> float:
    path = scratch / f"{family}-{seed}.jsonl"
    path.write_bytes(b"\n".join(canonical_json(row) for row in sample_rows(family, ROWS, seed=seed)))
    spec = shipped.spec_of({"n_steps": STEPS, "general_questions": 0}, rows=ROWS, seed=seed)
    with ComputeGroup().join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
        test = shipped.run(spec, member, path).test
    assert test is not None
    return test.expert.mean - test.base.mean


def spent(side: int, rank: int | None) -> float:
    """Processor seconds of one decomposition."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(side, side, generator=generator))[0] for _ in range(2))
    weight = (u / torch.arange(1, side + 1)) @ v.T
    began = time.process_time()
    decompose(weight, rank)
    return time.process_time() - began


def show(
    learnt: dict[int | None, Any],
    gains: dict[int | None, float],
    costs: dict[int | None, float],
    side: int,
    console: Console,
) -> None:
    table = Table("directions", "multipliers", "carried, at least", "gain", "of the whole's", title="The shipped base")
    for rank, of in learnt.items():
        share = f"{gains[rank] / gains[None]:.2f}"
        table.add_row(
            str(rank or "all"), f"{of['parameters']:,}", f"{of['least carried']:.1%}", f"{gains[rank]:+.3f}", share
        )
    console.print(table)
    table = Table("directions", "processor seconds", "of the whole's", title=f"A matrix of {side:,} x {side:,}")
    for rank, seconds in costs.items():
        table.add_row(str(rank or "all"), f"{seconds:.1f}", f"{seconds / costs[None]:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
