"""The job queue beside procrastinate (same PostgreSQL) and dramatiq (same Valkey): pick-up, claims, backlog, WAL.

Needs the extra ``bench``. Every system goes through its own code: ours through admission by an elected leader, claim
under a fence, and the record of each attempt. Pick-up is from before enqueueing to the first line of the job, with
wake-ups, client and workers in processes of their own: ours is a commit more, that of admission. Claims are made by
processes, each claiming and finishing until nothing is left; ours claim up to eight at a time, as an agent with eight
free workers does. Medians of three rounds. Beside it, ours ending each job in a transaction as agents do, in which the
result is written: what procrastinate does not offer. Every commit is on disk before it is answered, as PostgreSQL's
default settings have it.
"""

import argparse
import json
import logging
import os
import platform
import statistics
from pathlib import Path

import psycopg
from job_queue_claims import (
    CLAIMS,
    backlog_cost,
    claim_all,
    claim_all_with_results,
    claims_ours,
    claims_procrastinate,
    wal_ours,
    wal_procrastinate,
)
from job_queue_pickup import PICKUPS, pickup_dramatiq, pickup_ours, pickup_procrastinate
from job_queue_rows import install_peer, valkey
from rich.console import Console
from rich.table import Table

from zhub.database.logins import ADMIN, grant_groups
from zhub.database.migrate import upgrade
from zhub.embedded.postgres import temporary_postgres

ROUNDS = 3
AGENTS = (1, 4, 16)
BACKLOGS = (1_000, 1_000_000)
PICKUP_BAR, P99_BAR, CLAIMS_BAR, BACKLOG_BAR = 2.0, 1.0, 1.0, 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=BACKLOGS[1])
    backlog = parser.parse_args().backlog
    logging.getLogger().setLevel(logging.CRITICAL)
    console = Console()
    with temporary_postgres(durable=True) as cluster, valkey() as redis_url:
        upgrade(cluster.urls().owner)
        grant_groups(cluster.urls().admin)
        urls = cluster.urls()
        with psycopg.connect(cluster.url(ADMIN, "postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE peer")
        peer_url = cluster.url(ADMIN, "peer")
        install_peer(peer_url)
        pickups = {
            "zhub": pickup_ours(urls, redis_url),
            "procrastinate": pickup_procrastinate(peer_url),
            "dramatiq": pickup_dramatiq(redis_url),
        }
        show_pickups(console, pickups)
        claims: dict[str, dict[int, float]] = {"zhub": {}, "zhub, with results": {}, "procrastinate": {}}
        for agents in AGENTS:
            rounds = [
                (
                    claims_ours(urls, agents, claim_all),
                    claims_ours(urls, agents, claim_all_with_results),
                    claims_procrastinate(peer_url, agents),
                )
                for _ in range(ROUNDS)
            ]
            for name, found in zip(claims, zip(*rounds, strict=True), strict=True):
                claims[name][agents] = statistics.median(found)
        wal = {"zhub": wal_ours(urls), "procrastinate": wal_procrastinate(peer_url)}
        show_claims(console, claims, wal)
        costs = {size: backlog_cost(urls, size) for size in (BACKLOGS[0], backlog)}
    show_backlog(console, costs)
    write(pickups, claims, wal, costs)


def show_pickups(console: Console, pickups: dict[str, list[float]]) -> None:
    table = Table(title=f"From enqueueing to the first line of the job, {PICKUPS} jobs, ms")
    for column in ("", "p50", "p99"):
        table.add_column(column, justify="right")
    for name, seconds in pickups.items():
        table.add_row(name, f"{1000 * statistics.median(seconds):.1f}", f"{1000 * p99(seconds):.1f}")
    console.print(table)


def show_claims(console: Console, claims: dict[str, dict[int, float]], wal: dict[str, float]) -> None:
    table = Table(title=f"{CLAIMS:,} jobs claimed and finished, a second")
    for column in ("", *(f"{agents} processes" for agents in AGENTS), "WAL a job, bytes"):
        table.add_column(column, justify="right")
    for name, found in claims.items():
        bytes_a_job = f"{wal[name]:,.0f}" if name in wal else ""
        table.add_row(name, *(f"{found[agents]:,.0f}" for agents in AGENTS), bytes_a_job)
    console.print(table)


def show_backlog(console: Console, costs: dict[int, float]) -> None:
    table = Table(title="Admission and claim of a job, ms")
    for size in costs:
        table.add_column(f"{size:,} waiting", justify="right")
    table.add_row(*(f"{1000 * seconds:.2f}" for seconds in costs.values()))
    console.print(table)


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def write(
    pickups: dict[str, list[float]],
    claims: dict[str, dict[int, float]],
    wal: dict[str, float],
    costs: dict[int, float],
) -> None:
    medians = {name: statistics.median(seconds) for name, seconds in pickups.items()}
    rival = min(median for name, median in medians.items() if name != "zhub")
    rates = {agents: claims["zhub"][agents] / claims["procrastinate"][agents] for agents in AGENTS}
    small, large = costs.values()
    bars = {
        "pick-up p50 over the best peer's": (medians["zhub"] / rival, PICKUP_BAR, "lower"),
        "pick-up p99 over dramatiq's": (p99(pickups["zhub"]) / p99(pickups["dramatiq"]), P99_BAR, "lower"),
        "claims a second over procrastinate's, at the worst number of processes": (
            min(rates.values()),
            CLAIMS_BAR,
            "higher",
        ),
        "cost of a job with the large backlog over the small one's": (large / small, BACKLOG_BAR, "lower"),
    }
    written = {
        "name": "job_queue",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "results": {
            "pickup_ms": {
                name: {"p50": 1000 * medians[name], "p99": 1000 * p99(seconds)} for name, seconds in pickups.items()
            },
            "claims_a_second": claims,
            "wal_bytes_a_job": wal,
            "seconds_a_job_by_waiting": costs,
        },
        "bars": {what: {"value": v, "bar": bar, "better": better} for what, (v, bar, better) in bars.items()},
    }
    for what, (value, bar, _) in bars.items():
        print(f"{what}: {value:.2f} (bar {bar:g})")
    (Path(__file__).parent / "results" / "job_queue.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
