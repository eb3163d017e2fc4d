"""What confinement costs: a trivial grader in the pool, each run in a process of its own, beside ``python -I -c pass``.

The bare interpreter confines nothing and computes nothing: the floor of every sandbox that starts one. A cold run is
from no process at all to the first reward, self-test included. Rounds of both follow each other in turn, and the bars
are ratios of one round, so that they hold on any machine and while its speed drifts.
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
BARE = (sys.executable, "-I", "-c", "pass")
CORES = 2
RATE_BAR = 1.5  # to confine a run costs less than to start an interpreter
COLD_BAR = 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=300, help="runs of a round")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) > CORES:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    pooled, bare, cold, start, single = [], [], [], [], []
    few = arguments.runs // 5
    with Sandbox(workers=CORES) as sandbox, ThreadPoolExecutor(CORES) as threads:
        tools = GradingTools(sandbox)
        grade_all(GRADER, [SAMPLE] * 20, tools)
        for _ in range(arguments.rounds):
            pooled.append(rate(arguments.runs, lambda: grade_all(GRADER, [SAMPLE] * arguments.runs, tools)))
            bare.append(rate(few, lambda: list(threads.map(run_bare, range(few)))))
            single.append(duration_ms(lambda: sandbox.run(Program(SOURCE))))
            start.append(duration_ms(lambda: run_bare(0)))
            cold.append(duration_ms(run_cold))
    rates = statistics.median(one / other for one, other in zip(pooled, bare, strict=True))
    colds = statistics.median(one / other for one, other in zip(cold, start, strict=True))
    results = {
        "pool_runs_per_s": round(statistics.median(pooled), 1),
        "bare_interpreters_per_s": round(statistics.median(bare), 1),
        "pool_over_bare": round(rates, 2),
        "warm_run_ms": round(statistics.median(single), 2),
        "cold_run_ms": round(statistics.median(cold), 1),
        "bare_interpreter_ms": round(statistics.median(start), 1),
        "cold_over_bare": round(colds, 2),
        "rounds": arguments.rounds,
    }
    bars = {
        "confined runs over starts of a bare interpreter": {
            "value": results["pool_over_bare"], "bar": RATE_BAR, "better": "higher",
        },
        "a cold run over the start of a bare interpreter": {
            "value": results["cold_over_bare"], "bar": COLD_BAR, "better": "lower",
        },
    }  # fmt: skip
    machine = f"{platform.machine()}, {CORES} cores, Linux {platform.release()}, Python {platform.python_version()}"
    report(results)
    written = {"name": "sandbox", "machine": machine, "results": results, "bars": bars}
    (Path(__file__).parent / "results" / "sandbox.json").write_text(json.dumps(written, indent=2) + "\n")


def rate(runs: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return runs / (time.perf_counter() - started)


def duration_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def run_bare(_number: int) -> None:
    subprocess.run(BARE, check=True, capture_output=True)


def run_cold() -> None:
    with Sandbox(workers=1) as sandbox:
        grade_all(GRADER, [SAMPLE], GradingTools(sandbox))


def report(results: dict[str, float]) -> None:
    table = Table("", "measured", "bar")
    table.add_row("runs/s in the pool", f"{results['pool_runs_per_s']:.0f}", "")
    table.add_row("bare interpreters started/s", f"{results['bare_interpreters_per_s']:.0f}", "")
    table.add_row("pool over bare", f"{results['pool_over_bare']:.2f}×", f"≥ {RATE_BAR:g}×")
    table.add_row("one warm run, ms", f"{results['warm_run_ms']:.1f}", "")
    table.add_row("one cold run with start and self-test, ms", f"{results['cold_run_ms']:.0f}", "")
    table.add_row("start of a bare interpreter, ms", f"{results['bare_interpreter_ms']:.0f}", "")
    table.add_row("cold over bare", f"{results['cold_over_bare']:.1f}×", f"≤ {COLD_BAR:g}×")
    Console().print(table)


if __name__ == "__main__":
    main()
