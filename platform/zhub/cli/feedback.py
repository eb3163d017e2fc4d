"""``zhub feedback``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.listings import ORDERS, SearchOption, SinceOption, SortOption
from zhub.cli.output import moment, note, put, show_json, table
from zhub.cli.submit import read_json

SHOWN_CHARACTERS = 40

app = typer.Typer(help="Feedback: how good the answers of experts were.", no_args_is_help=True)

WhichArgument = Annotated[
    str | None,
    typer.Argument(help="An expert (project.expert), or one version of it.", show_default="those of the project"),
]


@app.command()
def add(
    model: Annotated[str, typer.Argument(help="The version that answered (project.expert@v1), or an alias.")],
    completion: Annotated[str, typer.Option(help="The answer that was given.")],
    score: Annotated[float, typer.Option(min=-1, max=1, help="From -1, the worst, to 1, the best.")],
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    messages: Annotated[
        Path | None, typer.Option(help="A JSON file with the messages before the answer, instead of --prompt.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The answer that would have been right.")] = None,
    comment: Annotated[str | None, typer.Option(help="A remark, kept with the feedback.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how good an answer of an expert was."""
    if (prompt is None) == (messages is None):
        raise typer.BadParameter("give either --prompt or --messages", param_hint="--prompt")
    conversation: Any = [{"role": "user", "content": prompt}]
    if messages is not None:
        conversation = read_json(messages, "list of messages")
    with connect(data_dir) as client:
        made = client.feedback.create(
            model=model, messages=conversation, completion=completion, score=score, reference=reference, comment=comment
        )
    if as_json:
        return show_json(made)
    note(f"Stored as {made.id}, for {made.model}.")


@app.command()
def ls(
    model: WhichArgument = None,
    min_score: Annotated[float | None, typer.Option(min=-1, max=1, help="Only scores from this one on.")] = None,
    max_score: Annotated[float | None, typer.Option(min=-1, max=1, help="Only scores up to this one.")] = None,
    search: SearchOption = None,
    since: SinceOption = None,
    sort: SortOption = "newest",
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List feedback, the newest first. `zhub experts ls` has the mean score of each version."""
    with connect(data_dir) as client:
        listed = client.feedback.list(
            model,
            most=limit,
            min_score=min_score,
            max_score=max_score,
            search=search,
            since=since,
            order=ORDERS[sort],
        )
        pieces = list(listed)
    if as_json:
        return show_json(pieces)
    rows = [
        (
            piece.id,
            piece.model,
            f"{piece.score:+.2f}",
            *map(_short, (piece.messages[-1]["content"], piece.completion, piece.reference or "-")),
            moment(piece.created_at),
        )
        for piece in pieces
    ]
    put(table(("ID", "MODEL", "SCORE", "PROMPT", "COMPLETION", "REFERENCE", "CREATED"), rows, whole=3))


@app.command()
def export(
    model: WhichArgument = None,
    column: Annotated[str, typer.Option(help="The column that the right answer goes to.")] = "answer",
    everything: Annotated[
        bool, typer.Option("--all", help="Also prompts without a known right answer; their rows lack the column.")
    ] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Print prompts with their right answers as dataset rows, to append to a file. Equal rows are printed once."""
    written: set[str] = set()
    left_out = 0
    with connect(data_dir) as client:
        for piece in client.feedback.list(model):
            if piece.reference is None and not everything:
                left_out += 1
                continue
            row: dict[str, Any] = {"messages": piece.messages}
            if piece.reference is not None:
                row[column] = piece.reference
            line = json.dumps(row, ensure_ascii=False)
            if line not in written:
                written.add(line)
                typer.echo(line)
    note(f"{len(written):,} rows; {left_out:,} pieces of feedback have no right answer and were left out.")


@app.command()
def rm(feedback_id: str, data_dir: DataDirOption = None) -> None:
    """Delete a piece of feedback."""
    with connect(data_dir) as client:
        client.feedback.delete(feedback_id)
    note(f"{feedback_id} is deleted.")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
