"""``zhub experts z``."""

from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import note, percent, put, show_json, table
from zhub.client.wire.strengths import ExpertStrengths, Strength


def z(
    name: Annotated[str, typer.Argument(help="An expert version (project.expert@v1).")],
    against: Annotated[str | None, typer.Option(metavar="VERSION", help="Another one: how the two differ.")] = None,
    matrices: Annotated[bool, typer.Option("--matrices", help="Every matrix, and not only the layers.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much a version changes of each layer, and which other versions change the same."""
    with connect(data_dir) as client:
        shown = client.experts.strengths(name, against=against)
    if as_json:
        return show_json(shown)
    note(f"{shown.model} ({shown.kind}) changes {percent(shown.share)} of the weights' norm. {shown.shown}")
    if matrices:
        rows = [(matrix.name, *_strength(matrix)) for matrix in shown.matrices]
        put(table(("MATRIX", "CHANGE / WEIGHT", "|Z - 1|"), rows, whole=1))
    else:
        by_layer = [
            ("-" if layer.layer is None else str(layer.layer), str(layer.matrices), *_strength(layer))
            for layer in shown.layers
        ]
        put(table(("LAYER", "MATRICES", "CHANGE / WEIGHT", "|Z - 1|"), by_layer, whole=1))
    _show_similar(shown)


def _show_similar(shown: ExpertStrengths) -> None:
    if shown.similar:
        put()
        alike = [(other.model, f"{other.cosine:+.3f}") for other in shown.similar]
        put(table(("CHANGES ALIKE", "COSINE"), alike, whole=1))
    if shown.against is None:
        return
    put()
    if shown.against.cosine is None:
        note(f"{shown.model} and {shown.against.model} are not compared: only versions of the kind svf are.")
        return
    note(f"Against {shown.against.model}, the cosine of all changes is {shown.against.cosine:+.3f}.")
    rows = [
        (
            matrix.name,
            "-" if matrix.share is None else percent(matrix.share),
            "-" if matrix.cosine is None else f"{matrix.cosine:+.3f}",
        )
        for matrix in shown.against.matrices
    ]
    put(table(("MATRIX", "DIFFERENCE / WEIGHT", "COSINE"), rows, whole=1))


def _strength(strength: Strength) -> tuple[str, str]:
    return percent(strength.share), "-" if strength.distance is None else f"{strength.distance:.3g}"
