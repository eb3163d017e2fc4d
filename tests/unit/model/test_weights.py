"""Weights read from files one at a time are those of the loaded model, or are read by loading it."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, Qwen3MoeConfig

from zhub.errors import UnsupportedModelError
from zhub_workers.model.base_model import load_base_model, weights_fingerprint
from zhub_workers.model.basis import decompose_base
from zhub_workers.model.weights import LoadedWeights, WeightFiles, open_base, open_weight_files

ModelDirectory = Callable[[str], Path]
MIXTURES = {"mixtral": MixtralConfig, "qwen3_moe": Qwen3MoeConfig, "gpt_oss": GptOssConfig}
MIXTURE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 12,
    "num_experts": 12,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

of_each_kind = pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", *MIXTURES])


@pytest.fixture(scope="session")
def directory_of(
    model_directory: ModelDirectory, tiny: Any, tmp_path_factory: pytest.TempPathFactory
) -> ModelDirectory:
    """Directory of a tiny model, of a mixture of experts too."""

    def directory(kind: str) -> Path:
        if kind not in MIXTURES:
            return model_directory(kind)
        path = tmp_path_factory.mktemp(kind)
        tokenizer = tiny.tiny_tokenizer()
        torch.manual_seed(1)
        config = MIXTURES[kind](vocab_size=len(tokenizer), **MIXTURE)
        AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return directory


@of_each_kind
def test_the_tensors_of_the_files_are_those_of_the_loaded_model(directory_of: ModelDirectory, kind: str) -> None:
    path = directory_of(kind)
    base, weights = open_base(path)
    assert base.model.device.type == "meta" and isinstance(weights, WeightFiles)
    loaded = load_base_model(path)
    for name, tensor in loaded.model.state_dict().items():
        read = weights.tensor(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor), name
    assert weights.fingerprint == weights_fingerprint(loaded.model)
    assert (base.stop_ids, base.eos_id, base.context_length) == (loaded.stop_ids, loaded.eos_id, loaded.context_length)


@of_each_kind
def test_a_basis_made_from_the_files_is_the_one_made_from_the_loaded_model(
    directory_of: ModelDirectory, kind: str, tmp_path: Path
) -> None:
    path = directory_of(kind)
    base, weights = open_base(path)
    streamed = decompose_base(base, tmp_path / "streamed", weights=weights)
    assert streamed == decompose_base(load_base_model(path), tmp_path / "loaded")


def test_a_checkpoint_in_several_files_is_read(model_directory: ModelDirectory, tiny: Any, tmp_path: Path) -> None:
    tiny.tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    _, weights = open_base(tmp_path)
    assert isinstance(weights, WeightFiles)
    assert weights.fingerprint == weights_fingerprint(load_base_model(model_directory("llama")).model)


def test_one_matrix_is_in_memory_at_a_time(model_directory: ModelDirectory, tmp_path: Path) -> None:
    base, weights = open_base(model_directory("llama"))
    given: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watched:
        fingerprint = weights.fingerprint

        def tensor(self, name: str) -> Tensor:
            alive.append(sum(tensor() is not None for tensor in given))
            tensor = weights.tensor(name)
            given.append(weakref.ref(tensor))
            return tensor

    # With what is garbage only in a circle: that counts as in memory.
    gc.disable()
    try:
        decompose_base(base, tmp_path, weights=Watched())
    finally:
        gc.enable()
    assert len(alive) > 1 and set(alive) == {0}


def copy_with(source: Path, target: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """The model in ``source`` with other tensors in its file."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_files_with_tied_tensors_of_different_values_are_loaded(
    model_directory: ModelDirectory, tmp_path: Path
) -> None:
    def untie(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    path = copy_with(model_directory("llama"), tmp_path / "model", untie)
    base, weights = open_base(path)
    assert isinstance(weights, LoadedWeights) and base.model.device.type == "cpu"
    assert weights.fingerprint == weights_fingerprint(load_base_model(path).model)


def test_files_that_lack_a_tensor_are_refused_as_by_loading(model_directory: ModelDirectory, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    path = copy_with(model_directory("llama"), tmp_path / "model", lambda tensors: tensors.pop(name))
    with pytest.raises(UnsupportedModelError, match=f"lack 1 tensors of LlamaForCausalLM, first '{name}'"):
        open_base(path)


def test_files_with_a_tensor_of_another_shape_are_refused_as_by_loading(
    model_directory: ModelDirectory, tmp_path: Path
) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:-1].clone()

    path = copy_with(model_directory("llama"), tmp_path / "model", cut)
    with pytest.raises(UnsupportedModelError, match="1 weights are of other sizes than config.json says"):
        open_base(path)


def test_a_tensor_of_the_files_that_the_model_does_not_have_is_left_out(
    model_directory: ModelDirectory, tmp_path: Path
) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    path = copy_with(model_directory("llama"), tmp_path / "model", add)
    _, weights = open_base(path)
    assert isinstance(weights, WeightFiles)
    assert weights.fingerprint == weights_fingerprint(load_base_model(model_directory("llama")).model)


def test_an_index_that_names_no_file_is_not_read(model_directory: ModelDirectory, tmp_path: Path) -> None:
    path = copy_with(model_directory("llama"), tmp_path / "model", lambda tensors: None)
    (path / "model.safetensors").rename(path / "other.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "missing.safetensors"}}))
    assert open_weight_files(path, load_base_model(path, device="meta").model) is None
