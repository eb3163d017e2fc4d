"""The job that decomposes a base: it tries the base first, and tells what it found."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch

from zhub.errors import UnsupportedModelError
from zhub.manifest import sha256_file
from zhub.registry.limitations import limitations_of
from zhub.specs import BaseModelSource, DecomposeSpec, StoredFile
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.attempts.log import AttemptLog
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.compute.sizes import sizes_of
from zhub_workers.model.base_model import load_base_model
from zhub_workers.worker.torch_runner import TorchRunner

Decompose = Callable[[str], dict[str, Any]]


@pytest.fixture
def decompose(tmp_path: Path) -> Decompose:
    """Run the job on a tiny model of this architecture, whose files the store has, and return its result."""
    torch.set_num_threads(1)
    store = DirectoryStore(tmp_path / "store")

    def run(name: str) -> dict[str, Any]:
        files = []
        for path in sorted(families.save_tiny(tmp_path / "model", name).iterdir()):
            put_path(store, f"base/{path.name}", path)
            size = path.stat().st_size
            files.append(StoredFile(name=path.name, key=f"base/{path.name}", sha256=sha256_file(path), size_bytes=size))
        spec = DecomposeSpec(base=BaseModelSource(name="team-model", files=files)).model_dump(mode="json")
        key = AttemptKey(uuid.uuid4(), 1)
        attempt = Attempt(key, uuid.uuid4(), spec, store.root.as_uri(), tmp_path / "cache", "cpu")
        return TorchRunner("cpu", Flavour())(attempt, AttemptContext(AttemptLog(1)))

    return run


def test_the_details_of_a_base_have_its_limitations_and_its_adapted_parameters(
    decompose: Decompose, tmp_path: Path
) -> None:
    details = decompose("jamba")["details"]
    assert [limitation.name for limitation in limitations_of(details)] == ["no_continuation"]
    assert (
        details["adapted_parameters"]
        == sizes_of(load_base_model(tmp_path / "model").model, torch.float32).adapted_parameters
    )
    assert 0 < details["adapted_parameters"] < details["parameters"]


def test_a_base_that_cannot_serve_is_refused_by_its_name_and_nothing_is_stored(
    decompose: Decompose, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match="^team-model: Mamba2ForCausalLM has no key-value cache"):
        decompose("mamba2")
    assert list(DirectoryStore(tmp_path / "store").keys("bases/")) == []
