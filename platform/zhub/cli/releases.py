"""``zhub releases``."""

import re
from typing import Annotated, Any

import typer

from zhub.answering import ReleaseStrategy
from zhub.cli import protected_aliases
from zhub.cli.classifiers import classifier
from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, moment, note, put, show_json, table
from zhub.client.wire.lifecycle import AliasRecord, AliasRequestRecord
from zhub.client.wire.releases import ReleaseRecord, ShadowRecord

VERSION_NUMBER = re.compile(r"v[0-9]+")

app = typer.Typer(
    help="Releases: a strategy and the expert versions that it pins, promoted as one.", no_args_is_help=True
)


app.command()(classifier)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The release's name, without the project: support.")],
    experts: Annotated[
        list[str],
        typer.Argument(metavar="EXPERT[=WEIGHT]…", help="Expert versions (project.expert@v1), or aliases of them."),
    ],
    strategy: Annotated[
        ReleaseStrategy,
        typer.Option(
            help="mixture: all of them; centroid: the one whose training prompts are most like the prompt; prompt: the "
            "one that the base says the prompt is for; classifier: the one that --classifier says."
        ),
    ] = "centroid",
    classifier: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="An expert version that tells the experts apart, see `zhub releases classifier`."
        ),
    ] = None,
    describe: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPERT=TEXT", help="Which prompts an expert is for; may be repeated."),
    ] = None,
    description: Annotated[str | None, typer.Option(help="What this version of the release is for.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version of a release. It never changes; what equals the newest version is that version."""
    described = dict(_pair(text, "--describe") for text in describe or ())
    parts: list[dict[str, Any]] = []
    for text in experts:
        model, equals, weight = text.partition("=")
        parts.append({"model": model, "description": described.pop(model, None)})
        if equals:
            parts[-1]["weight"] = _number(weight, text)
    if described:
        raise typer.BadParameter(f"'{next(iter(described))}' is none of the experts.", param_hint="--describe")
    with connect(data_dir) as client:
        release = client.releases.create(
            name, strategy=strategy, experts=parts, classifier=classifier, description=description
        )
    show_release(release, as_json)
    if not as_json and not release.aliases:
        note(f"`zhub releases promote {release.id}` points @prod to it.")


@app.command()
def ls(
    release: Annotated[str | None, typer.Argument(help="Only the versions of this one (project.release).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default="all")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the versions of releases, newest first."""
    with connect(data_dir) as client:
        versions = client.releases.list(release, limit=limit)
    if as_json:
        return show_json(versions)
    rows = [
        (
            version.id,
            _aliases(version),
            version.strategy,
            ", ".join(expert.model for expert in version.experts),
            version.base_model,
            version.digest[:12],
            moment(version.created_at),
        )
        for version in versions
    ]
    put(table(("NAME", "ALIASES", "STRATEGY", "EXPERTS", "BASE", "DIGEST", "CREATED"), rows, whole=1))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A release version (project.release@v1, or @prod).")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a release version: its strategy, and what it pins."""
    with connect(data_dir) as client:
        show_release(client.releases.get(name), as_json)


@app.command()
def diff(
    name: Annotated[str, typer.Argument(help="A release version (project.release@v2).")],
    against: Annotated[
        str | None, typer.Option(help="Another release version.", show_default="the release's @prod")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what promoting a version would change."""
    with connect(data_dir) as client:
        compared = client.releases.diff(name, against=against)
    if as_json:
        return show_json(compared)
    if not compared.differences:
        return note(f"{compared.to} answers as {compared.origin} does.")
    rows = [(row.what, _side(row.before), _side(row.after)) for row in compared.differences]
    put(table(("WHAT", compared.origin, compared.to), rows, whole=3))


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="A release version (project.release@v1).")],
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "prod",
    share: Annotated[
        float | None,
        typer.Option(
            help="Leave the alias where it is, and send this share of its requests to the version: 0.1 is a tenth. "
            "Promoting either version ends that."
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="The reason, kept in the alias's history.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias to a version: to release it, to try it on a share of the requests, or to roll back."""
    with connect(data_dir) as client:
        name = f"{version.partition('@')[0]}@{alias}"
        moved = client.releases.aliases.move(name, version, reason=reason, share=share)
    if as_json:
        return show_json(moved)
    if isinstance(moved, AliasRequestRecord):
        return note(protected_aliases.told(moved))
    note(f"{moved.id} points to {moved.version}{_shared(moved)}.")


@app.command()
def demote(
    alias: Annotated[str, typer.Argument(help="An alias (project.release@prod).")], data_dir: DataDirOption = None
) -> None:
    """Remove an alias: without @prod of the release 'auto', `auto` chooses among promoted experts again."""
    with connect(data_dir) as client:
        client.releases.aliases.remove(alias)
    note(f"{alias} points to nothing now.")


@app.command()
def shadow(
    version: Annotated[str, typer.Argument(help="A release version (project.release@v2), or the alias to show.")],
    alias: Annotated[str, typer.Option(help="The alias beside whose version it answers.")] = "prod",
    share: Annotated[float, typer.Option(help="Of the alias's requests that it answers too: 0.1 is a tenth.")] = 1.0,
    end: Annotated[bool, typer.Option("--end", help="End the trial that runs on the alias.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a version answer beside the one of an alias, where nobody gets its answers; or show how they compare."""
    release, _, named = version.partition("@")
    with connect(data_dir) as client:
        if end:
            client.releases.end_shadow(f"{release}@{alias}")
        elif VERSION_NUMBER.fullmatch(named):
            client.releases.start_shadow(f"{release}@{alias}", version, share=share)
        trial = client.releases.shadow(f"{release}@{alias if VERSION_NUMBER.fullmatch(named) else named or alias}")
    if as_json:
        return show_json(trial)
    put(facts(_trial(trial)))


@app.command()
def moves(
    alias: Annotated[str, typer.Argument(help="An alias (project.release@prod).")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every move of an alias, newest first, and when it had a canary."""
    with connect(data_dir) as client:
        record = client.releases.aliases.get(alias)
    if as_json:
        return show_json(record)
    rows = [
        (
            moment(move.created_at),
            move.origin or "-",
            move.to or "-",
            f"{move.canary.share:.0%} to {move.canary.version}" if move.canary else "-",
            move.by,
            move.reason or "",
        )
        for move in record.moves
    ]
    put(table(("AT", "FROM", "TO", "CANARY", "BY", "BECAUSE"), rows, whole=5))


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="A release version (project.release@v1).")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Delete a release version, which then pins nothing. There is no way back."""
    with connect(data_dir) as client:
        if not yes:
            typer.confirm(f"Delete {name} for good?", abort=True, err=True)
        client.releases.delete(name)
    note(f"{name} is deleted.")


def show_release(release: ReleaseRecord, as_json: bool) -> None:
    if as_json:
        return show_json(release)
    put(
        facts(
            [
                ("name", release.id),
                ("digest", f"sha256:{release.digest}"),
                ("created", f"{moment(release.created_at)} by {release.by}"),
                ("description", release.description or "-"),
                ("aliases", _aliases(release)),
                ("base", release.base_model),
                ("strategy", release.strategy),
                *([("classifier", release.classifier.model)] if release.classifier else []),
            ]
        )
    )
    put()
    rows = [(expert.model, f"{expert.weight:g}", expert.digest[:12], expert.description) for expert in release.experts]
    put(table(("EXPERT", "WEIGHT", "DIGEST", "FOR"), rows, whole=1))


def _aliases(release: ReleaseRecord) -> str:
    return " ".join(f"@{name}" for name in release.aliases) or "-"


def _trial(trial: ShadowRecord) -> list[tuple[str, str]]:
    ended = f"until {moment(trial.ended_at)}" if trial.ended_at else "until the alias moves"
    answered = max(trial.answered, 1)
    seconds = trial.seconds
    return [
        ("alias", f"{trial.alias}, which {trial.live} answers"),
        ("shadow", f"{trial.shadow}, for {trial.share:.0%} of the requests since {moment(trial.created_at)}, {ended}"),
        ("answered", f"{trial.answered:,}; {trial.failed:,} failed, {trial.left_out:,} left out while it was busy"),
        ("same experts", _share_of(trial.same_experts, trial.answered)),
        ("answered alike", f"{_share_of(trial.alike, trial.comparable)} that are not drawn at random"),
        ("tokens an answer", f"{trial.tokens.live / answered:.1f} live, {trial.tokens.shadow / answered:.1f} shadow"),
        (
            "seconds an answer",
            f"{seconds.live / answered:.2f} live, {seconds.shadow / answered:.2f} shadow",
        ),
    ]


def _share_of(count: int, total: int) -> str:
    return f"{count:,} of {total:,}" + (f" ({count / total:.0%})" if total else "")


def _shared(alias: AliasRecord) -> str:
    return f", and sends {alias.canary.share:.0%} of its requests to {alias.canary.version}" if alias.canary else ""


def _side(value: str | float | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:g}"


def _pair(text: str, hint: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise typer.BadParameter(f"expected EXPERT=TEXT, found '{text}'", param_hint=hint)
    return name, value


def _number(weight: str, part: str) -> float:
    try:
        return float(weight)
    except ValueError:
        raise typer.BadParameter(f"expected EXPERT[=WEIGHT], found '{part}'", param_hint="EXPERT") from None
