"""What a decompose job says and stores."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_moe import save_unreached

from zhub.manifest import sha256_file
from zhub.queue.job_events import Event
from zhub.specs import BaseModelSource, BasisReference, DecomposeSpec, StoredFile
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.attempts.log import AttemptLog
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.model.layers import linear_layers
from zhub_workers.model.model_cache import ModelCache
from zhub_workers.worker import torch_runner
from zhub_workers.worker.torch_runner import TorchRunner


class Decomposed:
    """A base in a store, decomposed by a worker."""

    def __init__(self, model: Path, root: Path) -> None:
        self.store, self.root, files = DirectoryStore(root / "store"), root, []
        for path in sorted(model.iterdir()):
            put_path(self.store, f"base/{path.name}", path)
            size = path.stat().st_size
            files.append(StoredFile(name=path.name, key=f"base/{path.name}", sha256=sha256_file(path), size_bytes=size))
        self.source = BaseModelSource(name="tiny", files=files)
        self.result, self.events = self.decompose()

    def decompose(self, rank: int | None = None) -> tuple[dict[str, Any], list[Event]]:
        spec = DecomposeSpec(base=self.source, rank=rank).model_dump(mode="json")
        key = AttemptKey(uuid.uuid4(), 1)
        attempt = Attempt(key, uuid.uuid4(), spec, self.store.root.as_uri(), self.root / str(key.job_id), "cpu")
        context = AttemptContext(AttemptLog(1))
        return TorchRunner("cpu", Flavour())(attempt, context), context.events_after(0)


Decompose = Callable[[str], Decomposed]


@pytest.fixture
def decompose(model_directory: Callable[[str], Path], tmp_path: Path) -> Decompose:
    return lambda kind: Decomposed(model_directory(kind), tmp_path)


def test_the_number_of_matrices_and_bytes_are_told_before_the_first_is_decomposed(decompose: Decompose) -> None:
    made = decompose("mixtral")
    told = [event.data for event in made.events if event.data is not None]
    assert [data["type"] for data in told[:2]] == ["basis_size", "progress"]
    assert told[0]["file_bytes"] == made.result["details"]["basis_bytes"]
    assert made.result["details"]["matrices"] == told[-1]["done"] == told[-1]["total"]
    stored = sum(made.store.size(key) for key in made.store.keys(f"{made.result['basis_key_prefix']}/"))
    assert told[0]["file_bytes"] < stored < 4 * told[0]["file_bytes"]  # headers are most of what is so small
    (message,) = [event.message for event in made.events if "matrices" in event.message]
    assert "24 matrices, 92% of the parameters" in message and "0.3 MB on disk and up to 0.1 MB" in message


def test_a_stored_basis_is_loaded_with_its_base(decompose: Decompose) -> None:
    made = decompose("mixtral")
    basis = BasisReference(
        weights_fingerprint=made.result["weights_fingerprint"],
        basis_fingerprint=made.result["basis_fingerprint"],
        key_prefix=made.result["basis_key_prefix"],
    )
    cache = ModelCache(torch.device("cpu"), capacity=1)
    adapted = cache.get(made.source, basis, made.store, made.root / "cache")
    assert "model.layers.1.mlp.experts.down_proj.3" in adapted.layers


def test_weights_that_no_expert_can_adapt_are_warned_of(tmp_path: Path) -> None:
    made = Decomposed(save_unreached(tmp_path / "model"), tmp_path)
    (warning,) = [event.message for event in made.events if event.level == "warn"]
    assert "leave these weights" in warning and "model.layers.*.mlp.input_linear.weight" in warning
    assert made.result["details"]["adapted_parameters"] < made.result["details"]["parameters"] / 2
    assert "model.layers.*.mlp.input_linear.weight" in made.result["details"]["not_adapted"]


def test_a_basis_of_fewer_matrices_is_left_as_it_is(decompose: Decompose, monkeypatch: pytest.MonkeyPatch) -> None:
    made = decompose("mixtral")
    before = {key: made.store.size(key) for key in made.store.keys("bases/")}
    monkeypatch.setattr(torch_runner, "adapted_layers", linear_layers)
    result, _ = made.decompose()
    assert result["basis_key_prefix"] != made.result["basis_key_prefix"]
    assert {key: made.store.size(key) for key in made.store.keys("bases/") if key in before} == before
    assert len(list(made.store.keys("bases/"))) > len(before)


def test_a_basis_of_a_rank_lies_beside_the_whole_one_and_tells_what_it_carries(decompose: Decompose) -> None:
    made = decompose("llama")
    result, events = made.decompose(rank=8)
    assert result["basis_key_prefix"] == f"{made.result['basis_key_prefix']}-rank8"
    assert result["basis_fingerprint"] != made.result["basis_fingerprint"]
    assert "rank" not in made.result["details"]
    assert result["details"]["rank"] == 8 and 0 < result["details"]["carried"] < 1
    assert result["details"]["basis_bytes"] < made.result["details"]["basis_bytes"]
    (told,) = [event.data for event in events if event.data and event.data["type"] == "basis_size"]
    assert told["file_bytes"] == result["details"]["basis_bytes"]
    basis = BasisReference(
        weights_fingerprint=result["weights_fingerprint"],
        basis_fingerprint=result["basis_fingerprint"],
        key_prefix=result["basis_key_prefix"],
    )
    adapted = ModelCache(torch.device("cpu"), capacity=1).get(made.source, basis, made.store, made.root / "cache")
    assert {len(s) for _, s, _ in adapted.basis.factors.values()} == {8}


def test_ten_thousand_matrices_do_not_make_ten_thousand_events(
    decompose: Decompose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runner, "PROGRESS_EVENTS", 5)
    made = decompose("mixtral")
    done = [event.data["done"] for event in made.events if event.data and event.data["type"] == "progress"]
    assert len(done) == 5 and done[-1] == 24
