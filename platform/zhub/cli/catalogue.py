"""``zhub experts search``, ``card`` and ``neighbours``."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, table
from zhub.client.wire.catalogue import CatalogueEntry, Facets
from zhub.errors import SearchQueryError
from zhub.registry import search_query
from zhub.registry.search_query import Term

SHOWN_CHARACTERS = 60


def search(
    query: Annotated[
        str, typer.Argument(help="Such as 'sorting base:tiny -tag:stage=trial suite:gsm8k accuracy>=0.7'.")
    ] = "",
    sort: Annotated[
        Literal["best", "newest", "tokens", "feedback"] | None,
        typer.Option(
            help="What comes first; best: by the first metric of the query.", show_default="best, else newest"
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    facets: Annotated[
        bool, typer.Option("--facets", help="How many matches have which base, tag and the like.")
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search the catalogue: words, owner: project: base: tag: alias: adapter: suite: dataset: visibility:, metrics.

    Terms hold together, '-' before one turns it round (a query that begins with '-' stands after '--'), and a metric is
    of the suite: before it, else of the held-out rows of the training.
    """
    terms = _read(query)
    with connect(data_dir) as client:
        found = client.catalogue.search(query, sort=sort, limit=limit, facets=facets)
    if as_json:
        return show_json(found)
    metric = search_query.ranking_metric(terms)
    columns = ("NAME", "ALIASES", "BASE", "KIND", _heading(metric), "TOKENS", "FEEDBACK", "CREATED")
    put(table(columns, [_row(entry, metric) for entry in found.data], whole=1))
    if found.nothing:
        note(found.nothing)
    if found.next:
        note(f"There are more; --limit {2 * limit} shows them.")
    if found.facets is not None:
        put()
        _show_facets(found.facets)


def card(
    name: Annotated[str, typer.Argument(help="An expert (project.expert), or a version (project.expert@v1).")],
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the text of the card: Markdown; - reads standard input.")
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(metavar="TITLE=URL", help="The card's links instead of those it has; repeatable."),
    ] = None,
    expected: Annotated[int | None, typer.Option(help="Only if the card is at this revision.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Who wrote what on it, newest first.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the card of an expert: what zhub knows of it, and what people wrote; or write it."""
    links = None if link is None else [_link(pair) for pair in link]
    text = None if write is None else _text(write)
    with connect(data_dir) as client:
        if history:
            revisions = list(client.catalogue.card_revisions(name))
            if as_json:
                return show_json(revisions)
            rows = [(str(one.revision), moment(one.created_at), one.by, _short(one.text)) for one in revisions]
            return put(table(("REVISION", "AT", "BY", "TEXT"), rows, whole=3))
        if text is None and links is None:
            shown = client.catalogue.card(name)
        else:
            shown = client.catalogue.write_card(name, text=text, links=links, expected=expected)
            note(f"The card of {shown.expert} is at revision {shown.revision}.")
    if as_json:
        return show_json(shown)
    typer.echo(shown.markdown, nl=False)


def neighbours(
    name: Annotated[str, typer.Argument(help="A version (project.expert@v1), or an expert (project.expert).")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which versions change the same basis alike, and which were trained on the same data."""
    with connect(data_dir) as client:
        near = client.catalogue.neighbours(name)
    if as_json:
        return show_json(near)
    alike = [(one.model, "changes alike", "-" if one.cosine is None else f"{one.cosine:+.3f}") for one in near.alike]
    of_dataset = [(one.model, "same data", "") for one in near.same_dataset]
    put(table(("NAME", "NEAR BECAUSE", "COSINE"), [*alike, *of_dataset], whole=1))


def _read(query: str) -> list[Term]:
    """The terms of a query; one that cannot be read is shown with the place at fault."""
    try:
        return search_query.parse(query)
    except SearchQueryError as error:
        note("".join(character if character.isprintable() else " " for character in query))
        note(f"{' ' * error.position}^")
        raise


def _heading(metric: Term | None) -> str:
    return "ACCURACY" if metric is None else f"{metric.suite} {metric.name}".upper()


def _row(entry: CatalogueEntry, metric: Term | None) -> tuple[str, ...]:
    suite, name = (metric.suite, metric.name) if metric else (search_query.HELD_OUT, "accuracy")
    value = next((one.value for one in entry.metrics if (one.suite, one.metric) == (suite, name)), None)
    marks = [*(f"@{alias}" for alias in entry.aliases), *["archived"] * entry.archived]
    score = entry.feedback.mean_score
    return (
        entry.id,
        " ".join(marks) or "-",
        entry.base_model,
        entry.adapter,
        "-" if value is None else f"{value:.3f}",
        f"{entry.used_tokens:,}",
        "-" if score is None else f"{score:+.2f} ({entry.feedback.count:,})",
        moment(entry.created_at),
    )


def _show_facets(facets: Facets) -> None:
    at_least = "" if facets.is_whole else " of the first matches"
    rows = [
        (name, f"{name}:{one.value}", str(one.count))
        for name in ("base", "adapter", "alias", "suite", "tag", "visibility")
        for one in getattr(facets, name)
    ]
    put(table(("FACET", "TERM", f"COUNT{at_least.upper()}"), rows, whole=2))


def _text(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{path} cannot be read as text: {exc}.") from exc


def _link(pair: str) -> dict[str, str]:
    title, is_pair, url = pair.partition("=")
    if not is_pair:
        raise typer.BadParameter(f"'{pair}': expected TITLE=URL.")
    return {"title": title, "url": url}


def _short(text: str) -> str:
    line = " ".join(text.split()) or "-"
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
