"""The trial of a base model: what it refuses, with which remedy, and with what limitations it lets a base in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import tiny_moe
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from zhub.errors import UnsupportedModelError
from zhub_workers.model import base_model, layers
from zhub_workers.model.adapting import MOE_EXPERTS, names_of_each_kind, try_adapting
from zhub_workers.model.base_model import Batching, load_base_model
from zhub_workers.model.layers import adapted_layers, linear_layers
from zhub_workers.model.reading import sample_rows
from zhub_workers.model.trial import try_base

NAME = "team-llama"
TOOLS_NEEDED = "{% if not tools %}{{ raise_exception('tools, please') }}{% endif %}{{ messages[0].content }}"
TOOLS_COUNTED = "{{ tools | length }}{{ messages[0].content }}"
TEMPLATES = {
    "{% for m in messages %}{{ m.content }}": "endfor",
    "{{ messages[0].content[0].text + 'x' }}": "no attribute 'text'",
    TOOLS_NEEDED: "it needs tools, and zhub gives none (TemplateError: tools, please)",
    TOOLS_COUNTED: "it needs tools, and zhub gives none",
    "<user><assistant>": "leaves out what the user says",
    "{{ '' }}": "leaves out what the user says",
}


@pytest.fixture
def copied(model_directory: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny Llama's directory, named by no name of a model, that the test may damage."""
    return Path(shutil.copytree(model_directory("llama"), tmp_path / ("f" * 64)))


def refusal(directory: Path) -> str:
    """The message with which the base in this directory is refused: it has its name, and not the directory's."""
    with pytest.raises(UnsupportedModelError) as refused:
        try_base(load_base_model(directory, name=NAME), NAME)
    message = str(refused.value)
    assert message.startswith(f"{NAME}: ") and directory.name not in message
    return message


def rewrite(directory: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change every matrix of the weights."""
    tensors = load_file(directory / "model.safetensors")
    changed = {name: (change(t) if t.ndim == 2 else t).contiguous() for name, t in tensors.items()}
    save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})


def edit(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | fields))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_a_sound_base_has_no_limitations(model_directory: Callable[[str], Path], kind: str) -> None:
    trial = try_base(load_base_model(model_directory(kind)), kind)
    assert trial.limitations == [] and trial.base.batching == Batching()


@pytest.mark.parametrize(("template", "reason"), TEMPLATES.items())
def test_a_chat_template_that_gives_no_prompt_is_refused_with_what_it_said(
    copied: Path, template: str, reason: str
) -> None:
    (copied / "chat_template.jinja").write_text(template)
    message = refusal(copied)
    assert reason in message and "--chat-template FILE" in message


def test_a_tokenizer_larger_than_the_embedding_is_refused_by_both_numbers(copied: Path) -> None:
    edit(copied / "config.json", vocab_size=40)
    rewrite(copied, lambda t: t[:40] if t.shape[0] == 50 else t)
    assert "the tokenizer has 50 tokens and the model 40" in refusal(copied)


def test_weights_that_are_no_numbers_are_refused(copied: Path) -> None:
    rewrite(copied, lambda t: t * float("nan"))
    assert "NaN or infinite" in refusal(copied)


def test_weights_of_other_sizes_than_the_configuration_says_are_named(copied: Path) -> None:
    edit(copied / "config.json", intermediate_size=48)
    message = refusal(copied)
    assert "'model.layers.0.mlp.down_proj.weight': (32, 64), expected (32, 48)" in message


@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8")]
)
def test_quantised_weights_without_a_configuration_are_refused_by_their_file(
    copied: Path, dtype: torch.dtype, stored: str
) -> None:
    rewrite(copied, lambda t: t.mul(20).to(dtype))
    message = refusal(copied)
    assert f"as {stored}" in message and "model.safetensors" in message and "unquantised checkpoint" in message


@pytest.mark.parametrize("kept_bytes", [0, 50, -1000])
def test_a_truncated_file_of_weights_is_named_with_its_size(copied: Path, kept_bytes: int) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept_bytes] if kept_bytes else b"")
    message = refusal(copied)
    assert "model.safetensors" in message and f"{file.stat().st_size:,} bytes" in message
    assert "cut short" in message


def test_a_missing_shard_is_named(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert "1 of the 2 files of its weights are missing, first model-00002-of-00002.safetensors" in refusal(copied)


@pytest.mark.parametrize("content", ["{ no JSON", "[1, 2]"])
def test_a_generation_config_that_would_be_passed_over_is_refused(copied: Path, content: str) -> None:
    (copied / "generation_config.json").write_text(content)
    assert "generation_config.json is not a JSON object" in refusal(copied)


@pytest.mark.parametrize("token", [9999, -1, "</s>", [2, 9999]])
def test_a_stop_token_that_the_model_cannot_give_is_refused(copied: Path, token: object) -> None:
    edit(copied / "generation_config.json", eos_token_id=token)
    message = refusal(copied)
    assert "generation_config.json has the eos_token_id" in message and "the numbers 0 to 49" in message


def test_a_configuration_that_is_no_json_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    assert "cannot read config.json" in refusal(copied)


def test_a_tokenizer_that_has_to_be_converted_says_how(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer.model").write_bytes(b"\n\x0b\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    message = refusal(copied)
    assert "no tokenizer.json" in message and "save_pretrained(DIR) writes one" in message


def test_a_model_that_the_worker_cannot_hold_is_refused_by_both_numbers(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "device_memory_bytes", lambda _device: 20_000)
    with pytest.raises(UnsupportedModelError, match=r"its weights take .* GB of memory, and the worker has .* GB"):
        load_base_model(copied, name=NAME)


def test_a_base_whose_cache_changes_its_answers_serves_only(tmp_path: Path) -> None:
    trial = try_base(load_base_model(families.save_tiny(tmp_path, "deepseek_v32")), "sparse")
    assert [limitation.name for limitation in trial.limitations] == ["serve_only", "no_batching"]
    assert "with a cache" in trial.limitations[0].reason
    assert not trial.base.batching.together


def test_a_layer_whose_weight_is_read_past_it_makes_the_gradient_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base_model(families.save_tiny(tmp_path, "jamba"))
    rows = [row[:8] for row in sample_rows(base)[:2]]
    assert not any("dt_proj" in name for name in linear_layers(base.model))
    assert try_adapting(base, rows) is None
    monkeypatch.setattr(layers, "READ_PAST_THE_LAYER", ())
    assert any("dt_proj" in name for name in linear_layers(base.model))
    assert "dt_proj" in (try_adapting(base, rows) or "")


def test_a_backward_that_fails_makes_a_base_serve_only(
    model_directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base_model(model_directory("llama"))
    norm = base.model.model.norm

    def refuse_gradients(x: torch.Tensor) -> Any:
        if x.requires_grad:
            raise RuntimeError("no backward in this kernel\nand more")
        return type(norm).forward(norm, x)

    monkeypatch.setattr(norm, "forward", refuse_gradients)
    limitation = try_base(base, NAME).limitations[0]
    assert limitation.name == "serve_only"
    assert limitation.reason == "an expert cannot be trained: RuntimeError: no backward in this kernel and more"


@pytest.mark.parametrize("name", ["llama4_text", "phimoe"])
def test_a_router_that_returns_its_choice_is_not_adapted(tmp_path: Path, name: str) -> None:
    base = load_base_model(families.save_tiny(tmp_path, name))
    routers = {n for n, module in base.model.named_modules() if isinstance(module, nn.Linear) and "router" in n}
    assert routers and not routers & linear_layers(base.model).keys()
    assert try_base(base, name).limitations == []


def test_a_subclass_that_computes_what_a_linear_layer_does_is_adapted(tmp_path: Path) -> None:
    base = load_base_model(families.save_tiny(tmp_path, "falcon"))
    assert {type(layer).__name__ for layer in linear_layers(base.model).values()} == {"FalconLinear"}


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_a_mixture_of_experts_is_tried_with_a_few_moe_experts_of_each_kind(
    model_directory: Callable[[str], Path], family: str
) -> None:
    base = load_base_model(model_directory(family))
    assert try_base(base, family).limitations == []
    tried = [name for name in names_of_each_kind(adapted_layers(base.model)) if ".experts." in name]
    assert len(tried) == 2 * MOE_EXPERTS


def test_moe_experts_that_compute_otherwise_than_was_thought_only_serve(
    model_directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base_model(model_directory("mixtral"))
    kind = type(base.model.model.layers[0].mlp.experts)
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda module, *inputs: 2 * own(module, *inputs))
    [limitation] = try_base(base, NAME).limitations
    assert limitation.name == "serve_only" and "answers otherwise" in limitation.reason
