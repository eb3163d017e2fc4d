"""``zhub chat``."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from zhub.answering import Strategy
from zhub.cli.connection import DataDirOption, connect
from zhub.cli.output import note
from zhub.cli.submit import read_json
from zhub.client import ChatOptions
from zhub.client.wire.chat import ChatPiece


def chat(
    message: Annotated[str, typer.Argument(help="The question.")],
    model: Annotated[str, typer.Option(help="An expert version, a release, a base model, or 'auto'.")] = "auto",
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPERT=WEIGHT[:LAYERS]",
            help="An expert and how far it is followed (1: as trained, 0: the base, 2: twice as far), in some layers "
            "alone as in NAME=1:0-7,12; may be repeated.",
        ),
    ] = None,
    strategy: Annotated[
        Strategy | None, typer.Option(help="How 'auto' or a release chooses, in place of its own way.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Who asks: decides who gets the canary of a release's alias.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message, before the question.")] = None,
    stream: Annotated[
        bool | None, typer.Option(help="Print the answer while it is generated.", show_default="on a terminal")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0: always the most likely token.")] = None,
    top_p: Annotated[
        float | None, typer.Option(max=1, help="Choose among the likeliest tokens that have this probability together.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat what was sampled with the same seed.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
    ] = None,
    schema: Annotated[Path | None, typer.Option(metavar="FILE", help="A JSON schema that the answer must fit.")] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Keep the answer as a stored completion: `zhub completions`.")
    ] = False,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="By which a stored completion is found again; may be repeated."),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Ask one question. The answer goes to standard output; who answered, and why, to standard error."""
    mixture, layers = parse_mixture(mix or [])
    options: ChatOptions = {
        "mixture": mixture,
        "layers": layers,
        "strategy": strategy,
        "user": user,
        "system": system,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "stop": stop or None,
        "schema": None if schema is None else read_json(schema, "schema"),
    }
    if store:
        options["store"] = True
    if metadata:
        options["metadata"] = parse_pairs(metadata)
    with connect(data_dir) as client:
        if stream if stream is not None else sys.stdout.isatty():
            return _print_stream(client.chat_stream(model, message, **options), stored=store)
        answer = client.chat(model, message, **options)
    _introduce(answer, stored=store)
    typer.echo(answer.text)


def _print_stream(pieces: Iterator[ChatPiece], *, stored: bool) -> None:
    for index, piece in enumerate(pieces):
        if index == 0:
            _introduce(piece, stored=stored)
        typer.echo(piece.text, nl=False)
    typer.echo()


def _introduce(piece: ChatPiece, *, stored: bool) -> None:
    note(speaker(piece))
    if stored:
        note(f"Stored as {piece.answer_id}.")


def parse_pairs(given: list[str]) -> dict[str, str]:
    """``KEY=VALUE``, each."""
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"expected KEY=VALUE, found '{text}'", param_hint="--metadata")
        pairs[key] = value
    return pairs


def parse_mixture(mix: list[str]) -> tuple[dict[str, float], dict[str, list[int | str]]]:
    """``name=weight[:layers]``; the weight of a bare name is 1. Returns weights, and layers where some are given."""
    weights: dict[str, float] = {}
    layers: dict[str, list[int | str]] = {}
    for part in mix:
        name, equals, text = part.partition("=")
        weight, colon, ranges = text.partition(":")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            expected = f"expected EXPERT=WEIGHT or EXPERT=WEIGHT:LAYERS, found '{part}'"
            raise typer.BadParameter(expected, param_hint="--mix") from None
        if colon:
            layers[name] = list(ranges.split(","))
    return weights, layers


def speaker(piece: ChatPiece) -> str:
    """Who answers with which weight, and why."""
    experts = " + ".join(f"{chosen.weight:g} × {chosen.name}{_in_layers(chosen.layers)}" for chosen in piece.experts)
    release = f" of {piece.routing.release}" if piece.routing.release else ""
    told = "".join(f"\nwarning: {warning}" for warning in piece.routing.warnings)
    return f"[{piece.routing.strategy}{release}] {experts or piece.routing.base_model}: {piece.routing.reason}{told}"


def _in_layers(layers: Sequence[int] | None) -> str:
    if layers is None:
        return ""
    return f" (layers {', '.join(map(str, layers))})" if len(layers) > 1 else f" (layer {layers[0]})"
