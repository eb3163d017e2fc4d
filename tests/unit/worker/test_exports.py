"""An export job on a worker: what the folder holds and says, and the one file that another zhub imports."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from following import IDS, error
from huggingface_hub import ModelCard
from peft import PeftModel
from random_experts import expert_of, followed
from suites import manifest_of
from transformers import AutoModelForCausalLM

from zhub.errors import BasisMismatchError, UnsupportedAdapterError
from zhub.expert_file import PROBE_FILE, unpack
from zhub.manifest import MANIFEST_FILE, Z_FILE, Accuracy, Evaluation, Manifest, file_entry
from zhub.queue.job_events import Event
from zhub.specs import BaseModelSource, BasisReference, ExportSpec, ImportSpec, StoredFile
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import fetch, put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.attempts.log import AttemptLog
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import write_expert
from zhub_workers.model.base_model import load_base_model, weights_fingerprint
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.worker.exports import run_export
from zhub_workers.worker.imports import run_import

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
MEASURED = Evaluation(
    split="test",
    base=Accuracy(mean=0.25, low=0.2, high=0.3, n=40),
    expert=Accuracy(mean=0.75, low=0.7, high=0.8, n=40),
    p_value=0.001,
)


class Exporting:
    """A tiny base with its basis in a store, a version on it, and exports of that."""

    def __init__(self, model: Path, root: Path) -> None:
        self.model, self.root = model, root
        self.store = DirectoryStore(root / "store")
        base = load_base_model(model)
        fingerprint = decompose_base(base, root / "basis")
        self.adapted = AdaptedModel(base, load_basis(root / "basis", fingerprint))
        self.basis = BasisReference(
            weights_fingerprint=weights_fingerprint(base.model), basis_fingerprint=fingerprint, key_prefix="basis"
        )
        for path in (root / "basis").iterdir():
            put_path(self.store, f"basis/{path.name}", path)
        self.source = BaseModelSource(name="tiny", files=[self.stored(path) for path in sorted(model.iterdir())])
        self.expert = expert_of(self.adapted, "svf")
        self.manifest, self.files = self.version()
        self.events: list[Event] = []

    def stored(self, path: Path) -> StoredFile:
        put_path(self.store, f"sent/{path.name}", path)
        return StoredFile(key=f"sent/{path.name}", **file_entry(path).model_dump())

    def version(self) -> tuple[Manifest, list[StoredFile]]:
        directory = self.root / "version"
        directory.mkdir()
        write_expert(directory / Z_FILE, self.expert, basis_fingerprint=self.basis.basis_fingerprint, base_model="tiny")
        manifest = manifest_of(uuid.uuid4(), files=[file_entry(directory / Z_FILE)]).model_copy(
            update={
                "weights_fingerprint": self.basis.weights_fingerprint,
                "basis_fingerprint": self.basis.basis_fingerprint,
                "hyperparameters": {"adapter": "svf"},
                "evaluations": [MEASURED],
            }
        )
        (directory / MANIFEST_FILE).write_bytes(manifest.canonical())
        return manifest, [self.stored(directory / name) for name in (MANIFEST_FILE, Z_FILE)]

    def run(self, spec: ExportSpec) -> tuple[dict[str, Any], Path]:
        """Export; return the facts, and where the files are."""
        context = AttemptContext(AttemptLog(3))
        attempt = Attempt(AttemptKey(uuid.uuid4(), 3), uuid.uuid4(), {}, "", self.root, "cpu")
        result = run_export(spec, lambda _base, _basis: self.adapted, attempt, context, self.store)
        self.events = context.events_after(0)
        made = self.root / f"made-{attempt.key.job_id}"
        for file in result["files"]:
            fetch(self.store, f"{result['key_prefix']}/{file['name']}", made / file["name"], sha256=file["sha256"])
        return result["facts"], made

    def spec(self, export_format: Any, rank: int | None = None) -> ExportSpec:
        return ExportSpec(
            name="main.summer@v3",
            digest=self.manifest.digest,
            files=self.files,
            base=self.source,
            basis=self.basis,
            format=export_format,
            rank=rank,
        )

    def import_file(self, file: Path, adapted: AdaptedModel | None = None) -> Manifest:
        sent = self.root / f"sent-{uuid.uuid4()}"
        sent.mkdir()
        unpack(file, sent)
        spec = ImportSpec(
            expert="moved",
            base=self.source,
            basis=self.basis,
            lora=None,
            config=json.loads((sent / MANIFEST_FILE).read_text()),
            files=[self.stored(sent / name) for name in (MANIFEST_FILE, Z_FILE, PROBE_FILE)],
            dataset=None,
            imported_by="key-1",
            base_check="The same.",
        )
        attempt = Attempt(AttemptKey(uuid.uuid4(), 1), uuid.uuid4(), {}, "", self.root, "cpu")
        context = AttemptContext(AttemptLog(1))
        result = run_import(spec, adapted or self.adapted, attempt, context, self.store, hardware="cpu")
        self.events = context.events_after(0)
        return Manifest.model_validate(result["manifest"])


@pytest.fixture
def exporting(model_directory: Callable[[str], Path], tmp_path: Path) -> Exporting:
    return Exporting(model_directory("llama"), tmp_path)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS).logits
    return found


def test_a_merged_model_is_what_transformers_loads(exporting: Exporting) -> None:
    facts, made = exporting.run(exporting.spec("merged"))
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    assert error(logits(model), followed(exporting.adapted, exporting.expert, exporting.root / "z")) < 2e-5
    assert facts["rounding_error"] == {"of_change": 0.0, "of_weights": 0.0}
    assert {path.name for path in exporting.model.iterdir()} < {path.name for path in made.iterdir()}


def test_a_lora_tells_how_near_it_comes(exporting: Exporting) -> None:
    facts, made = exporting.run(exporting.spec("lora", rank=4))
    told = facts["error"]
    assert (facts["rank"], facts["dora"]) == (4, False)
    assert 0.1 < told["weights"] < 1 and 0.1 < told["logits"] < 2 and told["max_kl"] >= told["mean_kl"] > 0
    assert json.loads((made / "zhub.json").read_text()) == {
        "version": "main.summer@v3", "digest": exporting.manifest.digest, "format": "lora", **facts,
    }  # fmt: skip
    assert f"{told['weights']:.3g} of the change of the weights is left out" in (made / "README.md").read_text()
    whole, _ = exporting.run(exporting.spec("lora", rank=512))
    assert whole["error"]["weights"] == 0 and whole["error"]["logits"] < 1e-5


def test_psoft_is_loaded_as_its_readme_says(exporting: Exporting) -> None:
    facts, made = exporting.run(exporting.spec("psoft"))
    readme = (made / "README.md").read_text()
    lines = readme.split("```python\n")[1].split("```")[0]
    loading = lines.replace("<this directory>", str(made)).replace("<directory of tiny>", str(exporting.model))
    names: dict[str, Any] = {"AutoModelForCausalLM": AutoModelForCausalLM, "PeftModel": PeftModel}
    exec(loading, names)
    assert error(logits(names["model"]), followed(exporting.adapted, exporting.expert, exporting.root / "z")) < 2e-5
    assert len(facts["adapters"]) == 2, "k and v of this base have fewer directions than the others"
    assert (made / PROBE_FILE).exists()


@pytest.mark.parametrize("export_format", ["merged", "lora"])
def test_the_readme_is_a_card_that_the_hub_reads(exporting: Exporting, export_format: str) -> None:
    _facts, made = exporting.run(exporting.spec(export_format))
    told = ModelCard.load(made / "README.md").data
    assert told.eval_results is not None
    (result,) = told.eval_results
    assert (result.metric_value, result.dataset_type, told.model_name) == (0.75, "test", "main.summer@v3")
    assert told.pipeline_tag == "text-generation" and "zhub" in (told.tags or [])
    assert exporting.manifest.digest in (made / "README.md").read_text()


def test_one_file_holds_the_version_and_is_imported_where_it_answers_the_same(exporting: Exporting) -> None:
    _facts, made = exporting.run(exporting.spec("zhub"))
    (file,) = made.iterdir()
    assert file.name == "main.summer@v3.zhub"
    directory = exporting.root / "unpacked"
    directory.mkdir()
    contract = unpack(file, directory)
    assert contract.digest == exporting.manifest.digest and contract.kind == "svf"
    assert contract.base.basis_fingerprint == exporting.basis.basis_fingerprint
    assert contract.shapes == {name: list(tensor.shape) for name, tensor in exporting.expert.tensors.items()}
    assert {path.name for path in directory.iterdir()} == {MANIFEST_FILE, Z_FILE, PROBE_FILE}
    imported = exporting.import_file(file)
    assert imported.file(Z_FILE).sha256 == exporting.manifest.file(Z_FILE).sha256
    assert any("answers as it did where it was exported" in event.message for event in exporting.events)


def test_the_same_version_is_the_same_file_each_time(exporting: Exporting) -> None:
    files = [exporting.run(exporting.spec("zhub"))[1] / "main.summer@v3.zhub" for _ in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_one_that_answers_otherwise_is_refused(exporting: Exporting, model_directory: Callable[[str], Path]) -> None:
    """As on a machine whose transformers computes the architecture in another way."""
    _facts, made = exporting.run(exporting.spec("zhub"))
    other = AdaptedModel(load_base_model(exporting.model), exporting.adapted.basis)
    with torch.no_grad():
        other.base.model.model.norm.weight.mul_(1.5)
    with pytest.raises(UnsupportedAdapterError, match="does not answer here as it did where it was exported"):
        exporting.import_file(made / "main.summer@v3.zhub", other)


def test_a_base_with_other_weights_than_were_decomposed_is_not_merged(exporting: Exporting) -> None:
    spec = exporting.spec("merged")
    basis = spec.basis.model_copy(update={"weights_fingerprint": "0" * 64})
    with pytest.raises(BasisMismatchError, match="not those that were decomposed"):
        exporting.run(spec.model_copy(update={"basis": basis}))
