"""Import: files of an expert that was made elsewhere become the files of a version, once it was read and tried."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import zhub
from zhub.datasets.splits import prompt_position
from zhub.errors import UnsupportedAdapterError, ZhubError
from zhub.expert_file import PROBE_FILE
from zhub.manifest import (
    CHANGE_FILE,
    MANIFEST_FILE,
    ROUTING_FILE,
    STRENGTH_FILE,
    Z_FILE,
    FileEntry,
    Manifest,
    Origin,
    Probe,
    file_entry,
)
from zhub.registry.peft_config import WEIGHTS_FILE
from zhub.specs import ImportSpec
from zhub.storage.object_store import ObjectStore, fetch, put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.evaluation.grading import encode_rows
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile, read_expert, read_routing, write_expert, write_routing
from zhub_workers.model.changes import read_change
from zhub_workers.model.peft_weights import read_lora
from zhub_workers.model.probe import try_expert
from zhub_workers.model.probe_file import check_probe
from zhub_workers.model.routing import Centroid, make_centroid, prompt_embeddings
from zhub_workers.model.strength import write_strengths
from zhub_workers.training.job import MAX_ROUTING_PROMPTS
from zhub_workers.training.splits import split_dataset


def run_import(
    spec: ImportSpec,
    model: AdaptedModel,
    attempt: Attempt,
    context: AttemptContext,
    store: ObjectStore,
    *,
    hardware: str,
) -> dict[str, Any]:
    """Store the version's files, and return what the job's row needs.

    Raises:
        UnsupportedAdapterError: the files do not fit the base, answer with nothing finite, or otherwise than they did.
        TrainingError: rows of the dataset that cannot be used.
    """
    with tempfile.TemporaryDirectory(dir=attempt.cache_dir) as root:
        sent, made = Path(root) / "sent", Path(root) / "made"
        for directory in (sent, made):
            directory.mkdir()
        for file in spec.files:
            fetch(store, file.key, sent / file.name, sha256=file.sha256)
        expert = _read(spec, sent, model)
        context.raise_if_stopped()
        fingerprint = model.basis.fingerprint
        write_expert(made / Z_FILE, expert, basis_fingerprint=fingerprint, base_model=spec.base.name)
        sha256 = file_entry(made / Z_FILE).sha256
        change = read_change(made / Z_FILE, sha256=sha256, adapted=model)
        probe = try_expert(model, change)
        if (sent / PROBE_FILE).exists():
            off = check_probe(sent / PROBE_FILE, model, change)
            context.emit("info", f"It answers as it did where it was exported, to within {off:.2g} nats.")
        write_strengths(made, change, model)
        _tell(spec, probe, context)
        if spec.dataset is not None:
            write_routing(
                made / ROUTING_FILE, _centroid(spec, model, attempt, context, store), basis_fingerprint=fingerprint
            )
        elif (sent / ROUTING_FILE).exists():
            _keep_routing(sent / ROUTING_FILE, made / ROUTING_FILE, fingerprint)
        else:
            context.emit(
                "warn",
                "It answers by its name only: `auto` knows no prompts of it. Import it with a dataset to say which.",
            )
        manifest = _manifest(spec, expert, probe, made, attempt, hardware)
        (made / MANIFEST_FILE).write_bytes(manifest.canonical())
        # The manifest last: a prefix that has one is whole.
        for name in (*(file.name for file in manifest.files), MANIFEST_FILE):
            put_path(store, f"{attempt.key_prefix}/{name}", made / name)
    return {"manifest": manifest.model_dump(mode="json"), "key_prefix": attempt.key_prefix, "trained_tokens": 0}


def _read(spec: ImportSpec, directory: Path, model: AdaptedModel) -> ExpertFile:
    if spec.lora is not None:
        return read_lora(directory / WEIGHTS_FILE, spec.lora, model)
    path = directory / Z_FILE
    try:
        return read_expert(path, sha256=file_entry(path).sha256, basis=model.basis)
    except ZhubError as exc:
        raise UnsupportedAdapterError(f"The version cannot be imported: {exc}", param="files") from exc


def _tell(spec: ImportSpec, probe: Probe, context: AttemptContext) -> None:
    context.emit("info", spec.base_check)
    level = "warn" if probe.changes_nothing or probe.is_far else "info"
    context.emit(level, probe.sentence, {"type": "probe", **probe.model_dump()})


def _centroid(
    spec: ImportSpec, model: AdaptedModel, attempt: Attempt, context: AttemptContext, store: ObjectStore
) -> Centroid:
    """Where the prompts of the dataset lie, as a training on it would have it."""
    assert spec.dataset is not None
    path = attempt.cache_dir / "datasets" / spec.dataset.sha256
    fetch(store, spec.dataset.key, path, sha256=spec.dataset.sha256)
    splits = split_dataset(path, None)

    def embeddings(split: str) -> Any:
        chosen = sorted(splits[split], key=lambda row: prompt_position(row.prompt))[:MAX_ROUTING_PROMPTS]  # type: ignore[index]
        rows = encode_rows(model.base, chosen, with_target=False, should_stop=context.should_stop)
        return prompt_embeddings(model.base, [row.prompt for row in rows])

    return make_centroid(embeddings("train"), embeddings("validation"))


def _keep_routing(sent: Path, made: Path, fingerprint: str) -> None:
    try:
        read_routing(sent, sha256=file_entry(sent).sha256, basis_fingerprint=fingerprint)
    except ZhubError as exc:
        raise UnsupportedAdapterError(f"The version cannot be imported: {exc}", param="files") from exc
    shutil.copyfile(sent, made)


def _manifest(
    spec: ImportSpec, expert: ExpertFile, probe: Probe, directory: Path, attempt: Attempt, hardware: str
) -> Manifest:
    names = [name for name in (Z_FILE, ROUTING_FILE, STRENGTH_FILE, CHANGE_FILE) if (directory / name).exists()]
    origin = Origin(
        format="zhub" if spec.lora is None else "peft",
        imported_by=spec.imported_by,
        base_check=spec.base_check,
        config=spec.config,
        files=[FileEntry(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256) for file in spec.files],
        routing_dataset=spec.dataset.sha256 if spec.dataset else None,
        probe=probe,
    )
    made_here: dict[str, Any] = {
        "base_model": spec.base.name,
        "base_source": f"{spec.base.hub_id}@{spec.base.hub_revision}" if spec.base.hub_id else "files",
        "weights_fingerprint": spec.basis.weights_fingerprint,
        "basis_fingerprint": spec.basis.basis_fingerprint,
        "job_id": str(attempt.key.job_id),
        "fence": attempt.key.fence,
        # What others measured stays in the origin: nobody here has seen it.
        "evaluations": [],
        "files": [file_entry(directory / name) for name in names],
        "origin": origin,
    }
    if spec.lora is None:
        told = Manifest.model_validate(spec.config)
        kind = {"adapter": expert.kind}
        return told.model_copy(update={**made_here, "hyperparameters": told.hyperparameters | kind})
    return Manifest(
        **made_here,
        dataset_digest=None,
        validation_digest=None,
        recipe="imported",
        hyperparameters={
            "adapter": expert.kind,
            "lora_rank": expert.settings["rank"],
            "lora_alpha": expert.settings["alpha"],
        },
        grader=None,
        seed=0,
        code_version=zhub.__version__,
        hardware=hardware,
        best_step=0 if probe.changes_nothing else -1,
        steps=0,
        parameters=sum(tensor.numel() for tensor in expert.tensors.values()),
        parent_digest=None,
    )
