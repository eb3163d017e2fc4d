"""``zhub schedules refine``: small steps of an expert from its own rated answers, each behind a gate.

A name for what stands already: a dataset of stored completions, and a schedule that goes on from the version that
answers, with a bound on how far a run moves.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import note
from zhub.cli.schedules import show_schedule
from zhub.cli.submit import parse_settings, read_gate
from zhub.cli.uploads import uploading

# Steps in one direction move the square of their number times what one moves: 10² × 0.0001 = 0.01 nats a token.
BOUND = {"n_steps": 10, "step_kl": 0.0001}


def refine(
    name: Annotated[str, typer.Argument(help="Of the schedule, and of the dataset of rated answers.")],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="What answers, and is refined: project.expert@prod.")],
    at: Annotated[int, typer.Option(min=1, help="After so many answers that the query describes.")],
    gate: Annotated[Path, typer.Option(help="A JSON file with the gate that each version must pass to get the alias.")],
    where: Annotated[
        str | None,
        typer.Option(metavar="QUERY", help="Which answers.", show_default="expert:PROJECT.EXPERT rating:up"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A hyper-parameter of each run.",
            show_default="n_steps 10, step_kl 1e-4",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine an expert from its rated answers: whenever so many have come, a few small steps, then the gate.

    Going back is one command: `zhub experts promote` with the version before.
    """
    expert, sign, _alias = alias.partition("@")
    if not sign or "." not in expert:
        raise typer.BadParameter(f"expected project.expert@alias, found '{alias}'", param_hint="ALIAS")
    query = where or f"expert:{expert} rating:up"
    training: dict[str, Any] = {
        "model": alias,
        "suffix": expert.partition(".")[2],
        "method": {"type": "supervised", "supervised": {"hyperparameters": BOUND | parse_settings(settings or [])}},
    }
    with connect(data_dir) as client, uploading(client) as uploads:
        training["promotion"] = read_gate(uploads, gate)
        made_of = client.completions.make_dataset(name, where=query)
        assert made_of.file is not None
        client.files.wait_processed(made_of.file)
        made = client.schedules.create(
            name=name,
            dataset=name,
            training=training,
            on_new_data=True,
            on_completions=at,
            completions_where=query,
            overlap="buffer_one",
        )
        uploads.keep()
    note(f"The first version of '{name}' is there; `zhub schedules run {name}` trains on it at once.")
    show_schedule(made, [], as_json)
