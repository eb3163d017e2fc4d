"""A base that does not fit is refused with the numbers, before its weights are fetched."""

import shutil
import uuid
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zhub.errors import UnsupportedModelError
from zhub.manifest import sha256_file
from zhub.queue.job_events import Event
from zhub.specs import BaseModelSource, DecomposeSpec, StoredFile
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.attempts.log import AttemptLog
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.compute.sizes import sizes_of
from zhub_workers.model.base_model import model_of_config
from zhub_workers.worker import torch_runner
from zhub_workers.worker.torch_runner import TorchRunner

Usage = namedtuple("Usage", "total used free")


class Worker:
    """Decomposes a base that is in a store beside its cache."""

    def __init__(self, model: Path, root: Path) -> None:
        self.sizes = sizes_of(*model_of_config(model))
        self.cache_dir = root / "cache"
        self.cache_dir.mkdir()
        self.events: list[Event] = []
        self._store = DirectoryStore(root / "store")
        files = []
        for path in sorted(model.iterdir()):
            put_path(self._store, f"base/{path.name}", path)
            size = path.stat().st_size
            files.append(StoredFile(name=path.name, key=f"base/{path.name}", sha256=sha256_file(path), size_bytes=size))
        self._source = BaseModelSource(name="tiny", files=files)

    def decompose(self) -> dict[str, Any]:
        spec = DecomposeSpec(base=self._source).model_dump(mode="json")
        attempt = Attempt(
            AttemptKey(uuid.uuid4(), 1), uuid.uuid4(), spec, self._store.root.as_uri(), self.cache_dir, "cpu"
        )
        context = AttemptContext(AttemptLog(1))
        try:
            return TorchRunner("cpu", Flavour())(attempt, context)
        finally:
            self.events = context.events_after(0)


@pytest.fixture
def worker(model_directory: Callable[[str], Path], tmp_path: Path) -> Worker:
    return Worker(model_directory("llama"), tmp_path)


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(0, 0, free))


def set_memory(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    monkeypatch.setattr(torch_runner, "device_memory_bytes", lambda _device: size_bytes)


def test_a_base_that_fits_is_decomposed_without_a_warning(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, worker.sizes.checkpoint_bytes + 2 * worker.sizes.basis_bytes)
    set_memory(monkeypatch, worker.sizes.needs["train"].device_bytes)
    assert worker.decompose()["details"]["matrices"] == worker.sizes.matrices
    assert [event.message for event in worker.events if event.level == "warn"] == []


def test_a_disk_without_room_for_weights_and_basis_is_told_of_before_they_are_fetched(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, worker.sizes.checkpoint_bytes + 2 * worker.sizes.basis_bytes - 1)
    numbers = (
        r"weights take [\d.]+ GB of disk and its basis [\d.]+ GB, once more in the store.*the worker has [\d.]+ GB"
    )
    with pytest.raises(UnsupportedModelError, match=f"^tiny does not fit: its {numbers} free in "):
        worker.decompose()
    assert list(worker.cache_dir.rglob("*.safetensors")) == []


def test_an_attempt_that_follows_another_here_is_not_asked_for_the_same_room_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = worker.decompose()
    set_free(monkeypatch, 0)
    assert worker.decompose() == first


def test_memory_that_the_base_cannot_answer_in_is_told_of(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, worker.sizes.needs["serve"].device_bytes - 1)
    with pytest.raises(
        UnsupportedModelError, match=r"^tiny does not fit: to answer takes at least [\d.]+ GB of memory"
    ):
        worker.decompose()
    assert list(worker.cache_dir.rglob("*.safetensors")) == []


def test_memory_that_the_base_can_answer_but_not_train_in_is_warned_of(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, worker.sizes.needs["train"].device_bytes - 1)
    assert worker.decompose()["basis_fingerprint"]
    (warning,) = [event.message for event in worker.events if event.level == "warn"]
    assert warning.startswith("To train tiny takes at least ") and "cluster whose workers have more" in warning
