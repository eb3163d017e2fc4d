"""The rows that a classifier learns from: prompts of experts with the question, and the letter that stands for each."""

import json
import random
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zhub.datasets.files import validation_report
from zhub.datasets.rows import MAX_ROW_BYTES, all_rows, value_digest
from zhub.datasets.validation import validate
from zhub.errors import TrainingError
from zhub.manifest import sha256_file
from zhub.registry.classification import OTHER, ClassificationReport
from zhub.specs import ClassificationSpec, PromptFiles, StoredFile
from zhub.storage.keys import dataset_key
from zhub.storage.object_store import ObjectStore, fetch, open_store, put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.model.question import CLASSIFIER_QUESTION, answers_for, with_question
from zhub_workers.training.splits import split_dataset

Prompts = dict[bytes, list[dict[str, str]]]
"""The messages of prompts by their digests."""


def run(attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
    """Make the rows, store them, and return what the job's row needs.

    Raises:
        TrainingError: nothing is left of the prompts of a label.
    """
    spec = ClassificationSpec.model_validate(attempt.spec)
    store = open_store(attempt.store_url)
    local = partial(_local, store, attempt.cache_dir)
    excluded = {digest for file in spec.excluded for digest in _digests(local(file))}
    prompts: dict[str, Prompts] = {}
    for label in spec.labels:
        context.raise_if_stopped()
        prompts[label.label] = _prompts(label, local)
    others: Prompts = {}
    for files in spec.others:
        context.raise_if_stopped()
        others |= _prompts(files, local)
    rows = labelled_rows(prompts, others, excluded=excluded, rows_per_label=spec.rows_per_label, seed=spec.seed)
    with tempfile.TemporaryDirectory(dir=attempt.cache_dir) as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
        sha256 = sha256_file(path)
        put_path(store, dataset_key(attempt.org_id, sha256), path)
        with path.open("rb") as content:
            validation = validation_report(validate(content))
        counts = {label: sum(row["label"] == label for row in rows) for label in [*prompts, OTHER]}
        report = ClassificationReport(size_bytes=path.stat().st_size, sha256=sha256, rows=counts, validation=validation)
    told = ", ".join(f"{count} {label}" for label, count in counts.items())
    context.emit("info", f"Rows for a classifier: {told}.", {"type": "rows", **counts})
    return report.model_dump(mode="json")


def labelled_rows(
    prompts: Mapping[str, Prompts],
    others: Prompts,
    *,
    excluded: Collection[bytes],
    rows_per_label: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of all labels, in the order of ``prompts``, mixed: of each label as many, of ``others`` no more than that.

    A prompt that several labels have says nothing, and is left out; so is one of ``excluded``.

    Raises:
        TrainingError: nothing is left of a label's prompts.
    """
    answers = answers_for(len(prompts))
    seen: dict[bytes, int] = {}
    for of_label in (*prompts.values(), others):
        for digest in of_label:
            seen[digest] = seen.get(digest, 0) + 1
    unsuitable = {digest for digest, count in seen.items() if count > 1} | set(excluded)
    usable = {
        label: _rows(of_label, unsuitable, label, answer)
        for (label, of_label), answer in zip([*prompts.items(), (OTHER, others)], answers, strict=True)
    }
    if empty := [label for label in prompts if not usable[label]]:
        raise TrainingError(
            f"No prompt is left that is {empty[0]}'s alone: each is also another label's, too long, or in a file to "
            "evaluate with. Leave that expert out."
        )
    count = min(rows_per_label, *(len(usable[label]) for label in prompts))
    chance = random.Random(seed)
    rows = [row for of_label in usable.values() for row in chance.sample(of_label, min(count, len(of_label)))]
    chance.shuffle(rows)
    return rows


def _rows(prompts: Prompts, unsuitable: Collection[bytes], label: str, answer: str) -> Sequence[dict[str, Any]]:
    rows = (
        {
            "messages": [*with_question(messages, CLASSIFIER_QUESTION), {"role": "assistant", "content": answer}],
            "label": label,
        }
        for digest, messages in prompts.items()
        if digest not in unsuitable
    )
    return [row for row in rows if len(json.dumps(row)) <= MAX_ROW_BYTES]


def _prompts(files: PromptFiles, local: Callable[[StoredFile], Path]) -> Prompts:
    """The prompts of the rows that an expert is trained on, and of none that are held out."""
    validation = local(files.validation) if files.validation else None
    trained = split_dataset(local(files.training), validation)["train"]
    return {value_digest(row.prompt): row.prompt for row in trained}


def _digests(path: Path) -> set[bytes]:
    with path.open("rb") as content:
        return {value_digest(row.prompt) for row in all_rows(content)}


def _local(store: ObjectStore, cache_dir: Path, file: StoredFile) -> Path:
    return fetch(store, file.key, cache_dir / "datasets" / file.sha256, sha256=file.sha256)
