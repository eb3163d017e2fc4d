"""``zhub completions``."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from zhub.cli.chat import parse_pairs
from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, moment, note, put, show_json, table
from zhub.client.wire.completions import CompletionSettingsRecord, StoredCompletionRecord

SHOWN_CHARACTERS = 60

app = typer.Typer(help="Stored completions: answers that requests with `store` leave behind.", no_args_is_help=True)

CompletionArgument = Annotated[str, typer.Argument(help="Its id (chatcmpl-…), as the answer had it.")]


@app.command()
def enable(
    kept_days: Annotated[int | None, typer.Option(min=1, help="For how many days each is kept.")] = None,
    redact: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What is replaced before anything is stored: of secret,email,iban,card,ip,phone, or none.",
            show_default="all of them",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let requests with `store` be stored in this project. Needs a key with the scope project:write."""
    changes: dict[str, object] = {"enabled": True}
    if kept_days is not None:
        changes["kept_days"] = kept_days
    if redact is not None:
        changes["redact"] = [] if redact == "none" else [name.strip() for name in redact.split(",")]
    with connect(data_dir) as client:
        show_settings(client.completions.change_settings(**changes), as_json)


@app.command()
def disable(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Let no more requests be stored. What is stored stays until its days are over, or until `clear`."""
    with connect(data_dir) as client:
        show_settings(client.completions.change_settings(enabled=False), as_json)


@app.command()
def settings(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show whether this project stores completions, for how long, and what is redacted."""
    with connect(data_dir) as client:
        show_settings(client.completions.settings(), as_json)


@app.command()
def ls(
    model: Annotated[str | None, typer.Option(help="Only those asked of this model, as it was named.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only those with this pair; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List stored completions, the newest first."""
    with connect(data_dir) as client:
        completions = list(client.completions.list(model=model, metadata=parse_pairs(metadata or []), most=limit))
    if as_json:
        return show_json(completions)
    rows = [
        (entry.id, entry.model, _rating(entry), Text(_short(entry.answer)), moment(entry.created))
        for entry in completions
    ]
    put(table(("ID", "MODEL", "RATING", "ANSWER", "CREATED"), rows, whole=3))


@app.command()
def show(completion: CompletionArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show a stored completion: what was asked, what was answered, by whom, and how it was rated."""
    with connect(data_dir) as client:
        found = client.completions.get(completion)
        messages = list(client.completions.messages(completion))
    if as_json:
        return show_json(found.model_copy(update={"messages": messages}))
    said = [(message["role"], Text(_text_of(message))) for message in messages]
    answers = [(f"choice {choice['index']}", Text(_text_of(choice["message"]))) for choice in found.choices]
    about: list[tuple[str, str | Text]] = [
        ("model", found.model),
        ("experts", ", ".join(str(expert["name"]) for expert in found.experts) or "-"),
        ("rating", _rating(found)),
        ("metadata", ", ".join(f"{key}={value}" for key, value in found.metadata.items()) or "-"),
        ("created", moment(found.created)),
    ]
    put(facts([*about, *said, *answers]))


@app.command()
def rate(
    completion: CompletionArgument,
    score: Annotated[float, typer.Option(min=-1, max=1, help="From -1, the worst, to 1, the best.")],
    choice: Annotated[int, typer.Option(min=0, help="Which of its answers.")] = 0,
    reference: Annotated[str | None, typer.Option(help="The answer that would have been right.")] = None,
    comment: Annotated[str | None, typer.Option(help="A remark, kept with the feedback.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how good a stored answer was. It is feedback as any other: `zhub feedback ls` has it."""
    with connect(data_dir) as client:
        made = client.completions.rate(completion, score=score, choice=choice, reference=reference, comment=comment)
    if as_json:
        return show_json(made)
    note(f"Stored as {made.id}, for {made.model}.")


@app.command()
def rm(completion: CompletionArgument, data_dir: DataDirOption = None) -> None:
    """Delete a stored completion with the feedback on it. A dataset that was made of it stays as it is."""
    with connect(data_dir) as client:
        client.completions.delete(completion)
    note(f"{completion} is deleted.")


@app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, data_dir: DataDirOption = None
) -> None:
    """Delete all stored completions of this project, with the feedback on them."""
    if not yes:
        typer.confirm("All stored completions of the project, with the feedback on them?", abort=True, err=True)
    with connect(data_dir) as client:
        client.completions.delete_all()
    note("All stored completions of the project are deleted.")


def show_settings(said: CompletionSettingsRecord, as_json: bool) -> None:
    if as_json:
        return show_json(said)
    rows = [
        ("stores", "completions of requests with `store`" if said.enabled else "nothing"),
        ("kept", f"{said.kept_days} days"),
        ("redacts", ", ".join(said.redact) or "nothing"),
        ("bytes", f"{said.stored_bytes:,}"),
    ]
    put(facts(rows))


def _text_of(message: Mapping[str, Any]) -> str:
    """Its content; where there is none, its parts or its calls as JSON."""
    return message["content"] or json.dumps(message.get("content_parts") or message.get("tool_calls"))


def _rating(completion: StoredCompletionRecord) -> str:
    rating = completion.rating
    return "-" if rating is None else f"{rating.mean:+.2f} ({rating.count})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
