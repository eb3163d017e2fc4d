"""``zhub experts compare``."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import interval, note, p_value, percent, put, show_json, table
from zhub.client import Client
from zhub.client.wire.experts import ComparedSuite, EvaluationResults, VersionComparison
from zhub.manifest import Accuracy

SHOWN_CHARACTERS = 60


def compare(
    version: Annotated[str, typer.Argument(help="A version (project.expert@v2).")],
    against: Annotated[str, typer.Argument(help="The version that it is compared with.")],
    rows: Annotated[
        int, typer.Option(min=0, help="How many answers to show of each suite that are better, and that are worse.")
    ] = 0,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how two versions differ: how they were made, what they get on suites, what they change.

    Suites are those that both were measured on: `zhub evaluations create` measures a version.
    """
    with connect(data_dir) as client:
        compared = client.experts.compare(version, against)
        if as_json:
            return show_json(compared)
        _show_configuration(compared)
        _show_held_out(compared)
        _show_suites(compared)
        for suite in compared.suites if rows else ():
            _show_rows(client, compared, suite, rows)
    _show_changes(compared)


def _show_configuration(compared: VersionComparison) -> None:
    if not compared.configuration:
        return note("Both were made in the same way.")
    rows = [(one.what, _value(one.against), _value(one.model)) for one in compared.configuration]
    put(table(("MADE OF", compared.against, compared.model), rows, whole=1))


def _show_held_out(compared: VersionComparison) -> None:
    rows = [
        (
            pair.split,
            interval(pair.against) if pair.against else "-",
            interval(pair.model) if pair.model else "-",
            "the same rows" if pair.same_rows else "each its own rows",
        )
        for pair in compared.held_out
    ]
    if rows:
        put()
        put(table(("HELD OUT", compared.against, compared.model, "OF"), rows, whole=4))


def _show_suites(compared: VersionComparison) -> None:
    put()
    if not compared.suites:
        return note("They were measured on no suite together. `zhub evaluations create` measures them on one.")
    columns = ("SUITE", "N", compared.against, compared.model, "DIFFERENCE [95 %]", "P", "BETTER", "WORSE")
    rows = [
        (
            suite.suite["file"]["name"],
            str(suite.comparison.n),
            _mean(suite.against.results),
            _mean(suite.model.results),
            f"{100 * suite.comparison.difference:+.1f} "
            f"[{100 * suite.comparison.low:+.1f}, {100 * suite.comparison.high:+.1f}]",
            p_value(suite.comparison.p_value),
            str(suite.better),
            str(suite.worse),
        )
        for suite in compared.suites
    ]
    put(table(columns, rows, whole=4))
    for suite in compared.suites:
        put(Text(suite.comparison.sentence), soft_wrap=True)


def _show_rows(client: Client, compared: VersionComparison, suite: ComparedSuite, count: int) -> None:
    """Rows where one answer got more than the other, side by side."""
    for verdict, places in (("better", suite.better_rows[:count]), ("worse", suite.worse_rows[:count])):
        if not places:
            continue
        own, other = (_rows(client, side.evaluation, places) for side in (suite.model, suite.against))
        shown = [
            (str(own[place]["line"]), _prompt(own[place]), _answer(other[place]), _answer(own[place]))
            for place in places
            if place in own and place in other
        ]
        put()
        note(f"{suite.suite['file']['name']}: {compared.model} is {verdict}")
        put(table(("LINE", "PROMPT", compared.against, compared.model), shown, whole=1))


def _rows(client: Client, evaluation: str, places: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The rows at these places; the rest is not kept."""
    wanted, last = set(places), max(places)
    found: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(client.evaluations.rows(evaluation)):
        if place in wanted:
            found[place] = row
        if place >= last:
            break
    return found


def _show_changes(compared: VersionComparison) -> None:
    put()
    if compared.z is None:
        return note(compared.z_missing or "")
    sides = ((compared.model, compared.z.model), (compared.against, compared.z.against))
    for name, strength in sides:
        if strength is not None:
            distance = "" if strength.distance is None else f", |z - 1| = {strength.distance:.3g}"
            note(f"{name} changes {percent(strength.share)} of the weights' norm{distance}.")
    if compared.z.cosine is not None:
        note(f"The cosine of their changes is {compared.z.cosine:+.3f}.")
    if compared.z_missing:
        note(compared.z_missing)
    rows = [
        (
            "-" if layer.layer is None else str(layer.layer),
            str(layer.matrices),
            percent(layer.share),
            "-" if layer.cosine is None else f"{layer.cosine:+.3f}",
        )
        for layer in compared.z.layers
    ]
    if rows:
        put(table(("LAYER", "MATRICES", "DIFFERENCE / WEIGHT", "COSINE"), rows, whole=1))


def _mean(results: EvaluationResults) -> str:
    return interval(Accuracy(mean=results.mean, low=results.low, high=results.high, n=results.n))


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return _short(text) if value is not None else "-"


def _prompt(row: dict[str, Any]) -> str:
    prompt = row["prompt"]
    return _short(prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")))


def _answer(row: dict[str, Any]) -> str:
    return f"{row['reward']:g}: {_short(str(row['answer']))}"


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= SHOWN_CHARACTERS else f"{plain[: SHOWN_CHARACTERS - 1]}…"
