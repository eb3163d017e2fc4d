"""``zhub releases classifier``."""

from typing import Annotated, Any

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.jobs import finish, show_job
from zhub.cli.output import note, stderr
from zhub.cli.submit import SettingsOption, training_method
from zhub.cli.uploads import uploading
from zhub.cli.watching import watch
from zhub.client.wire.training import ClassificationDataset

# A classifier may leave the base far behind: it is asked one thing only, answers with a letter, and nobody reads it. By
# steps of the usual length it does not get to letters at all on a base that was never taught to answer with one.
SETTINGS = (
    "step_kl=1.0",
    "n_steps=100",
    "eval_interval=25",
    "max_new_tokens=4",
    "general_questions=0",
    "long_rows=skip",
)


def classifier(
    name: Annotated[str, typer.Argument(help="The expert's name, and that of its dataset, without the project.")],
    experts: Annotated[list[str], typer.Argument(metavar="EXPERT…", help="Expert versions (project.expert@v1).")],
    other: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET", help="Prompts that are for none of them: a data file, or its id. Repeatable."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=10, help="Of each expert, at most.", show_default="200")] = None,
    seed: Annotated[int | None, typer.Option(help="Of which rows they are.", show_default="0")] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model to train on.", show_default="the experts' own")
    ] = None,
    settings: SettingsOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the job; exit with 7 if it fails.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an expert to say which of these experts a prompt is for, for releases with the strategy 'classifier'.

    It learns from the prompts that they were trained on, none held out and none of a file to evaluate with.
    """
    with connect(data_dir) as client, uploading(client) as uploads:
        others = [uploads.file_id(dataset, purpose="user_data") for dataset in other or ()]
        with stderr().status("The rows are being made"):
            made = client.files.classification(name, experts, others=others, rows_per_label=rows, seed=seed)
        uploads.keep()
        _tell(made, has_others=bool(others))
        request: dict[str, Any] = {
            "model": base or client.experts.get(experts[0]).base_model,
            "training_file": made.file,
            "suffix": name,
            "method": training_method("supervised", None, [*SETTINGS, *(settings or [])]),
        }
        job = client.jobs.create(**request)
        note(f"Submitted {job.id}." + ("" if wait else f" Follow it with `zhub jobs watch {job.id}`."))
        if wait:
            return finish(client, watch(client, job.id), as_json)
        show_job(job, as_json)


def _tell(made: ClassificationDataset, *, has_others: bool) -> None:
    rows = ", ".join(f"{label.rows} of {label.model}" for label in made.labels)
    note(f"{made.name}: {made.file} has {rows}.")
    if not has_others:
        note(
            "It has no prompts that are for none of them (--other), so the classifier will send such prompts to the "
            "expert that they look most like, unless it is not sure."
        )
