"""Whether organisations get their share of a cluster and it stays busy: admission's own plan in simulated time.

A floods the queue with thousands of small jobs at once. B and C bring more than their share all the time: B whole
workers, C gangs of four among them. Weights are 1, 1 and 2, so a quarter, a quarter and half of the cluster are due.
What a job is expected to take is off by up to 30 %. Beside it, in the same run, first come, first served.

Shares are those of the worker-seconds between the first day and the last; utilisation is that of the same time, in
which there is always a small job to run, so the best packing leaves nothing idle.
"""

import argparse
import heapq
import json
import os
import platform
import random
import statistics
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from zhub.admission.admit import MAX_HEADS
from zhub.admission.fair_share import HALF_LIFE_S, ROUNDING, Running, Tenant, Waiting, plan

WORKERS = 16.0
DAY_S = 86_400.0
WEIGHTS = {"A": 1.0, "B": 1.0, "C": 2.0}
SHARE_BAR, UTILISATION_BAR = 0.02, 0.95


@dataclass(frozen=True)
class Job:
    """A job: when it comes, what it takes, how long it runs, and how long it was expected to."""

    id: uuid.UUID
    tenant: str
    at_s: float
    workers: float
    seconds: float
    expected_s: float


@dataclass
class Outcome:
    """Worker-seconds after the first day by tenant, and waits of all jobs that began."""

    used: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0.0))
    waits: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in WEIGHTS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    console = Console()
    jobs = arrivals(arguments.days, arguments.seed)
    span_s = (arguments.days - 1) * DAY_S
    table = Table(title=f"{WORKERS:g} workers, {arguments.days} days, {len(jobs):,} jobs")
    for column in ("policy", "tenant", "due", "share", "median wait", "jobs begun", "utilisation"):
        table.add_column(column, justify="right")
    results: dict[str, dict[str, object]] = {}
    for policy in ("first come, first served", "fair share"):
        outcome = simulate(jobs, arguments.days * DAY_S, fair=policy == "fair share")
        total = sum(outcome.used.values())
        shares = {name: used / total for name, used in outcome.used.items()}
        utilisation = total / (WORKERS * span_s)
        waits = {name: statistics.median(found) if found else None for name, found in outcome.waits.items()}
        results[policy] = {"shares": shares, "median_wait_s": waits, "utilisation": utilisation}
        for name, weight in WEIGHTS.items():
            wait = waits[name]
            table.add_row(
                policy if name == "A" else "",
                name,
                f"{weight / sum(WEIGHTS.values()):.0%}",
                f"{shares[name]:.1%}",
                "never" if wait is None else f"{wait / 60:.0f} min",
                f"{len(outcome.waits[name]):,}",
                f"{utilisation:.1%}" if name == "A" else "",
            )
        if policy == "fair share":
            off = max(abs(shares[name] - weight / sum(WEIGHTS.values())) for name, weight in WEIGHTS.items())
    console.print(table)
    console.print(f"largest distance from a due share: {off:.1%} (bar {SHARE_BAR:.0%})")
    written = {
        "name": "fairness",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "results": results,
        "bars": {
            "largest distance from a due share": {"value": off, "bar": SHARE_BAR, "better": "lower"},
            "utilisation over the best packing's": {
                "value": results["fair share"]["utilisation"],
                "bar": UTILISATION_BAR,
                "better": "higher",
            },
        },
    }
    (Path(__file__).parent / "results" / "fairness.json").write_text(json.dumps(written, indent=2) + "\n")


def arrivals(days: int, seed: int) -> list[Job]:
    """All jobs by their time, the same ones for the same seed."""
    rng = random.Random(seed)
    found: list[Job] = []

    def add(tenant: str, at_s: float, workers: float, seconds: float) -> None:
        expected = seconds * rng.uniform(0.7, 1.3)
        found.append(Job(uuid.UUID(int=rng.getrandbits(128)), tenant, at_s, workers, seconds, expected))

    # Enough for three times the share of each.
    flood_s = 3 * WORKERS / 4 * days * DAY_S
    while flood_s > 0:
        seconds = rng.uniform(300, 900)
        add("A", 0.0, 0.25, seconds)
        flood_s -= seconds / 4
    for tenant, share in (("B", 0.25), ("C", 0.5)):
        at_s = 0.0
        while at_s < days * DAY_S:
            workers = rng.choice([1.0, 1.0, 4.0]) if tenant == "C" else 1.0
            seconds = rng.uniform(600, 3600)
            add(tenant, at_s, workers, seconds)
            at_s += workers * seconds / (1.5 * share * WORKERS)
    return sorted(found, key=lambda job: (job.at_s, job.id))


def simulate(jobs: list[Job], end_s: float, *, fair: bool) -> Outcome:
    """Admit the jobs as they come and as workers become free, until the end."""
    orgs = {name: uuid.UUID(int=place) for place, name in enumerate(WEIGHTS)}
    queues: dict[str, deque[Job]] = {name: deque() for name in WEIGHTS}
    coming = deque(jobs)
    running: list[tuple[float, uuid.UUID, float, Job]] = []  # by end; with the time of the beginning
    used, charged_at = dict.fromkeys(WEIGHTS, 0.0), dict.fromkeys(WEIGHTS, 0.0)
    outcome, now = Outcome(), 0.0
    while now < end_s:
        while coming and coming[0].at_s <= now:
            job = coming.popleft()
            queues[job.tenant].append(job)
        while running and running[0][0] <= now:
            _, _, began, job = heapq.heappop(running)
            decay = 0.5 ** ((now - charged_at[job.tenant]) / HALF_LIFE_S)
            used[job.tenant] = used[job.tenant] * decay + job.workers * (now - began)
            charged_at[job.tenant] = now
        for job in chosen(queues, running, orgs, used, charged_at, now, fair=fair):
            queues[job.tenant].remove(job)
            outcome.waits[job.tenant].append(now - job.at_s)
            heapq.heappush(running, (now + job.seconds, job.id, now, job))
            counted = min(end_s, now + job.seconds) - max(DAY_S, now)
            outcome.used[job.tenant] += job.workers * max(0.0, counted)
        now = min([end_s, *([coming[0].at_s] if coming else []), *([running[0][0]] if running else [])])
    return outcome


def chosen(
    queues: dict[str, deque[Job]],
    running: list[tuple[float, uuid.UUID, float, Job]],
    orgs: dict[str, uuid.UUID],
    used: dict[str, float],
    charged_at: dict[str, float],
    now: float,
    *,
    fair: bool,
) -> list[Job]:
    free = WORKERS - sum(job.workers for _, _, _, job in running)
    if not fair:
        return first_come(queues, free)
    heads = {name: [queue[place] for place in range(min(MAX_HEADS, len(queue)))] for name, queue in queues.items()}
    tenants = {}
    for name, weight in WEIGHTS.items():
        held = sum(job.workers for _, _, _, job in running if job.tenant == name)
        decay = 0.5 ** ((now - charged_at[name]) / HALF_LIFE_S)
        tenants[orgs[name]] = Tenant(weight, used[name] * decay, held)
    waiting = {
        orgs[name]: [Waiting(job.id, job.workers, job.expected_s) for job in found] for name, found in heads.items()
    }
    going_on = [Running(job.workers, max(0.0, began + job.expected_s - now)) for _, _, began, job in running]
    by_id = {job.id: job for found in heads.values() for job in found}
    return [by_id[job.id] for _, job in plan(free, going_on, tenants, waiting)]


def first_come(queues: dict[str, deque[Job]], free: float) -> list[Job]:
    found: list[Job] = []
    merged = heapq.merge(*queues.values(), key=lambda job: (job.at_s, job.id))
    for job in merged:
        if job.workers > free + ROUNDING:
            break
        free -= job.workers
        found.append(job)
    return found


if __name__ == "__main__":
    main()
