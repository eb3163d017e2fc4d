"""Base models in memory: what is loaded is what was decomposed, once for all that ask, with a view for each stream."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from zhub.errors import BasisMismatchError, DigestMismatchError
from zhub.manifest import sha256_file
from zhub.specs import BaseModelSource, BasisReference, StoredFile
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import load_base_model, render_prompt, weights_fingerprint
from zhub_workers.model.basis import decompose_base
from zhub_workers.model.logprobs import selecting
from zhub_workers.model.model_cache import ModelCache

Get = Callable[..., AdaptedModel]


@pytest.fixture
def stored(model_directory: Callable[[str], Path], tmp_path: Path) -> tuple[DirectoryStore, list[StoredFile], str, str]:
    """A store with a base model and its basis: the files, and the fingerprints of weights and basis."""
    store, files = DirectoryStore(tmp_path / "store"), []
    for path in sorted(model_directory("llama").iterdir()):
        put_path(store, f"base/{path.name}", path)
        size = path.stat().st_size
        files.append(StoredFile(name=path.name, key=f"base/{path.name}", sha256=sha256_file(path), size_bytes=size))
    base = load_base_model(model_directory("llama"))
    fingerprint = decompose_base(base, tmp_path / "basis")
    for path in (tmp_path / "basis").iterdir():
        put_path(store, f"basis/{path.name}", path)
    return store, files, weights_fingerprint(base.model), fingerprint


@pytest.fixture
def get(stored: tuple[DirectoryStore, list[StoredFile], str, str], tmp_path: Path) -> Get:
    store, files, weights, fingerprint = stored
    cache = ModelCache(torch.device("cpu"), capacity=1)

    def ask(
        *, weights: str = weights, stream: int = 0, files: list[StoredFile] = files, alone: bool = False
    ) -> AdaptedModel:
        source = BaseModelSource(name="tiny", files=files)
        basis = BasisReference(weights_fingerprint=weights, basis_fingerprint=fingerprint, key_prefix="basis")
        return cache.get(source, None if alone else basis, store, tmp_path / "cache", stream=stream)

    return ask


def test_a_model_is_loaded_once_however_many_ask_at_the_same_time(get: Get) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: get(), range(4)))
    assert len(set(map(id, found))) == 1


def test_each_compute_stream_has_a_view_of_its_own(get: Get) -> None:
    first, second = get(stream=0), get(stream=1)
    assert first is not second and get(stream=1) is second and get(stream=0) is first


def test_a_stream_that_begins_while_another_computes_has_nothing_of_what_that_follows(get: Get) -> None:
    first, ids = get(stream=0), torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        before = first.base.model(ids).logits
        zeros = {name: torch.zeros_like(s) for name, (_, s, _) in first.basis.factors.items()}
        with first.merged(zeros), selecting(first.base, torch.tensor([2])):
            second = get(stream=1)
        assert torch.equal(second.base.model(ids).logits, before)


def test_two_bases_with_equal_weights_and_other_templates_are_two_models(
    get: Get, stored: tuple[DirectoryStore, list[StoredFile], str, str], tmp_path: Path
) -> None:
    store, files, *_ = stored
    template = tmp_path / "chat_template.jinja"
    template.write_text("{% for message in messages %}<assistant>{{ message.content }}{% endfor %}")
    put_path(store, "base/other", template)
    other = StoredFile(
        name=template.name, key="base/other", sha256=sha256_file(template), size_bytes=template.stat().st_size
    )
    others = [file for file in files if file.name != template.name] + [other]
    message = [{"role": "user", "content": "hi"}]
    first, second = (render_prompt(get(files=files).base, message) for files in (files, others))
    assert first != second == render_prompt(get(files=others).base, message)


def test_a_base_whose_weights_have_changed_since_it_was_decomposed_is_refused(get: Get) -> None:
    with pytest.raises(BasisMismatchError, match="not those that were decomposed. Add it again under a new name"):
        get(weights="of another day")


def test_a_file_of_the_base_that_was_changed_in_the_store_is_refused(
    get: Get, stored: tuple[DirectoryStore, list[StoredFile], str, str]
) -> None:
    store, files, *_ = stored
    weights = next(file for file in files if file.name.endswith(".safetensors"))
    (store.root / weights.key).write_bytes(b"another model")
    with pytest.raises(DigestMismatchError):
        get()


def test_a_base_that_was_loaded_alone_gets_its_basis_without_being_loaded_again(get: Get) -> None:
    alone = get(alone=True)
    with pytest.raises(BasisMismatchError, match="without its basis"):
        _ = alone.basis
    adapted = get()
    weights = [next(model.base.model.parameters()).data_ptr() for model in (alone, adapted)]
    assert weights[0] == weights[1] and adapted.basis.factors
    assert get(alone=True) is adapted and get() is adapted
