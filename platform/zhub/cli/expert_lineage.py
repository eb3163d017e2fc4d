"""``zhub experts lineage``: where a version comes from, and what came of it, as trees."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import note, put, show_json
from zhub.client.wire.experts import LineageRecord, LineageStep


def lineage(
    subject: Annotated[
        str, typer.Argument(help="A version (project.expert@v1, also a deleted one), or a dataset file (file-…).")
    ],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a version or a file comes from, and what came of it."""
    with connect(data_dir) as client:
        walked = client.experts.lineage(subject)
    if as_json:
        return show_json(walked)
    show_lineage(walked)


def show_lineage(walked: LineageRecord) -> None:
    """Two trees from the subject: what it comes from, with the nearest first, and what came of it."""
    origins: dict[str, list[LineageStep]] = {}
    results: dict[str, list[LineageStep]] = {}
    for edge in walked.edges:
        origins.setdefault(edge.to, []).append(edge)
        results.setdefault(edge.origin, []).append(edge)
    for title, steps, is_up in (("comes from", origins, True), ("came of it", results, False)):
        if walked.id in steps:
            tree = Tree(Text(f"{_label(walked, walked.id)}: {title}"))
            _grow(tree, walked, steps, walked.id, is_up, {walked.id})
            put(tree)
    if not walked.edges:
        note(f"Nothing is known of where {walked.id} comes from, and nothing came of it.")
    if walked.truncated:
        note("There is more than is shown.")


def _grow(
    tree: Tree,
    walked: LineageRecord,
    steps: Mapping[str, Sequence[LineageStep]],
    at: str,
    is_up: bool,
    seen: set[str],
) -> None:
    for edge in steps.get(at, ()):
        following = edge.origin if is_up else edge.to
        again = following in seen
        # Read along the edge: what was there first, what it is to the other.
        step = (
            f"{_label(walked, following)} {edge.relation} it"
            if is_up
            else f"{edge.relation} {_label(walked, following)}"
        )
        branch = tree.add(Text(step + (" …" if again and steps.get(following) else "")))
        if not again:
            seen.add(following)
            _grow(branch, walked, steps, following, is_up, seen)


def _label(walked: LineageRecord, node_id: str) -> str:
    node = next(node for node in walked.nodes if node.id == node_id)
    name = node.name if node.kind == "attempt" else f"{node.kind} {node.name}"
    if node.kind != "attempt" and node.name != node.id:
        name += f" ({node.id})"
    return name + ("" if node.state in ("ready", "processed", "succeeded") else f" [{node.state}]")
