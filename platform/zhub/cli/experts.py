"""``zhub experts``."""

from pathlib import Path
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, interval, moment, note, p_value, percent, put, show_json, size, table
from zhub.client.wire.experts import ExpertVersion, FeedbackSummary
from zhub.manifest import Evaluation

app = typer.Typer(help="Experts: the versions that training has published.", no_args_is_help=True)


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the expert versions, newest first."""
    with connect(data_dir) as client:
        versions = client.experts.list()
    if as_json:
        return show_json(versions)
    rows = [
        (
            version.id,
            version.base_model,
            *_accuracies(version.evaluation("test")),
            _mean_score(version.feedback),
            version.digest[:12],
            moment(version.created_at),
        )
        for version in versions
    ]
    put(table(("NAME", "BASE", "BASE ACC.", "EXPERT ACC.", "FEEDBACK", "DIGEST", "CREATED"), rows, whole=1))


@app.command()
def show(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one version (project.expert@v1): its accuracy, its files, its origin."""
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
    note(f"{name} is in {target.absolute()}; all digests match.")
    if as_json:
        show_json(version)
    else:
        typer.echo(str(target.absolute()))


@app.command()
def aliases(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the aliases and the versions that they point to."""
    with connect(data_dir) as client:
        all_aliases = client.aliases.list()
    if as_json:
        return show_json(all_aliases)
    put(
        table(
            ("ALIAS", "VERSION", "MOVED"),
            [(alias.id, alias.version, moment(alias.moved_at)) for alias in all_aliases],
            whole=2,
        )
    )


@app.command()
def moves(alias: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show every move of an alias (project.expert@prod), newest first."""
    with connect(data_dir) as client:
        record = client.aliases.get(alias)
    if as_json:
        return show_json(record)
    rows = [(moment(move.created_at), move.origin or "-", move.to, move.by, move.reason or "") for move in record.moves]
    put(table(("AT", "FROM", "TO", "BY", "BECAUSE"), rows, whole=4))


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="An expert version (project.expert@v1).")],
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "prod",
    reason: Annotated[str | None, typer.Option(help="The reason, kept in the alias's history.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias to a version without a gate: the first time, to roll back, or to overrule a gate."""
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
                ("feedback", _mean_score(version.feedback)),
            ]
        )
    )
    evaluations = [evaluation for split in ("validation", "test") if (evaluation := version.evaluation(split))]
    if evaluations:
        put()
        rows = [
            (
                evaluation.split,
                str(evaluation.base.n),
                interval(evaluation.base),
                interval(evaluation.expert),
                p_value(evaluation.p_value),
            )
            for evaluation in evaluations
        ]
        put(table(("HELD-OUT ROWS", "N", "BASE [95 %]", "EXPERT [95 %]", "P"), rows, whole=5))
    put()
    files = [(file["name"], size(file["size_bytes"]), file["sha256"]) for file in manifest["files"]]
    put(table(("FILE", "SIZE", "SHA-256"), files, whole=2))


def _mean_score(feedback: FeedbackSummary) -> str:
    """The mean score of a version's feedback, and how many pieces that is."""
    return "-" if feedback.mean_score is None else f"{feedback.mean_score:+.2f} ({feedback.count:,})"


def _accuracies(evaluation: Evaluation | None) -> tuple[str, str]:
    return (percent(evaluation.base.mean), percent(evaluation.expert.mean)) if evaluation else ("-", "-")
