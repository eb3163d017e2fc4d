"""``zhub experts export``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import INTERRUPTED, JOB_FAILED
from zhub.cli.output import note, show_json, size
from zhub.client.expert_exports import check_free

Format = Literal["merged", "lora", "psoft", "zhub"]


def export(
    name: Annotated[str, typer.Argument(help="A version (project.expert@v1), or an alias (project.expert@prod).")],
    to: Annotated[Path, typer.Option(help="A new directory; with --format zhub a new file.")],
    as_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="merged: a model for transformers. lora: a LoRA for PEFT and vLLM. psoft: PEFT adapters that are "
            "exactly an svf expert. zhub: one file for another zhub.",
        ),
    ],
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Of a LoRA, at most.", show_default="the expert's own, or 64 of svf experts"),
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="Which workers write it.", show_default="default")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version in a form that other software reads, and say how exact it is."""
    check_free(to)
    with connect(data_dir) as client:
        record = client.exports.create(name, as_format, rank=rank, cluster=cluster)
        try:
            record = client.exports.wait_ended(record.id)
        except KeyboardInterrupt:
            note(f"{record.id} goes on. {client.exports.reason(record.id)} The same command fetches it then.")
            raise typer.Exit(INTERRUPTED) from None
        if record.files is None:
            note(f"error: {record.error['message']}" if record.error else f"The export was {record.status}.")
            raise typer.Exit(JOB_FAILED)
        client.exports.fetch(record, to)
    total = sum(file.size_bytes for file in record.files)
    files = f"{len(record.files)} files" if len(record.files) > 1 else "one file"
    note(f"{record.model} is in {to.absolute()}: {files}, {size(total)}; all digests match.")
    for sentence in sentences(record.format, record.facts or {}):
        note(sentence)
    if as_json:
        show_json(record)
    else:
        typer.echo(str(to.absolute()))


def sentences(as_format: str, told: Mapping[str, Any]) -> list[str]:
    """What was measured of an export, for people."""
    match as_format:
        case "merged":
            error = told["rounding_error"]
            if not error["of_change"]:
                return ["The dtype of the base's files takes the expert's weights as they are."]
            return [
                f"Rounded to the dtype of the base's files the weights are off by {error['of_weights']:.2g} of their "
                f"norm, and what the expert adds to them by {error['of_change']:.2g} of its own."
            ]
        case "lora":
            error = told["error"]
            left_out = (
                f"{error['weights']:.2g} of the change is left out" if error["weights"] else "nothing is left out"
            )
            measured = f"the logits are off by {error['logits']:.2g} of the distance between base and expert"
            away = f"the answers by {error['mean_kl']:.2g} nats a token (at most {error['max_kl']:.2g})"
            near = [] if error["weights"] < 0.1 else ["A higher --rank comes nearer."]
            return [f"Rank {told['rank']}: {left_out}. On a few prompts {measured}, {away}.", *near]
        case "psoft" if len(told["adapters"]) > 1:
            return [f"It is {len(told['adapters'])} adapters to be active together; its README.md says how."]
        case _:
            return []
