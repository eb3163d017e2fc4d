"""A classifier of families of tasks on the shipped base, made and asked as zhub does it, for the benchmarks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import shipped

from zhub.answering import Classifier, ExpertReference, Label
from zhub.cli.classifiers import SETTINGS
from zhub.cli.submit import parse_settings
from zhub.datasets.rows import value_digest
from zhub.demo.task_families import FAMILIES, sample_rows
from zhub.manifest import sha256_file
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.compute.group import ComputeGroup
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.artifact import ExpertFile, write_expert
from zhub_workers.serving.experts import Experts
from zhub_workers.worker.classification_rows import Prompts, labelled_rows

ROWS_PER_LABEL = 200


@dataclass(frozen=True)
class Trained:
    """A classifier, and what serving needs to ask it."""

    adapted: AdaptedModel
    classifier: Classifier
    candidates: list[ExpertReference]
    held: Experts


def train(directory: Path, families: Sequence[str], others: Sequence[str]) -> Trained:
    """Train a classifier to tell ``families`` apart, and from ``others``, by the settings of ``zhub releases``."""
    adapted = shipped.load(directory / "basis")
    prompts = {family: training_prompts(family, ROWS_PER_LABEL) for family in families}
    foreign = {
        digest: messages
        for family in others
        for digest, messages in training_prompts(family, ROWS_PER_LABEL // len(others)).items()
    }
    rows = labelled_rows(prompts, foreign, excluded=(), rows_per_label=ROWS_PER_LABEL, seed=0)
    path = directory / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    spec = shipped.spec_of(parse_settings(list(SETTINGS)), rows=len(rows), recipe="supervised", grader=None)
    with ComputeGroup(None).join(make_adapter(adapted, spec.hyperparameters), lambda: False) as member:
        result = shipped.run(spec, member, path)
    z = directory / "z.safetensors"
    write_expert(z, ExpertFile("svf", result.artifact, {}), basis_fingerprint=adapted.basis.fingerprint, base_model="")
    store = DirectoryStore(directory / "store")
    put_path(store, "z", z)
    candidates = [reference(f"main.{family}@v1", description=FAMILIES[family].description) for family in families]
    labels = [Label(label=family, candidate=c.name) for family, c in zip(families, candidates, strict=True)]
    expert = reference("main.which@v1", z_key="z", z_sha256=sha256_file(z))
    classifier = Classifier(expert=expert, labels=labels)
    return Trained(adapted, classifier, candidates, Experts(store, directory / "cache"))


def training_prompts(family: str, count: int) -> Prompts:
    rows = sample_rows(family, count, seed=1, split="train")
    return {value_digest(row["messages"]): row["messages"] for row in rows}


def reference(name: str, **fields: str) -> ExpertReference:
    unused = {"digest": "", "z_key": "", "z_sha256": "", "routing_key": "", "routing_sha256": ""}
    return ExpertReference.model_validate(unused | {"name": name} | fields)
