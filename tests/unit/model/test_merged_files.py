"""An expert folded into the files of its base: plain transformers loads them, and they answer as the expert does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from following import IDS, error
from random_experts import KINDS, expert_of, followed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from zhub.errors import UnsupportedModelError
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.matrix_changes import MatrixChanges
from zhub_workers.model.merged_files import write_merged

Load = Callable[[str], AdaptedModel]
Directory = Callable[[str], Path]
FAMILIES = ("llama", "gpt2", "neox", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text")


@torch.no_grad()
def loaded_logits(directory: Path) -> torch.Tensor:
    """As plain transformers answers, in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    logits: torch.Tensor = model(IDS).logits
    return logits


def merged(source: Path, adapted: AdaptedModel, expert: ExpertFile, target: Path) -> Any:
    target.mkdir()
    return write_merged(source, target, MatrixChanges(expert, adapted.basis))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_it_and_gets_the_logits_of_the_expert(
    load_adapted: Load, model_directory: Directory, tmp_path: Path, family: str
) -> None:
    adapted = load_adapted(family)
    expert = expert_of(adapted, "svf")
    told = merged(model_directory(family), adapted, expert, tmp_path / "merged")
    expected = followed(adapted, expert, tmp_path / "z")
    assert error(loaded_logits(tmp_path / "merged"), expected) < 2e-5
    assert error(loaded_logits(model_directory(family)), expected) > 1e-2, "the expert must change something"
    assert told.of_change == 0, "float32 files take float32 weights as they are"


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_of_each_kind_is_folded_as_it_is_served(
    load_adapted: Load, model_directory: Directory, tmp_path: Path, kind: str
) -> None:
    adapted = load_adapted("llama")
    expert = expert_of(adapted, kind)
    merged(model_directory("llama"), adapted, expert, tmp_path / "merged")
    assert error(loaded_logits(tmp_path / "merged"), followed(adapted, expert, tmp_path / "z")) < 1e-4


def halved(source: Path, target: Path, shards: int) -> Path:
    """The model in bfloat16, in several files, with a tied output that is in none."""
    shutil.copytree(source, target)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    (target / "model.safetensors").unlink()
    model.save_pretrained(target, max_shard_size=model.num_parameters() * 2 // shards)
    return target


def test_dtype_shards_and_names_are_those_of_the_base(
    load_adapted: Load, model_directory: Directory, tmp_path: Path
) -> None:
    source = halved(model_directory("llama"), tmp_path / "half", shards=3)
    adapted = load_adapted("llama")
    expert = expert_of(adapted, "svf")
    told = merged(source, adapted, expert, tmp_path / "merged")
    names = sorted(path.name for path in source.iterdir())
    assert len([name for name in names if name.endswith(".safetensors")]) >= 3
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == names
    squares = {"error": 0.0, "change": 0.0, "weights": 0.0}
    for name in names:
        if not name.endswith(".safetensors"):
            continue
        base, made = load_file(source / name), load_file(tmp_path / "merged" / name)
        assert {key: (t.shape, t.dtype) for key, t in made.items()} == {
            key: (t.shape, t.dtype) for key, t in base.items()
        }
        for key, tensor in base.items():
            layer = key.removesuffix(".weight")
            if layer not in adapted.basis.factors:
                assert torch.equal(made[key], tensor), key
                continue
            u, s, vh = adapted.basis.factors[layer]
            change = u.double() @ torch.diag((s * (expert.tensors[layer] - 1)).double()) @ vh.double()
            exact = tensor.double() + change
            squares["error"] += float((made[key].double() - exact).square().sum())
            squares["change"] += float(change.square().sum())
            squares["weights"] += float(exact.square().sum())
    assert told.of_change == pytest.approx((squares["error"] / squares["change"]) ** 0.5, rel=1e-3)
    assert 1e-4 < told.of_change < 1e-1


def test_the_readme_of_the_base_stays_behind(load_adapted: Load, model_directory: Directory, tmp_path: Path) -> None:
    source = tmp_path / "base"
    shutil.copytree(model_directory("llama"), source)
    (source / "README.md").write_text("of the base")
    adapted = load_adapted("llama")
    merged(source, adapted, expert_of(adapted, "svf"), tmp_path / "merged")
    assert not (tmp_path / "merged" / "README.md").exists()


def test_a_file_without_a_matrix_is_refused_by_its_name(
    load_adapted: Load, model_directory: Directory, tmp_path: Path
) -> None:
    source = tmp_path / "base"
    shutil.copytree(model_directory("llama"), source)
    tensors = load_file(source / "model.safetensors")
    lost = "model.layers.0.mlp.up_proj.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, source / "model.safetensors")
    adapted = load_adapted("llama")
    with pytest.raises(UnsupportedModelError, match=lost):
        merged(source, adapted, expert_of(adapted, "svf"), tmp_path / "merged")
    assert json.loads((source / "config.json").read_text())["model_type"] == "llama"
