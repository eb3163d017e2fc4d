"""``zhub chat``."""

import sys
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, connect
from zhub.cli.output import note
from zhub.client.wire.chat import ChatPiece


def chat(
    message: Annotated[str, typer.Argument(help="The question.")],
    model: Annotated[str, typer.Option(help="An expert version, a base model, or 'auto'.")] = "auto",
    mix: Annotated[
        list[str] | None, typer.Option(metavar="EXPERT=WEIGHT", help="An expert of a mixture; may be repeated.")
    ] = None,
    stream: Annotated[
        bool | None, typer.Option(help="Print the answer while it is generated.", show_default="on a terminal")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the most likely token.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Ask one question. The answer goes to standard output; who answered, and why, to standard error."""
    mixture = parse_mixture(mix or [])
    with connect(data_dir) as client:
        if stream if stream is not None else sys.stdout.isatty():
            shown: ChatPiece | None = None
            for piece in client.chat_stream(
                model, message, mixture=mixture, temperature=temperature, max_tokens=max_tokens
            ):
                if shown is None:
                    note(speaker(piece))
                shown = piece
                typer.echo(piece.text, nl=False)
            typer.echo()
        else:
            answer = client.chat(model, message, mixture=mixture, temperature=temperature, max_tokens=max_tokens)
            note(speaker(answer))
            typer.echo(answer.text)


def parse_mixture(mix: list[str]) -> dict[str, float]:
    """``name=weight`` pairs; the weight of a bare name is 1."""
    mixture = {}
    for part in mix:
        name, equals, text = part.partition("=")
        try:
            mixture[name] = float(text) if equals else 1.0
        except ValueError:
            raise typer.BadParameter(f"expected EXPERT=WEIGHT, found '{part}'", param_hint="--mix") from None
    return mixture


def speaker(piece: ChatPiece) -> str:
    """Who answers with which weight, and why."""
    experts = " + ".join(f"{chosen.weight:g} × {chosen.name}" for chosen in piece.experts)
    return f"[{piece.routing.strategy}] {experts or piece.routing.base_model}: {piece.routing.reason}"
