"""``zhub experts``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zhub.cli import (
    catalogue,
    expert_aliases,
    expert_comparisons,
    expert_exports,
    expert_imports,
    expert_lineage,
    expert_mixtures,
    expert_states,
    expert_strengths,
    outcomes,
    protected_aliases,
    provenance,
)
from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, interval, moment, note, p_value, percent, put, show_json, size, table
from zhub.client.wire.experts import AnswerPairRecord, ExpertRecord, ExpertVersion, FeedbackSummary
from zhub.manifest import Evaluation

SHOWN_CHARACTERS = 60

app = typer.Typer(help="Experts: the versions that training has published.", no_args_is_help=True)


NameArgument = Annotated[str, typer.Argument(help="A version (project.expert@v1), or an expert (project.expert).")]


@app.command()
def ls(
    search: Annotated[str | None, typer.Option(help="A part of an expert's name or of a description.")] = None,
    base: Annotated[str | None, typer.Option(help="Only those of this base model.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only those with this tag, as key or key=value; may be repeated.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Only those that this alias points to, as prod.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones as well.")] = False,
    sort: Annotated[
        Literal["newest", "name", "score"], typer.Option(help="What comes first; score: on the held-out test rows.")
    ] = "newest",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default="all")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the expert versions, newest first."""
    with connect(data_dir) as client:
        versions = client.experts.list(
            search=search, base=base, tags=tag or (), alias=alias, archived=archived, sort=sort, limit=limit
        )
    if as_json:
        return show_json(versions)
    rows = [
        (
            version.id,
            " ".join(_marks(version)) or "-",
            _tags(version.tags),
            version.base_model,
            *_accuracies(version.evaluation("test")),
            _mean_score(version.feedback),
            version.digest[:12],
            moment(version.created_at),
        )
        for version in versions
    ]
    columns = ("NAME", "ALIASES", "TAGS", "BASE", "BASE ACC.", "EXPERT ACC.", "FEEDBACK", "DIGEST", "CREATED")
    put(table(columns, rows, whole=1))


@app.command()
def show(name: NameArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show a version: its accuracy, its files, its origin; or an expert: what is said of it, and its versions."""
    with connect(data_dir) as client:
        if "@" in name:
            version = client.experts.get(name)
            return show_version(version, as_json, [] if as_json else outcomes.examples(client, version))
        show_expert(client.experts.get_expert(name), as_json)


app.command()(catalogue.search)
app.command()(catalogue.card)
app.command()(catalogue.neighbours)
app.command()(outcomes.answers)
app.command()(expert_imports.push)
app.command("import")(expert_imports.import_file)
app.command()(expert_exports.export)
app.command()(expert_strengths.z)
app.command()(expert_comparisons.compare)
app.command()(expert_lineage.lineage)
app.command("rotate-key")(provenance.rotate_key)
for command in (
    expert_aliases.aliases,
    expert_aliases.moves,
    expert_aliases.promote,
    expert_aliases.rollback,
    expert_aliases.demote,
    provenance.verify,
    provenance.keys,
    protected_aliases.protect,
    protected_aliases.unprotect,
    protected_aliases.protected,
    protected_aliases.requests,
    protected_aliases.approve,
    protected_aliases.reject,
    protected_aliases.withdraw,
    expert_states.deprecate,
    expert_states.yank,
    expert_states.restore,
    expert_states.needs,
    expert_states.rm,
):
    app.command()(command)
app.command("delete", hidden=True)(expert_states.rm)


@app.command()
def describe(
    name: NameArgument,
    text: Annotated[str, typer.Argument(help="What it is, what it is for; '' removes the description.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a version or an expert."""
    _change(name, data_dir, as_json, description=text)


@app.command()
def tag(
    name: NameArgument,
    tags: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Tags to set.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A tag to remove; may be repeated.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tag a version or an expert: team=search, stage=trial."""
    changed: dict[str, str | None] = dict.fromkeys(remove or ())
    for pair in tags or ():
        key, is_pair, value = pair.partition("=")
        if not is_pair:
            raise typer.BadParameter(f"'{pair}': expected key=value.")
        changed[key] = value
    if not changed:
        raise typer.BadParameter("nothing to change: give tags as key=value, or --remove KEY.")
    _change(name, data_dir, as_json, tags=changed)


@app.command()
def rename(
    expert: Annotated[str, typer.Argument(help="An expert (project.expert).")],
    new_name: Annotated[str, typer.Argument(help="Its new name, without the project.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rename an expert. Its old name still leads to it, and no other expert gets it."""
    _change(expert, data_dir, as_json, name=new_name)


@app.command()
def archive(name: NameArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Hide a version or an expert: `auto` never chooses it, and no training goes into an archived expert."""
    _change(name, data_dir, as_json, archived=True)


@app.command()
def unarchive(name: NameArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Take a version or an expert out of the archive."""
    _change(name, data_dir, as_json, archived=False)


@app.command()
def history(name: NameArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show who renamed, described, tagged, archived or deleted what, newest first. `moves` has that of aliases."""
    with connect(data_dir) as client:
        changes = list(client.experts.changes(name))
    if as_json:
        return show_json(changes)
    rows = [
        (moment(change.created_at), change.subject, field, _short(sides["from"]), _short(sides["to"]), change.by)
        for change in changes
        for field, sides in change.changes.items()
    ]
    put(table(("AT", "OF", "CHANGED", "FROM", "TO", "BY"), rows, whole=2))


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


def _change(subject: str, data_dir: Path | None, as_json: bool, /, **fields: Any) -> None:
    with connect(data_dir) as client:
        changed = client.experts.change(subject, **fields)
    if isinstance(changed, ExpertVersion):
        return show_version(changed, as_json)
    show_expert(changed, as_json)


def show_expert(expert: ExpertRecord, as_json: bool) -> None:
    if as_json:
        return show_json(expert)
    put(
        facts(
            [
                ("name", expert.id),
                ("created", moment(expert.created_at)),
                *_said(expert),
                ("versions", f"{expert.versions}, the newest {expert.newest}" if expert.newest else "none"),
                ("aliases", " ".join(f"@{name}" for name in expert.aliases) or "-"),
                *([("once called", ", ".join(expert.former_names))] if expert.former_names else []),
            ]
        )
    )


def show_version(version: ExpertVersion, as_json: bool, examples: Sequence[AnswerPairRecord] = ()) -> None:
    """``examples`` are rows whose answer has changed."""
    if as_json:
        return show_json(version)
    manifest = version.manifest
    put(
        facts(
            [
                ("name", version.id),
                ("digest", f"sha256:{version.digest}"),
                ("created", moment(version.created_at)),
                *expert_states.state_facts(version),
                *_said(version),
                *([("lost", f"{', '.join(version.lost_files)}: it cannot answer")] if version.lost_files else []),
                ("aliases", " ".join(f"@{name}" for name in version.aliases) or "-"),
                ("base", f"{version.base_model} ({manifest['base_source']})"),
                ("basis", manifest["basis_fingerprint"]),
                ("weights", manifest["weights_fingerprint"]),
                ("dataset", f"sha256:{manifest['dataset_digest']}" if manifest["dataset_digest"] else "not known"),
                ("job", f"{version.job}, attempt {manifest['fence']}, seed {manifest['seed']}"),
                ("kind", manifest["hyperparameters"].get("adapter", "svf")),
                ("recipe", _recipe(manifest)),
                *(expert_imports.origin_facts(version.origin) if version.origin else []),
                ("made by", f"zhub {manifest['code_version']} on {manifest['hardware']}"),
                *(expert_mixtures.facts_of(version.mixture) if version.mixture else [("parent", _parent(version))]),
                *(
                    [("classifies", ", ".join(known.model for known in version.classifies))]
                    if version.classifies
                    else []
                ),
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
    if version.general:
        put()
        outcomes.show_general(version.general)
    if examples:
        put()
        outcomes.show_answers(examples)
        note(f"`zhub experts answers {version.id}` shows more of them.")
    put()
    files = [(file["name"], size(file["size_bytes"]), file["sha256"]) for file in manifest["files"]]
    put(table(("FILE", "SIZE", "SHA-256"), files, whole=2))


def _marks(version: ExpertVersion) -> list[str]:
    """What a list tells of a version beside its name."""
    marks = [f"@{name}" for name in version.aliases]
    marks += ["archived"] * version.archived + [version.state] * (version.state != "ready")
    return marks + ["damaged"] * (version.damage is not None)


def _recipe(manifest: Mapping[str, Any]) -> str:
    if manifest["best_step"] < 0 or not manifest["steps"]:
        return str(manifest["recipe"])
    return f"{manifest['recipe']}, best step {manifest['best_step']} of {manifest['steps']}"


def _said(subject: ExpertRecord | ExpertVersion) -> list[tuple[str, str]]:
    """What people say of an expert or a version."""
    return [
        ("description", subject.description or "-"),
        ("tags", _tags(subject.tags)),
        *([("archived", "yes")] if subject.archived else []),
    ]


def _tags(tags: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(tags.items())) or "-"


def _parent(version: ExpertVersion) -> str:
    digest = version.manifest["parent_digest"]
    if digest is None:
        return "none: trained from the base"
    return f"{version.parent} (sha256:{digest})" if version.parent else f"sha256:{digest}"


def _short(value: object) -> str:
    words = _tags(value) if isinstance(value, dict) else str(value)
    text = " ".join(words.split()) if value not in (None, "") else "-"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def _mean_score(feedback: FeedbackSummary) -> str:
    """The mean score of a version's feedback, and how many pieces that is."""
    return "-" if feedback.mean_score is None else f"{feedback.mean_score:+.2f} ({feedback.count:,})"


def _accuracies(evaluation: Evaluation | None) -> tuple[str, str]:
    return (percent(evaluation.base.mean), percent(evaluation.expert.mean)) if evaluation else ("-", "-")
