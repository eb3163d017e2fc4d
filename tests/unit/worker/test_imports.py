"""An import job on a worker: what becomes of the files, what is said, and what is refused."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from zhub.errors import TrainingError, UnsupportedAdapterError
from zhub.manifest import (
    CHANGE_FILE,
    MANIFEST_FILE,
    ROUTING_FILE,
    STRENGTH_FILE,
    Z_FILE,
    Manifest,
    file_entry,
    sha256_file,
)
from zhub.queue.job_events import Event
from zhub.registry.peft_config import CONFIG_FILE, WEIGHTS_FILE, read_config
from zhub.specs import BaseModelSource, BasisReference, ImportSpec, StoredFile
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import fetch, put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.attempts.log import AttemptLog
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile, read_expert, read_routing, write_expert, write_routing
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.routing import make_centroid
from zhub_workers.worker.imports import run_import

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


class Importing:
    """A tiny base, a store, and imports into it."""

    def __init__(self, adapted: AdaptedModel, model: Path, root: Path) -> None:
        self.adapted, self.model, self.root = adapted, model, root
        self.store = DirectoryStore(root / "store")
        self.events: list[Event] = []

    def stored(self, path: Path) -> StoredFile:
        put_path(self.store, f"sent/{path.name}", path)
        entry = file_entry(path)
        return StoredFile(key=f"sent/{path.name}", **entry.model_dump())

    def lora(self, noise: float = 0.3, **settings: Any) -> Path:
        """A LoRA that peft saved."""
        given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | settings
        config = LoraConfig(**given)
        made, generator = get_peft_model(load_base_model(self.model).model, config), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
        made.save_pretrained(str(self.root / "lora"))
        return self.root / "lora"

    def run(self, directory: Path, *names: str, dataset: Path | None = None) -> tuple[Manifest, Path]:
        """Import these files, of which the first describes the expert; return what became of them."""
        config = json.loads((directory / names[0]).read_text())
        fingerprint = self.adapted.basis.fingerprint
        spec = ImportSpec(
            expert="moved",
            base=BaseModelSource(name="tiny"),
            basis=BasisReference(weights_fingerprint="w", basis_fingerprint=fingerprint, key_prefix="basis"),
            lora=read_config(config) if names[0] == CONFIG_FILE else None,
            config=config,
            files=[self.stored(directory / name) for name in names],
            dataset=self.stored(dataset) if dataset else None,
            imported_by="key-1",
            base_check="Nothing is known.",
        )
        attempt = Attempt(AttemptKey(uuid.uuid4(), 3), uuid.uuid4(), {}, "", self.root, "cpu")
        context = AttemptContext(AttemptLog(3))
        try:
            result = run_import(spec, self.adapted, attempt, context, self.store, hardware="cpu")
        finally:
            self.events = context.events_after(0)
        manifest = Manifest.model_validate(result["manifest"])
        made = self.root / "made"
        for entry in (*manifest.files, None):
            name, sha256 = (entry.name, entry.sha256) if entry else (MANIFEST_FILE, manifest.digest)
            fetch(self.store, f"{result['key_prefix']}/{name}", made / name, sha256=sha256)
        return manifest, made

    def messages(self, level: str) -> list[str]:
        return [event.message for event in self.events if event.level == level]


@pytest.fixture
def importing(
    load_adapted: Callable[[str], AdaptedModel], model_directory: Callable[[str], Path], tmp_path: Path
) -> Any:
    return Importing(load_adapted("llama"), model_directory("llama"), tmp_path)


def dataset_of(path: Path, count: int) -> Path:
    rows = [{"messages": [{"role": "user", "content": f"add {i} and {i + 1}"}]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_lora_becomes_a_version_that_says_where_it_is_from(importing: Importing) -> None:
    directory = importing.lora()
    manifest, made = importing.run(directory, CONFIG_FILE, WEIGHTS_FILE)
    origin = manifest.origin
    assert origin is not None and origin.format == "peft" and origin.imported_by == "key-1"
    assert {file.name: file.sha256 for file in origin.files} == {
        name: sha256_file(directory / name) for name in (CONFIG_FILE, WEIGHTS_FILE)
    }
    assert origin.config["r"] == 4 and origin.probe.mean_kl > 0
    assert (manifest.recipe, manifest.dataset_digest, manifest.evaluations) == ("imported", None, [])
    assert manifest.hyperparameters == {"adapter": "lora", "lora_rank": 4, "lora_alpha": 8.0}
    assert [file.name for file in manifest.files] == [Z_FILE, STRENGTH_FILE]
    expert = read_expert(made / Z_FILE, sha256=manifest.file(Z_FILE).sha256, basis=importing.adapted.basis)
    assert expert.kind == "lora" and manifest.parameters == sum(t.numel() for t in expert.tensors.values())
    assert any("answers by its name only" in message for message in importing.messages("warn"))


def test_the_prompts_of_a_dataset_become_its_own(importing: Importing, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "rows.jsonl", 40)
    manifest, made = importing.run(importing.lora(), CONFIG_FILE, WEIGHTS_FILE, dataset=dataset)
    assert manifest.origin is not None and manifest.origin.routing_dataset == sha256_file(dataset)
    assert manifest.routing is not None
    fingerprint = importing.adapted.basis.fingerprint
    assert (
        read_routing(made / ROUTING_FILE, sha256=manifest.routing.sha256, basis_fingerprint=fingerprint).threshold > 0
    )
    assert importing.messages("warn") == []


def test_a_dataset_with_too_few_prompts_is_refused(importing: Importing, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="4 distinct prompts"):
        importing.run(importing.lora(), CONFIG_FILE, WEIGHTS_FILE, dataset=dataset_of(tmp_path / "rows.jsonl", 4))


def test_a_lora_that_changes_nothing_is_a_version_that_says_so(importing: Importing) -> None:
    manifest, _ = importing.run(importing.lora(noise=0.0), CONFIG_FILE, WEIGHTS_FILE)
    assert manifest.best_step == 0 and manifest.parent_digest is None  # it is the base, and no candidate of `auto`
    assert any("It changes nothing" in message for message in importing.messages("warn"))


def test_a_version_of_another_zhub_keeps_its_bytes_its_prompts_and_what_is_told_of_it(
    importing: Importing, tmp_path: Path
) -> None:
    directory, adapted = tmp_path / "pulled", importing.adapted
    directory.mkdir()
    z = {name: 1 + torch.linspace(-0.4, 0.4, len(s)) for name, (_, s, _) in adapted.basis.factors.items()}
    fingerprint = adapted.basis.fingerprint
    write_expert(directory / Z_FILE, ExpertFile("svf", z, {}), basis_fingerprint=fingerprint, base_model="tiny")
    points = torch.randn(20, 32, generator=torch.Generator().manual_seed(2))
    write_routing(directory / ROUTING_FILE, make_centroid(points[:10], points[10:]), basis_fingerprint=fingerprint)
    told, _ = importing.run(importing.lora(), CONFIG_FILE, WEIGHTS_FILE)
    told = told.model_copy(
        update={
            "origin": None, "recipe": "reinforcement", "dataset_digest": "d" * 64, "steps": 9, "best_step": 7,
            "hyperparameters": {"adapter": "svf", "n_steps": 9}, "parent_digest": "e" * 64,
            "files": [file_entry(directory / name) for name in (Z_FILE, ROUTING_FILE)],
        }
    )  # fmt: skip
    (directory / MANIFEST_FILE).write_bytes(told.canonical())
    manifest, made = importing.run(directory, MANIFEST_FILE, Z_FILE, ROUTING_FILE)
    for name in (Z_FILE, ROUTING_FILE):
        assert sha256_file(made / name) == sha256_file(directory / name)
    assert manifest.origin is not None and manifest.origin.format == "zhub"
    assert Manifest.model_validate(manifest.origin.config).digest == told.digest
    kept = ("recipe", "dataset_digest", "steps", "best_step", "hyperparameters", "parent_digest")
    assert all(getattr(manifest, name) == getattr(told, name) for name in kept)
    assert (manifest.fence, manifest.evaluations) == (3, [])
    assert {file.name for file in manifest.files} == {Z_FILE, ROUTING_FILE, STRENGTH_FILE, CHANGE_FILE}


def test_files_that_fit_no_base_make_no_version(importing: Importing) -> None:
    directory = importing.lora()
    (directory / WEIGHTS_FILE).write_bytes(b"\x80\x04N.")
    with pytest.raises(UnsupportedAdapterError, match="not a safetensors file"):
        importing.run(directory, CONFIG_FILE, WEIGHTS_FILE)
    assert [key for key in importing.store.keys("t/")] == []
