"""Loading a base model from a directory that somebody else wrote."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from zhub.errors import InvalidRequestError, UnsupportedModelError
from zhub_workers.model.base_model import load_base_model, render_prompt, render_target, weights_fingerprint
from zhub_workers.model.layers import layer_weight, linear_layers

KINDS = ["llama", "gpt2", "neox"]
Directories = Callable[[str], Path]


@pytest.fixture
def copied(model_directory: Directories, tmp_path: Path) -> Path:
    """A tiny Llama's directory that the test may damage."""
    return Path(shutil.copytree(model_directory("llama"), tmp_path / "model"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_loads_frozen_with_its_stop_token_and_context(
    model_directory: Directories, tiny: Any, kind: str
) -> None:
    base = load_base_model(model_directory(kind))
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.stop_ids == {2} and base.eos_id == 2
    assert base.context_length == tiny.CONTEXT


@pytest.mark.parametrize(("kind", "per_layer"), [("llama", 7), ("gpt2", 4), ("neox", 4)])
def test_every_linear_layer_but_the_output_embedding_is_adapted(
    model_directory: Directories, kind: str, per_layer: int
) -> None:
    base = load_base_model(model_directory(kind))
    layers = linear_layers(base.model)
    assert len(layers) == 2 * per_layer
    assert base.model.get_output_embeddings() not in layers.values()
    assert list(layers) == sorted(layers)


def test_a_conv1d_weight_is_seen_as_out_by_in(model_directory: Directories) -> None:
    layers = linear_layers(load_base_model(model_directory("gpt2")).model)
    assert tuple(layer_weight(layers["transformer.h.0.attn.c_attn"]).shape) == (96, 32)


def test_the_fingerprint_does_not_depend_on_how_the_weights_were_cut_into_files(
    model_directory: Directories, tmp_path: Path
) -> None:
    base = load_base_model(model_directory("llama"))
    shutil.copytree(model_directory("llama"), tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    base.model.save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert weights_fingerprint(load_base_model(tmp_path / "cut").model) == weights_fingerprint(base.model)


def test_the_fingerprint_changes_with_one_bit_of_one_weight(model_directory: Directories) -> None:
    base = load_base_model(model_directory("llama"))
    before = weights_fingerprint(base.model)
    weight: Any = next(iter(linear_layers(base.model).values())).weight
    with torch.no_grad():
        weight.view(torch.int32)[0, 0] ^= 1
    assert weights_fingerprint(base.model) != before


def test_a_prompt_is_rendered_by_the_chat_template_and_tokenised_once(model_directory: Directories) -> None:
    base = load_base_model(model_directory("llama"))
    ids = render_prompt(base, [{"role": "user", "content": "hi"}])
    assert base.tokenizer.convert_ids_to_tokens(ids) == ["<user>", "h", "i", "<assistant>"]
    assert base.tokenizer.convert_ids_to_tokens(render_target(base, "ok")) == ["o", "k", "</s>"]


def test_a_template_that_refuses_the_messages_is_a_request_error(model_directory: Directories) -> None:
    base = load_base_model(model_directory("llama"))
    with pytest.raises(InvalidRequestError, match="no tools here"):
        render_prompt(base, [{"role": "tool", "content": "x"}])


def test_pickled_weights_are_refused_unopened(copied: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (copied / "exploded",))

    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsupportedModelError, match="save_pretrained"):
        load_base_model(copied)
    assert not (copied / "exploded").exists()


def test_a_missing_chat_template_names_the_remedy(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(UnsupportedModelError, match=r"Add chat_template\.jinja to the directory"):
        load_base_model(copied)


def test_a_missing_tokenizer_is_named(copied: Path) -> None:
    for file in copied.glob("*token*"):
        file.unlink()
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        load_base_model(copied)


def test_a_model_of_another_kind_is_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="not a causal language model"):
        load_base_model(copied)


def test_weights_that_would_be_drawn_at_random_are_refused(copied: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(copied / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="lack 1 tensors"):
        load_base_model(copied)


def test_weights_cut_short_are_refused(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors is cut short"):
        load_base_model(copied)


def test_code_that_came_with_the_model_is_never_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["model_type"] = "bomb"
    config["auto_map"] = {"AutoConfig": "bomb.Config", "AutoModelForCausalLM": "bomb.Model"}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "bomb.py").write_text(f"open({str(copied / 'exploded')!r}, 'w').close()\n")
    with pytest.raises(UnsupportedModelError):
        load_base_model(copied)
    assert not (copied / "exploded").exists()


def test_logits_are_those_of_transformers_own_loading(model_directory: Directories) -> None:
    base = load_base_model(model_directory("neox"))
    reference = AutoModelForCausalLM.from_pretrained(model_directory("neox")).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(base.model(ids).logits, reference(ids).logits)
