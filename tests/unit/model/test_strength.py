"""How much an expert changes, as it is written beside it: held against the weights themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from zhub.manifest import CHANGE_FILE, STRENGTH_FILE, Strengths, sha256_file
from zhub.recipes import SupervisedHyperparameters
from zhub.registry.strengths import cosine, summed
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import adapter_settings, block_of, make_adapter
from zhub_workers.model.artifact import ExpertFile, write_expert
from zhub_workers.model.changes import Change, read_change
from zhub_workers.model.layers import layer_weight
from zhub_workers.model.strength import write_strengths

KINDS = ["svf", "frames", "core", "lora", "dora"]
Load = Callable[[str], AdaptedModel]


def random_expert(adapted: AdaptedModel, directory: Path, kind: str, seed: int = 3) -> tuple[Change, dict[str, Tensor]]:
    """An expert with random values, and what it adds to each weight, float64."""
    asked: dict[str, Any] = {"adapter": kind}
    hyper = SupervisedHyperparameters(n_steps=1, **asked)
    adapter, generator = make_adapter(adapted, hyper), torch.Generator().manual_seed(seed)
    parameters = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in adapter.initial(0).items()
    }
    values = adapter.values(parameters)
    write_expert(
        directory / "expert",
        ExpertFile(hyper.adapter, adapter.exported(values), adapter_settings(hyper)),
        basis_fingerprint=adapted.basis.fingerprint,
        base_model="tiny",
    )
    own = {name: layer_weight(layer).double().clone() for name, layer in adapted.layers.items()}
    with adapter.merged(values):
        dense = {name: layer_weight(layer).double() - own[name] for name, layer in adapted.layers.items()}
    return read_change(directory / "expert", sha256=sha256_file(directory / "expert"), adapted=adapted), dense


def read(directory: Path) -> Strengths:
    return Strengths.model_validate_json((directory / STRENGTH_FILE).read_bytes())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_norms_are_those_of_the_weights(load_adapted: Load, tmp_path: Path, architecture: str, kind: str) -> None:
    adapted = load_adapted(architecture)
    change, dense = random_expert(adapted, tmp_path, kind)
    files = write_strengths(tmp_path, change, adapted)
    assert files == [STRENGTH_FILE, *([CHANGE_FILE] if kind == "svf" else [])]
    matrices = read(tmp_path).matrices
    assert [matrix.name for matrix in matrices] == sorted(adapted.layers)
    for matrix in matrices:
        weight = layer_weight(adapted.layers[matrix.name]).double()
        assert matrix.norm == pytest.approx(float(dense[matrix.name].norm()), rel=1e-3)
        assert matrix.weight_norm == pytest.approx(float(weight.norm()), rel=1e-4)
        assert matrix.layer == block_of(matrix.name)
        assert (matrix.distance is None) == (kind != "svf")


def test_the_distance_is_that_of_the_multipliers_from_one(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("llama")
    change, _ = random_expert(adapted, tmp_path, "svf")
    write_strengths(tmp_path, change, adapted)
    for matrix in read(tmp_path).matrices:
        assert matrix.distance == pytest.approx(float((change.z[matrix.name] - 1).norm()))


def test_matrices_that_an_expert_leaves_alone_are_left_out(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("llama")
    name = min(adapted.layers)
    z = torch.full_like(adapted.basis.factors[name][1], 1.5)
    write_strengths(tmp_path, Change(z={name: z}), adapted)
    (matrix,) = read(tmp_path).matrices
    assert matrix.norm / matrix.weight_norm == pytest.approx(0.5)
    assert summed([matrix])["share"] == pytest.approx(0.5)


def test_the_cosine_of_two_experts_is_that_of_their_weights(load_adapted: Load, tmp_path: Path) -> None:
    adapted, vectors, changes = load_adapted("llama"), [], []
    for seed in (3, 4):
        directory = tmp_path / str(seed)
        directory.mkdir()
        change, dense = random_expert(adapted, directory, "svf", seed)
        write_strengths(directory, change, adapted)
        vectors.append({name: tensor.numpy() for name, tensor in load_file(directory / CHANGE_FILE).items()})
        changes.append(torch.cat([dense[name].flatten() for name in sorted(dense)]))
    expected = torch.nn.functional.cosine_similarity(changes[0], changes[1], dim=0)
    assert cosine(*vectors) == pytest.approx(float(expected), abs=1e-4)
    assert cosine(vectors[0], vectors[0]) == pytest.approx(1.0)
