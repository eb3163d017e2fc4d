"""``zhub experts deprecate``, ``yank``, ``restore``, ``needs`` and ``rm``: what becomes of a published version."""

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import note, put, show_json, table
from zhub.client.wire.experts import ExpertVersion, NeedRecord

VersionArgument = Annotated[str, typer.Argument(help="A version (project.expert@v1).")]
NameArgument = Annotated[str, typer.Argument(help="A version (project.expert@v1), or an expert (project.expert).")]
ReasonOption = Annotated[str | None, typer.Option(help="Why; whoever asks the version is told that.")]
DetachOption = Annotated[
    bool,
    typer.Option(
        "--detach",
        help="Detach what needs it: aliases are removed, jobs and gates cancelled, schedules paused. "
        "`needs` lists it first.",
    ),
]


def deprecate(
    version: VersionArgument,
    successor: Annotated[str, typer.Option(help="The version to use in its place; its answers name it.")],
    reason: ReasonOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that another version shall be used in place of this one, which goes on answering."""
    _set_state(version, data_dir, as_json, "deprecated", reason=reason, successor=successor)


def yank(
    version: VersionArgument,
    reason: Annotated[str, typer.Option(help="Why; whoever asks the version is told that.")],
    successor: Annotated[str | None, typer.Option(help="The version to use in its place.")] = None,
    detach: DetachOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a version out of use: it answers nothing, and nothing begins from it. `restore` takes that back."""
    _set_state(version, data_dir, as_json, "yanked", reason=reason, successor=successor, detach=detach)


def restore(version: VersionArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Take back that a version is deprecated or yanked."""
    _set_state(version, data_dir, as_json, "ready")


def needs(
    name: NameArgument,
    action: Annotated[Literal["delete", "yank"], typer.Option(help="What it would be in the way of.")] = "delete",
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what needs a version or an expert: aliases, releases, gates, jobs, schedules."""
    with connect(data_dir) as client:
        listed = client.experts.needs(name, action=action)
    if as_json:
        return show_json(listed)
    if not listed:
        return note(f"Nothing needs {name}.")
    show_needs(listed)


def rm(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    detach: DetachOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Delete a version, or an expert with all its versions. Their rows and lineage stay, their files do not."""
    with connect(data_dir) as client:
        what = name if "@" in name else f"{name} with its {client.experts.get_expert(name).versions} versions"
        if not yes:
            if detach and (listed := client.experts.needs(name)):
                show_needs(listed)
                note("These are detached.")
            typer.confirm(f"Delete {what} for good?", abort=True, err=True)
        client.experts.delete(name, detach=detach)
    note(f"{what} is deleted.")


def show_needs(listed: Sequence[NeedRecord]) -> None:
    put(table(("WHAT", "NAME", "NEEDS"), [(need.kind, need.id, need.needed) for need in listed], whole=3))


def state_facts(version: ExpertVersion) -> list[tuple[str, str]]:
    """What is not as it should be with a version; nothing of one that is ready."""
    told = []
    if version.state != "ready":
        use = f"Use {version.successor}." if version.successor else ""
        why = " ".join(word for word in (version.state_reason, use) if word)
        told.append(("state", f"{version.state}: {why}" if why else version.state))
    if version.damage:
        told.append(("damage", version.damage))
    return told


def _set_state(version: str, data_dir: DataDirOption, as_json: bool, state: str, **said: str | bool | None) -> None:
    with connect(data_dir) as client:
        changed = client.experts.set_state(version, state, **said)
    if as_json:
        return show_json(changed)
    note(f"{changed.id} is {changed.state}." + (f" Use {changed.successor}." if changed.successor else ""))
