"""What confinement costs: runs of a trivial grader in the pool, each in a process of its own, per second.

Beside it, in the same run, a fresh ``python -I -S`` for each run of the same source, which confines nothing: the floor
of every sandbox that starts an interpreter. A cold run is from no process at all to the first reward, self-test
included. Rounds of both follow each other in turn, so that the ratio holds when the machine's speed drifts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from zhub.graders import GradingTools, PythonGrader, Sample, grade_all
from zhub.sandbox import Program, Sandbox

SOURCE = "def grade(sample, item):\n    return float(sample['output_text'] == item['answer'])\n"
GRADER = PythonGrader(type="python", name="trivial", source=SOURCE)
SAMPLE = Sample("4", {"answer": "4"})
FRESH = SOURCE + "print(grade({'output_text': '4'}, {'answer': '4'}))"
CORES = 2
RUNS_PER_S_BAR = 200
COLD_MS_BAR = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=300, help="runs of a round")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) > CORES:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    pooled, fresh, cold, single = [], [], [], []
    few = arguments.runs // 5
    with Sandbox(workers=CORES) as sandbox, ThreadPoolExecutor(CORES) as threads:
        tools = GradingTools(sandbox)
        grade_all(GRADER, [SAMPLE] * 20, tools)
        for _ in range(arguments.rounds):
            pooled.append(rate(arguments.runs, lambda: grade_all(GRADER, [SAMPLE] * arguments.runs, tools)))
            fresh.append(rate(few, lambda: list(threads.map(run_fresh, range(few)))))
            started = time.perf_counter()
            sandbox.run(Program(SOURCE))
            single.append(1000 * (time.perf_counter() - started))
            cold.append(cold_ms())
    ratio = statistics.median(one / other for one, other in zip(pooled, fresh, strict=True))
    results = {
        "pool_runs_per_s": round(statistics.median(pooled), 1),
        "fresh_interpreter_runs_per_s": round(statistics.median(fresh), 1),
        "pool_over_fresh_interpreter": round(ratio, 2),
        "warm_run_ms": round(statistics.median(single), 2),
        "cold_run_ms": round(statistics.median(cold), 1),
        "rounds": arguments.rounds,
    }
    bars = {
        "isolated runs per second in the pool on 2 cores": {
            "value": results["pool_runs_per_s"], "bar": RUNS_PER_S_BAR, "better": "higher",
        },
        "milliseconds of a cold run": {"value": results["cold_run_ms"], "bar": COLD_MS_BAR, "better": "lower"},
    }  # fmt: skip
    machine = f"{platform.machine()}, {CORES} cores, Linux {platform.release()}, Python {platform.python_version()}"
    report(results)
    written = {"name": "sandbox", "machine": machine, "results": results, "bars": bars}
    (Path(__file__).parent / "results" / "sandbox.json").write_text(json.dumps(written, indent=2) + "\n")


def rate(runs: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return runs / (time.perf_counter() - started)


def run_fresh(_number: int) -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", FRESH], check=True, capture_output=True)


def cold_ms() -> float:
    started = time.perf_counter()
    with Sandbox(workers=1) as sandbox:
        grade_all(GRADER, [SAMPLE], GradingTools(sandbox))
        return 1000 * (time.perf_counter() - started)


def report(results: dict[str, float]) -> None:
    table = Table("", "measured", "bar")
    table.add_row("runs/s in the pool", f"{results['pool_runs_per_s']:.0f}", f"≥ {RUNS_PER_S_BAR}")
    table.add_row("runs/s, a fresh python -I -S each, unconfined", f"{results['fresh_interpreter_runs_per_s']:.0f}", "")
    table.add_row("pool over fresh (median of ratios)", f"{results['pool_over_fresh_interpreter']:.1f}×", "")
    table.add_row("one warm run, ms", f"{results['warm_run_ms']:.1f}", "")
    table.add_row("one cold run with start and self-test, ms", f"{results['cold_run_ms']:.0f}", f"≤ {COLD_MS_BAR}")
    Console().print(table)


if __name__ == "__main__":
    main()
