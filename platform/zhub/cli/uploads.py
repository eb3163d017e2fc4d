"""Files that commands upload: converted where they are no rows, and deleted again where the command changes nothing."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from zhub.cli.output import note, stderr, table
from zhub.client import Client
from zhub.client.wire.training import DatasetFile
from zhub.datasets.conversion.converting import Conversion
from zhub.datasets.conversion.mapping import ChosenColumns, Method
from zhub.errors import ApiError, UnavailableError

SHOWN_CHARACTERS = 60  # of each text of an example

PromptColumnOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The column with the prompt.", show_default="known by its name"),
]
AnswerColumnOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The column with the right answer.", show_default="known by its name"),
]
PromptTemplateOption = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="The prompt as text with columns in it, as in '{{item.question}} Be brief.'"),
]
SkipIncompleteOption = Annotated[
    bool, typer.Option("--skip-incomplete", help="Leave out records without a prompt or an answer.")
]


class Uploads:
    """What a command has uploaded. Files that were not there before are deleted at its end, unless they are kept."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._new: list[str] = []
        self._converted: set[str] = set()

    def is_converted(self, file_id: str) -> bool:
        """Whether its lines are not those that the user has on disk."""
        return file_id in self._converted

    def push(
        self,
        path: Path,
        *,
        purpose: str,
        method: Method | None = None,
        chosen: ChosenColumns | None = None,
        skip_incomplete: bool = False,
    ) -> DatasetFile:
        """Upload the rows of a file, and wait until they are checked. Only with ``fine-tune`` are they new data."""

        conversions: list[Conversion] = []

        def show(conversion: Conversion) -> None:
            conversions.append(conversion)
            spinner.stop()
            show_conversion(path.name, conversion)
            spinner.start()

        with stderr().status(f"{path.name}: uploading") as spinner:
            file = self.client.files.upload_converted(
                path, purpose=purpose, method=method, chosen=chosen, skip_incomplete=skip_incomplete, converted=show
            )
            if file.is_new:
                self._new.append(file.id)
            if conversions:
                self._converted.add(file.id)
            spinner.update(f"{path.name}: its rows are being checked")
            checked = self.client.files.wait_processed(file.id)
        if repeated := (checked.validation or {}).get("duplicate_count"):
            note(
                f"{path.name}: {repeated:,} rows repeat others. They are used once; see the hyper-parameter "
                "'duplicates'."
            )
        return checked

    def file_id(
        self,
        dataset: str,
        *,
        purpose: str,
        folder: Path = Path(),
        method: Method | None = None,
        chosen: ChosenColumns | None = None,
        skip_incomplete: bool = False,
    ) -> str:
        """The id of an uploaded file, or of one that is uploaded for this ``purpose`` from a path in the ``folder``."""
        path = folder / dataset
        if dataset.startswith("file-") and not path.exists():
            return dataset
        return self.push(path, purpose=purpose, method=method, chosen=chosen, skip_incomplete=skip_incomplete).id

    def keep(self) -> None:
        """The command has done what they were uploaded for."""
        self._new.clear()

    def delete_unkept(self) -> None:
        for file_id in self._new:
            try:
                self.client.files.delete(file_id)
            except (ApiError, UnavailableError) as exc:
                # Somebody else may use it by now. The reason why the command ended is told either way.
                note(f"{file_id}, which was uploaded for this, is still there: {exc}")


@contextmanager
def uploading(client: Client) -> Iterator[Uploads]:
    """Uploads of a command: what it does not keep is deleted at the end, whatever ends it."""
    uploads = Uploads(client)
    try:
        yield uploads
    finally:
        uploads.delete_unkept()


def show_conversion(name: str, conversion: Conversion) -> None:
    """Say on standard error what a file was, what became of its columns, and how its first records look now."""
    note(f"{name} is {conversion.source}, {_count(conversion.row_count, 'row')}. Its columns become:")
    console = stderr()
    console.print(table(("FROM", "TO"), conversion.parts))
    if conversion.blank_count:
        note(f"{_count(conversion.blank_count, 'blank record')} left out.")
    if conversion.incomplete_count:
        note(f"{_count(conversion.incomplete_count, 'record')} without a prompt or an answer left out.")
    for before, after in conversion.examples:
        note(f"  {_shown(before)}\n→ {_shown(after)}")


def _shown(values: Mapping[str, Any]) -> str:
    return json.dumps(_shortened(values), ensure_ascii=False)


def _shortened(value: Any) -> Any:
    """The value with each long text in it cut."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}…"
    if isinstance(value, Mapping):
        return {name: _shortened(inner) for name, inner in value.items()}
    return [_shortened(inner) for inner in value] if isinstance(value, list) else value


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
