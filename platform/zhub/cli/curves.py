"""``zhub jobs metrics`` and ``zhub jobs curve``: how trainings went, step by step, one or several beside each other."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import BLOCKS, note, put, show_json, table
from zhub.client.wire.training import FineTuningJob, SeriesPoint, SeriesRecord
from zhub.errors import InvalidRequestError

CURVE_CELLS = 40
SHOWN_POINTS = 400  # a series that is thinned keeps its extremes
ALL_POINTS = 2000  # as many as the API gives

CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV: a line for each step.")]


def metrics(
    job_id: str, as_csv: CsvOption = False, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Show the metrics of a job's training by step."""
    with connect(data_dir) as client:
        all_series = client.jobs.metrics(job_id, points=ALL_POINTS if as_csv else CURVE_CELLS)
    if as_json:
        return show_json(all_series)
    if as_csv:
        return print_csv({series.name: series for series in all_series})
    rows = []
    for series in all_series:
        values = [point.value for point in series.points]
        extremes = (f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values)))
        rows.append((series.name, str(series.count), *extremes, drawn(series.points)))
    put(table(("METRIC", "POINTS", "FIRST", "LAST", "LOWEST", "HIGHEST", "COURSE"), rows, whole=7))


def curve(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID", help="ftjob-…, one or several to compare.")],
    metric: Annotated[
        str, typer.Option(help="Which metric; `zhub jobs metrics` lists those of a job.")
    ] = "valid_reward_mean",
    as_csv: CsvOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a metric of several trainings: one line for each job, all on the same scale of steps and values."""
    with connect(data_dir) as client:
        points = ALL_POINTS if as_csv or as_json else SHOWN_POINTS
        of_jobs = {job_id: client.jobs.metrics(job_id, points=points) for job_id in job_ids}
        experts = {job_id: _expert(client.jobs.get(job_id)) for job_id in ([] if as_csv or as_json else job_ids)}
    compared = {job_id: series for job_id, listed in of_jobs.items() for series in listed if series.name == metric}
    if not compared:
        known = ", ".join(sorted({series.name for listed in of_jobs.values() for series in listed})) or "none yet"
        raise InvalidRequestError(f"No job has the metric '{metric}'. Their metrics: {known}.")
    if as_json:
        plain = {job_id: series.model_dump(mode="json") for job_id, series in compared.items()}
        return typer.echo(json.dumps(plain, indent=2))
    if as_csv:
        return print_csv(compared)
    _show_curves(metric, compared, experts)


def _expert(job: FineTuningJob) -> str:
    return job.fine_tuned_model or job.suffix or "-"


def _show_curves(metric: str, compared: Mapping[str, SeriesRecord], experts: Mapping[str, str]) -> None:
    everything = [point for series in compared.values() for point in series.points]
    last_step = max(point.step for point in everything)
    low, high = (extreme(point.value for point in everything) for extreme in (min, max))
    rows = []
    for job_id, expert in experts.items():
        if job_id not in compared:
            rows.append((job_id, expert, "-", "-", "-", "", "it has no such metric"))
            continue
        points = compared[job_id].points
        best = max(points, key=lambda point: point.value)
        course = drawn(points, last_step=last_step, low=low, high=high)
        extremes = (f"{points[0].value:.4g}", f"{points[-1].value:.4g}", f"{best.value:.4g}", str(best.step))
        rows.append((job_id, expert, *extremes, course))
    put(table(("JOB", "EXPERT", "FIRST", "LAST", "HIGHEST", "AT STEP", f"0 TO STEP {last_step}"), rows, whole=7))
    note(f"{metric}: the lowest block is {low:.4g}, the highest {high:.4g}.")


def drawn(
    points: Sequence[SeriesPoint], *, last_step: int | None = None, low: float | None = None, high: float | None = None
) -> str:
    """A series as a line of at most ``CURVE_CELLS`` blocks, from step 0 to ``last_step``, each the value by then.

    ``low`` and ``high`` are the values of the lowest and the highest block. What is not given is the series' own.
    """
    end = max(1, points[-1].step if last_step is None else last_step)
    values = [point.value for point in points]
    low, high = min(values) if low is None else low, max(values) if high is None else high
    cells = min(CURVE_CELLS, end + 1)
    line = ""
    for cell in range(cells):
        step = end * cell / max(1, cells - 1)
        reached = [point.value for point in points if point.step <= step]
        if not reached or step > points[-1].step:
            line += " "
            continue
        share = (reached[-1] - low) / (high - low) if high > low else 0.5
        line += BLOCKS[round(share * (len(BLOCKS) - 1))]
    return line.rstrip()


def print_csv(columns: Mapping[str, SeriesRecord]) -> None:
    """Print series side by side, a line for each step; a series without a value there has an empty cell."""
    by_step = {name: {point.step: point.value for point in series.points} for name, series in columns.items()}
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["step", *columns])
    for step in sorted({step for values in by_step.values() for step in values}):
        writer.writerow([step, *(values.get(step, "") for values in by_step.values())])
    thinned = [name for name, series in columns.items() if series.count > len(series.points)]
    if thinned:
        note(f"Thinned to {ALL_POINTS:,} points, the extremes kept: {', '.join(thinned)}.")
