"""What SVF and LoRA make of every task family of the shipped base, by reinforcement and by supervision.

Four subjects a family: each adapter with each recipe, everything else the same. Each is tuned alike: the learning rate
is the one of four whose best validation reward is highest in a run with a seed that is not used again. What
``--seeds`` runs with that rate make of test prompts, which no training saw, is compared in pairs. An interval comes
from a bootstrap over test prompts of the mean over seeds; a difference is a lead where its interval leaves zero out.

Writes ``results/experts.json`` and ``docs/results.md``.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shipped
import torch
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from zhub.datasets.rows import unique_rows
from zhub.demo.task_families import FAMILIES, sample_rows
from zhub.evaluation.statistics import accuracy, bootstrap_interval, paired_bootstrap
from zhub.graders import Grader
from zhub.manifest import canonical_json
from zhub.recipes import Recipe
from zhub_workers.compute.group import ComputeGroup, Member
from zhub_workers.evaluation.grading import Grading, encode_rows, greedy_answers
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import SvfAdapter, Values, make_adapter

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
RESULTS = Path(__file__).parent / "results" / "experts.json"
ROWS = 1500
TEST_ROWS = 500
MAX_NEW_TOKENS = 16
TUNING_SEED = 0
RATES = {"svf": (0.006, 0.02, 0.06, 0.2), "lora": (0.0002, 0.0006, 0.002, 0.006)}
SUBJECTS: tuple[tuple[str, Recipe], ...] = (
    ("svf", "reinforcement"),
    ("svf", "supervised"),
    ("lora", "supervised"),
    ("lora", "reinforcement"),
)
RIVALS = ("LoRA-SFT", "LoRA-RL")
NAMES = {"svf": "SVF", "lora": "LoRA", "reinforcement": "RL", "supervised": "SFT"}
# Level or ahead on four of five families, at less than a tenth of the parameters.
FAMILIES_BAR, PARAMETERS_BAR = 0.8, 0.1


@dataclass(frozen=True)
class Run:
    """One expert. ``validation`` is the reward that chose its best step, ``rewards`` those on the test rows."""

    validation: float
    rewards: list[float]
    seconds: float
    parameters: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = f"{platform.machine()}, {arguments.threads} of {os.cpu_count()} cores, torch {torch.__version__}"
    console = Console()
    families = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        adapted = shipped.load(directory / "basis")
        for family in arguments.families:
            families[family] = measure(adapted, family, directory, seeds=arguments.seeds, console=console)
            console.print(table_of(family, families[family]))
    bars = bars_of(families)
    for what, bar in bars.items():
        console.print(f"{what}: {bar['value']:.3f} (bar {bar['bar']})")
    written = {
        "name": "experts",
        "machine": machine,
        "results": {"seeds": arguments.seeds, "families": families},
        "bars": bars,
    }
    RESULTS.write_text(json.dumps(written, indent=2) + "\n")
    PAGE.write_text(page(machine, arguments.seeds, families))


def measure(adapted: AdaptedModel, family: str, directory: Path, *, seeds: int, console: Console) -> dict[str, Any]:
    """Every subject on one family: what ``table_of`` and the page show."""
    path = directory / f"{family}.jsonl"
    path.write_bytes(b"\n".join(map(canonical_json, with_answers(sample_rows(family, ROWS, seed=1)))))
    tested = directory / f"{family}-test.jsonl"
    tested.write_bytes(b"\n".join(map(canonical_json, sample_rows(family, TEST_ROWS, seed=2, split="test"))))
    runs: dict[str, list[Run]] = {}
    rates = {}
    for kind, recipe in SUBJECTS:
        subject = f"{NAMES[kind]}-{NAMES[recipe]}"
        tuning = {rate: run(adapted, path, tested, kind, recipe, rate, TUNING_SEED) for rate in RATES[kind]}
        rates[subject] = max(tuning, key=lambda rate: tuning[rate].validation)
        runs[subject] = [run(adapted, path, tested, kind, recipe, rates[subject], seed) for seed in range(1, seeds + 1)]
        mean = statistics.fmean(mean_over_seeds(runs[subject]))
        console.print(f"{family}: {subject} {mean:.1%} at rate {rates[subject]:g}")
    base = accuracy(base_rewards(adapted, tested))
    ours = mean_over_seeds(runs["SVF-RL"])
    subjects = {}
    for subject, ran in runs.items():
        rewards = mean_over_seeds(ran)
        low, high = bootstrap_interval(rewards)
        lead = paired_bootstrap(rewards, ours)
        subjects[subject] = {
            "accuracy": statistics.fmean(rewards),
            "low": low,
            "high": high,
            "by_seed": [statistics.fmean(one.rewards) for one in ran],
            "learning_rate": rates[subject],
            "parameters": ran[0].parameters,
            "seconds": statistics.median(one.seconds for one in ran),
            "lead_of_svf_rl": [statistics.fmean(ours) - statistics.fmean(rewards), *lead],
        }
    return {"base": base.model_dump(), "subjects": subjects}


def with_answers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their answer as the assistant's last message too: reinforcement leaves it out of the prompt."""
    return [{**row, "messages": [*row["messages"], {"role": "assistant", "content": row["answer"]}]} for row in rows]


def run(adapted: AdaptedModel, path: Path, tested: Path, kind: str, recipe: Recipe, rate: float, seed: int) -> Run:
    """Train one expert with the defaults of its recipe, and answer the test rows with it."""
    asked = {
        "adapter": kind,
        "learning_rate": rate,
        "step_kl": 0.0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "general_questions": 0,
    }
    spec = shipped.spec_of(asked, rows=ROWS, seed=seed, recipe=recipe)
    adapter = make_adapter(adapted, spec.hyperparameters)
    with ComputeGroup().join(adapter, lambda: False) as member:
        started = time.perf_counter()
        result = shipped.run(spec, member, path)
        seconds = time.perf_counter() - started
        assert result.validation is not None  # nobody stops it
        rewards = rewards_of(member, adapter.imported(result.artifact), tested)
    parameters = sum(tensor.numel() for tensor in result.artifact.values())
    return Run(result.validation.expert.mean, rewards, seconds, parameters)


def rewards_of(member: Member, values: Values | None, tested: Path) -> list[float]:
    """The reward of the greedy answer to each test row."""
    with tested.open("rb") as file:
        rows = encode_rows(member.base, unique_rows(file), with_target=False, should_stop=lambda: False)
    grading = Grading(TypeAdapter[Any](Grader).validate_python(shipped.GRADER))
    answers = greedy_answers(member, values, rows, max_new_tokens=MAX_NEW_TOKENS)
    return [grade.reward for grade in grading(answers, rows)]


def base_rewards(adapted: AdaptedModel, tested: Path) -> list[float]:
    adapter = SvfAdapter(adapted, list(adapted.layers), sigmoid=False)
    with ComputeGroup().join(adapter, lambda: False) as member:
        return rewards_of(member, None, tested)


def mean_over_seeds(runs: Sequence[Run]) -> list[float]:
    """The mean reward of each test row."""
    return [statistics.fmean(rewards) for rewards in zip(*(one.rewards for one in runs), strict=True)]


def bars_of(families: Mapping[str, Any]) -> dict[str, Any]:
    subjects = [family["subjects"] for family in families.values()]
    level = statistics.fmean(not behind(of) for of in subjects)
    parameters = max(of["SVF-RL"]["parameters"] / min(of[rival]["parameters"] for rival in RIVALS) for of in subjects)
    return {
        "share of families where SVF-RL leads or is level with the best LoRA": {
            "value": level,
            "bar": FAMILIES_BAR,
            "better": "higher",
        },
        "SVF's parameters over LoRA's": {"value": parameters, "bar": PARAMETERS_BAR, "better": "lower"},
    }


def best_rival(subjects: Mapping[str, Any]) -> str:
    return max(RIVALS, key=lambda rival: subjects[rival]["accuracy"])


def behind(subjects: Mapping[str, Any]) -> bool:
    """Whether the best LoRA is ahead of SVF-RL by more than chance."""
    return bool(subjects[best_rival(subjects)]["lead_of_svf_rl"][2] < 0)


def verdict(subjects: Mapping[str, Any]) -> str:
    lead, low, high = subjects[best_rival(subjects)]["lead_of_svf_rl"]
    word = "behind" if high < 0 else "ahead" if low > 0 else "level"
    return f"{word} ({100 * lead:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f})"


def table_of(family: str, measured: Mapping[str, Any]) -> Table:
    table = Table(title=f"{family}: SVF-RL is {verdict(measured['subjects'])} with the best LoRA")
    for column in ("subject", "accuracy", "95 %", "rate", "parameters", "s"):
        table.add_column(column, justify="right")
    for cells in lines(measured):
        table.add_row(*cells)
    return table


def lines(measured: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Subject, accuracy, interval, learning rate, parameters and seconds, in words."""
    base = measured["base"]
    found: list[tuple[str, ...]] = [("base", f"{base['mean']:.1%}", interval(base), "", "", "")]
    for subject, of in measured["subjects"].items():
        numbers = (f"{of['learning_rate']:g}", f"{of['parameters']:,}", f"{of['seconds']:.1f}")
        found.append((subject, f"{of['accuracy']:.1%}", interval(of), *numbers))
    return found


def interval(of: Mapping[str, float]) -> str:
    return f"{100 * of['low']:.1f}–{100 * of['high']:.1f}"


def page(machine: str, seeds: int, families: Mapping[str, Any]) -> str:
    """The published page, in Markdown."""
    sections = [
        f"""# Results

What experts of the shipped base are worth, by family of task and by how they were trained. `benchmarks/experts.py`
writes this page; the figures behind it are in `benchmarks/results/experts.json`.

- Accuracy is the share of {TEST_ROWS} test prompts with exactly the right greedy answer, the mean of {seeds} seeds.
  No training saw these prompts, and nothing was chosen by them.
- SVF trains one multiplier for each singular value, LoRA matrices of rank 16; both in all linear layers. RL gets a
  reward of 1 or 0 for each of its own answers (GRPO), SFT the right answers.
- Everything else is zhub's default for the recipe, except the learning rate: the best of four by validation reward
  with a seed of its own (SVF {", ".join(f"{rate:g}" for rate in RATES["svf"])}; LoRA
  {", ".join(f"{rate:g}" for rate in RATES["lora"])}).
- Intervals are 95 %, by bootstrap over test prompts; the base's is Wilson's. SVF-RL is called ahead or behind where
  the interval of the paired difference leaves zero out, else level.
- Seconds are the median of a whole training with its evaluations, on {machine}.
"""
    ]
    summary = ["| Family | Base | SVF-RL | Best LoRA | | SVF-RL against it |", "|---|---:|---:|---:|---|---|"]
    for family, measured in families.items():
        subjects = measured["subjects"]
        best = best_rival(subjects)
        shares = (measured["base"]["mean"], subjects["SVF-RL"]["accuracy"], subjects[best]["accuracy"])
        summary.append(f"| {family} | {' | '.join(f'{s:.1%}' for s in shares)} | {best} | {verdict(subjects)} |")
    sections.append("\n".join(summary) + "\n")
    for family, measured in families.items():
        head = ["| | Accuracy | 95 % | Learning rate | Parameters | Seconds |", "|---|---:|---:|---:|---:|---:|"]
        body = [f"| {' | '.join(cells)} |" for cells in lines(measured)]
        sections.append(f"## {family}\n\n{FAMILIES[family].description}\n\n" + "\n".join(head + body) + "\n")
    return "\n".join(sections)


if __name__ == "__main__":
    main()
