"""``zhub experts``."""

from pathlib import Path
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, interval, moment, note, p_value, percent, put, show_json, size, table
from zhub.client.wire import ExpertVersion, FeedbackSummary
from zhub.manifest import Evaluation

app = typer.Typer(help="Experts: what training made.", no_args_is_help=True)


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the expert versions, newest first."""
    with connect(data_dir) as client:
        found = client.experts.list()
    if as_json:
        return show_json(found)
    rows = [
        (
            v.id, v.base_model, *_accuracies(v.evaluation("test")), _liked(v.feedback), v.digest[:12],
            moment(v.created_at),
        )
        for v in found
    ]  # fmt: skip
    put(table(("NAME", "BASE", "BASE ACC.", "EXPERT ACC.", "FEEDBACK", "DIGEST", "CREATED"), rows, whole=1))


@app.command()
def show(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one version (project.expert@v1): how good it is, what it is made of, where it comes from."""
    with connect(data_dir) as client:
        show_version(client.experts.get(name), as_json)


@app.command()
def pull(
    name: str,
    directory: Annotated[
        Path | None, typer.Option(help="A new directory for the files.", show_default="one of the version's name")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a version's files, every byte checked against its digest."""
    target = directory or Path(name)
    with connect(data_dir) as client:
        version = client.experts.pull(name, target)
    note(f"{name} is in {target.absolute()}; all digests agree.")
    if as_json:
        show_json(version)
    else:
        typer.echo(str(target.absolute()))


@app.command()
def aliases(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the aliases, and the versions they point to."""
    with connect(data_dir) as client:
        found = client.aliases.list()
    if as_json:
        return show_json(found)
    put(table(("ALIAS", "VERSION", "MOVED"), [(one.id, one.version, moment(one.moved_at)) for one in found], whole=2))


@app.command()
def moves(alias: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show every move of an alias (project.expert@prod), newest first."""
    with connect(data_dir) as client:
        found = client.aliases.get(alias)
    if as_json:
        return show_json(found)
    rows = [(moment(one.created_at), one.origin or "-", one.to, one.by, one.reason or "") for one in found.moves]
    put(table(("AT", "FROM", "TO", "BY", "BECAUSE"), rows, whole=4))


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="An expert version (project.expert@v1).")],
    alias: Annotated[str, typer.Option(help="The alias that shall point to it.")] = "prod",
    reason: Annotated[str | None, typer.Option(help="Why, for those who look later.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put an alias on a version without a gate: to begin with, to go back, or to overrule one."""
    with connect(data_dir) as client:
        moved = client.aliases.move(f"{version.partition('@')[0]}@{alias}", version, reason=reason)
    if as_json:
        return show_json(moved)
    note(f"{moved.id} points to {moved.version}.")


def show_version(version: ExpertVersion, as_json: bool) -> None:
    if as_json:
        return show_json(version)
    manifest = version.manifest
    put(
        facts(
            [
                ("name", version.id),
                ("digest", f"sha256:{version.digest}"),
                ("created", moment(version.created_at)),
                ("base", f"{version.base_model} ({manifest['base_source']})"),
                ("basis", manifest["basis_fingerprint"]),
                ("weights", manifest["weights_fingerprint"]),
                ("dataset", f"sha256:{manifest['dataset_digest']}"),
                ("job", f"{version.job}, attempt {manifest['fence']}, seed {manifest['seed']}"),
                ("recipe", f"{manifest['recipe']}, best step {manifest['best_step']} of {manifest['steps']}"),
                ("made by", f"zhub {manifest['code_version']} on {manifest['hardware']}"),
                ("parent", manifest["parent_digest"] or "none: trained from the base"),
                ("size", f"{manifest['parameters']:,} numbers, {size(version.size_bytes)}"),
                ("feedback", _liked(version.feedback)),
            ]
        )
    )
    evaluations = [found for split in ("validation", "test") if (found := version.evaluation(split))]
    if evaluations:
        put()
        rows = [
            (found.split, str(found.base.n), interval(found.base), interval(found.expert), p_value(found.p_value))
            for found in evaluations
        ]
        put(table(("HELD-OUT ROWS", "N", "BASE [95 %]", "EXPERT [95 %]", "P"), rows, whole=5))
    put()
    files = [(file["name"], size(file["size_bytes"]), file["sha256"]) for file in manifest["files"]]
    put(table(("FILE", "SIZE", "SHA-256"), files, whole=2))


def _liked(feedback: FeedbackSummary) -> str:
    """The mean score of a version's feedback, and how many pieces that is."""
    return "-" if feedback.mean_score is None else f"{feedback.mean_score:+.2f} ({feedback.count:,})"


def _accuracies(found: Evaluation | None) -> tuple[str, str]:
    return (percent(found.base.mean), percent(found.expert.mean)) if found else ("-", "-")
