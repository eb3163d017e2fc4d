"""Seconds from a job's start to 80 % of validation rows right: our default recipe against the authors'.

Both begin with a loaded base and its factors, on the same rows, and pay for rollouts, rewards, updates and every
evaluation on their schedule: ours scores its sample of the validation rows every few steps, after a preflight; the
authors' answers all of train, validation and test every 10 steps (see ``reference``). A side that has not got there in
``--patience`` times our seconds is stopped, and its ratio is then a lower bound.
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
from reference import BATCH_SIZE, EVALUATION_INTERVAL, ReferenceTrainer
from rich.console import Console
from rich.table import Table

from zhub.demo.task_families import sample_rows
from zhub.manifest import canonical_json
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import render_prompt
from zhub_workers.training.splits import split_dataset

FAMILY = "sorting"
ROWS = 1500
TARGET = 0.8
BAR = 4.0
MAX_NEW_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=6.0)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    console = Console()
    table = Table(title=f"Seconds to {TARGET:.0%} of validation rows right: {FAMILY}, shipped base")
    for column in ("seed", "ours, s", "reference, s", "its best", "ratio"):
        table.add_column(column, justify="right")
    runs = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "rows.jsonl"
        path.write_bytes(b"\n".join(canonical_json(row) for row in sample_rows(FAMILY, ROWS, seed=1)))
        adapted = shipped.load(directory / "basis")
        for seed in range(1, arguments.seeds + 1):
            ours = our_seconds(adapted, path, seed)
            theirs, best = reference_seconds(adapted, path, seed, patience_s=arguments.patience * ours)
            reached = best >= TARGET
            runs.append(
                {"seed": seed, "ours_s": ours, "reference_s": theirs, "reference_best": best, "reached": reached}
            )
            mark = "" if reached else "> "
            table.add_row(str(seed), f"{ours:.1f}", f"{mark}{theirs:.1f}", f"{best:.0%}", f"{mark}{theirs / ours:.1f}×")
            console.print(f"seed {seed}: {ours:.1f} s, reference {mark}{theirs:.1f} s")
    console.print(table)
    ratio = statistics.median(run["reference_s"] / run["ours_s"] for run in runs)
    console.print(f"median ratio {ratio:.1f}×, bar {BAR}×: {'met' if ratio >= BAR else 'MISSED'}")
    written = {
        "name": "time_to_expert",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "results": {"runs": runs, "stopped_after_times_ours": arguments.patience},
        "bars": {"reference's seconds over ours": {"value": ratio, "bar": BAR, "better": "higher"}},
    }
    (Path(__file__).parent / "results" / "time_to_expert.json").write_text(json.dumps(written, indent=2) + "\n")


class Reached(Exception):
    """The target was reached: training need not go on."""


def our_seconds(adapted: AdaptedModel, path: Path, seed: int) -> float:
    """Seconds of the default recipe until a score reaches the target.

    Raises:
        SystemExit: it never does.
    """
    asked = {"max_new_tokens": MAX_NEW_TOKENS}
    spec = shipped.spec_of(asked, rows=ROWS, seed=seed)

    def on_event(_level: str, _message: str, data: dict[str, Any] | None) -> None:
        if data is not None and data.get("valid_reward_mean", 0.0) >= TARGET:
            raise Reached

    started = time.perf_counter()
    try:
        with ComputeGroup().join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
            shipped.run(spec, member, path, on_event=on_event)
    except Reached:
        return time.perf_counter() - started
    raise SystemExit(f"our recipe did not reach {TARGET:.0%} with seed {seed}")


def reference_seconds(adapted: AdaptedModel, path: Path, seed: int, *, patience_s: float) -> tuple[float, float]:
    """Seconds of the authors' recipe until the target or ``patience_s``, and its best share of validation rows."""
    base = adapted.base
    # Made before the clock starts, as our basis was.
    trainer = ReferenceTrainer(base, kl_coef=0.0, seed=seed)
    started = time.perf_counter()
    splits = {
        name: [(render_prompt(base, row.prompt), row.item["answer"]) for row in rows]
        for name, rows in split_dataset(path, None).items()
    }
    generator = torch.Generator().manual_seed(seed)
    best, step = 0.0, 0
    try:
        while best < TARGET and time.perf_counter() - started < patience_s:
            chosen = torch.randperm(len(splits["train"]), generator=generator)[:BATCH_SIZE].tolist()
            batch = [splits["train"][index] for index in chosen]
            prompts = [prompt for prompt, _ in batch]
            answers = trainer.rollout(prompts, max_new_tokens=MAX_NEW_TOKENS)
            rewards = [1.0 if a.text == wanted else -1.0 for a, (_, wanted) in zip(answers, batch, strict=True)]
            trainer.step(prompts, [answer.token_ids for answer in answers], rewards)
            step += 1
            if step % EVALUATION_INTERVAL == 0:
                right = {}
                for name, rows in splits.items():
                    answers = trainer.rollout([prompt for prompt, _ in rows], max_new_tokens=MAX_NEW_TOKENS)
                    right[name] = sum(a.text == w for a, (_, w) in zip(answers, rows, strict=True)) / len(rows)
                best = max(best, right["validation"])
    finally:
        trainer.restore()
    return time.perf_counter() - started, best


if __name__ == "__main__":
    main()
