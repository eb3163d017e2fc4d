"""A LoRA that peft saved answers here as it answers in peft."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from following import IDS, changed_logits
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from zhub.errors import UnsupportedAdapterError
from zhub.manifest import sha256_file
from zhub.registry.peft_config import CONFIG_FILE, WEIGHTS_FILE, read_config
from zhub.specs import LoraSettings
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import adapter_of
from zhub_workers.model.artifact import read_expert, write_expert
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.changes import Change, read_change
from zhub_workers.model.peft_weights import read_lora
from zhub_workers.model.probe import PROMPTS, try_expert

# peft asks a model of transformers for what the next release of it calls otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rank_stabilised": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "some_layers": {"r": 2, "lora_alpha": 8, "layers_to_transform": [1]},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"FIRST": 2}, "alpha_pattern": {r".*\.1\..*SECOND": 5}},
    "stabilised_patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"FIRST": 9}, "use_rslora": True},
    "dora": {"r": 3, "lora_alpha": 6, "use_dora": True},
    "dora_patterns": {"r": 4, "lora_alpha": 8, "use_dora": True, "rank_pattern": {"FIRST": 2}},
}
TARGETS = {"llama": ("q_proj", "down_proj"), "gpt2": ("c_attn", "c_fc")}
Load = Callable[[str], AdaptedModel]


def saved_by_peft(model: Any, kind: str, directory: Path, **settings: Any) -> Path:
    """A LoRA with random matrices, as a team has it that trained one elsewhere."""
    first, second = TARGETS[kind]
    named: dict[str, Any] = {
        key: {name.replace("FIRST", first).replace("SECOND", second): number for name, number in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in settings.items()
    }
    config = LoraConfig(target_modules=[first, second], task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2", **named)
    made = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    made.save_pretrained(str(directory))
    return directory


@pytest.fixture
def read(load_adapted: Load, model_directory: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """Save a LoRA by peft and read it; returns the base here, and how it is followed."""

    def make(kind: str, **settings: Any) -> tuple[AdaptedModel, Path, LoraSettings]:
        directory = saved_by_peft(load_base_model(model_directory(kind)).model, kind, tmp_path / "lora", **settings)
        return load_adapted(kind), directory, settings_of(directory)

    return make


def settings_of(directory: Path) -> LoraSettings:
    return read_config(json.loads((directory / CONFIG_FILE).read_text()))


def change_of(adapted: AdaptedModel, directory: Path, settings: LoraSettings) -> Change:
    expert, path = read_lora(directory / WEIGHTS_FILE, settings, adapted), directory / "z"
    write_expert(path, expert, basis_fingerprint=adapted.basis.fingerprint, base_model="tiny")
    return read_change(path, sha256=sha256_file(path), adapted=adapted)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_answers_as_in_peft(
    read: Callable[..., Any], model_directory: Callable[[str], Path], kind: str, name: str
) -> None:
    adapted, directory, settings = read(kind, **CONFIGS[name])
    answered = changed_logits(adapted, change_of(adapted, directory, settings))
    in_peft = PeftModel.from_pretrained(load_base_model(model_directory(kind)).model, directory).eval()
    with torch.no_grad():
        base, unmerged = adapted.base.model(IDS).logits, in_peft(IDS).logits
        merged = in_peft.merge_and_unload()(IDS).logits
    assert not torch.allclose(base, unmerged, atol=1e-2), "the LoRA must change something"
    assert torch.allclose(answered, unmerged, atol=2e-5)
    assert torch.allclose(answered, merged, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "patterns", "dora"])
def test_it_is_measured_as_it_answers(read: Callable[..., Any], name: str) -> None:
    adapted, directory, settings = read("llama", **CONFIGS[name])
    followed = changed_logits(adapted, change_of(adapted, directory, settings))
    expert = read_expert(directory / "z", sha256=sha256_file(directory / "z"), basis=adapted.basis)
    adapter = adapter_of(adapted, expert)
    with torch.no_grad(), adapter.merged(adapter.imported(expert.tensors)):
        assert torch.allclose(adapted.base.model(IDS).logits, followed, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrices_of_half_precision_are_read_exactly(read: Callable[..., Any], dtype: torch.dtype) -> None:
    adapted, directory, settings = read("llama", **CONFIGS["plain"])
    halved = rewritten(directory, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    expert = read_lora(directory / WEIGHTS_FILE, settings, adapted)
    for key, tensor in halved.items():
        name = key.removeprefix("base_model.model.").removesuffix(".weight")
        assert torch.equal(expert.tensors[name], tensor.float())


def rewritten(directory: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    tensors = dict(change(load_file(directory / WEIGHTS_FILE)))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / WEIGHTS_FILE)
    return tensors


def with_nan(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = min(tensors)
    return tensors | {name: torch.full_like(tensors[name], torch.nan)}


REFUSALS: dict[str, tuple[Callable[[dict[str, Tensor]], Mapping[str, Tensor]], str]] = {
    "an embedding": (lambda t: t | {"base_model.model.embed.lora_embedding_A": torch.ones(2, 2)}, "no matrix"),
    "a whole module": (lambda t: t | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, "no matrix of a LoRA"),
    "another name": (lambda t: {name.replace("layers.0", "layers.9"): v for name, v in t.items()}, "no such matrix"),
    "the output": (
        lambda t: t | {f"base_model.model.lm_head.lora_{part}.weight": torch.ones(4, 4) for part in "AB"},
        "'lm_head', and the base has no such matrix",
    ),
    "a half": (lambda t: {name: v for name, v in t.items() if "lora_B" not in name}, "expected lora_A, lora_B"),
    "another width": (lambda t: {n: torch.ones(4, 7) if "lora_A" in n else v for n, v in t.items()}, "must be"),
    "another rank": (lambda t: {n: v[:2] if "lora_A" in n else v[:, :2] for n, v in t.items()}, "says rank 4"),
    "NaN": (with_nan, "NaN"),
    "doubles": (lambda t: {name: v.double() for name, v in t.items()}, "float64"),
    "nothing": (lambda t: {}, "no matrices"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_lora_of_this_base_is_refused_by_name(read: Callable[..., Any], name: str) -> None:
    adapted, directory, settings = read("llama", **CONFIGS["plain"])
    change, told = REFUSALS[name]
    rewritten(directory, change)
    with pytest.raises(UnsupportedAdapterError, match=told):
        read_lora(directory / WEIGHTS_FILE, settings, adapted)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"PK\x03\x04", (2**40).to_bytes(8, "little")])
def test_what_is_no_safetensors_file_is_refused(load_adapted: Load, tmp_path: Path, content: bytes) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(UnsupportedAdapterError, match="not a safetensors file"):
        read_lora(tmp_path / WEIGHTS_FILE, LoraSettings(rank=4, alpha=8), load_adapted("llama"))


@pytest.mark.parametrize("pattern", [r"(?:.|..|\w)+(?<!proj)", "("])
def test_a_pattern_that_takes_for_ever_or_is_none_is_refused(read: Callable[..., Any], pattern: str) -> None:
    adapted, directory, settings = read("llama", **CONFIGS["plain"])
    with pytest.raises(UnsupportedAdapterError, match="cannot be used"):
        read_lora(directory / WEIGHTS_FILE, settings.model_copy(update={"alphas": {pattern: 3.0}}), adapted)


def test_the_probe_measures_how_far_the_answers_are_from_the_base(read: Callable[..., Any]) -> None:
    adapted, directory, settings = read("llama", **CONFIGS["plain"])
    change = change_of(adapted, directory, settings)
    probe = try_expert(adapted, change)
    assert probe.prompts == len(PROMPTS) and probe.tokens > len(PROMPTS)
    assert 0 < probe.mean_kl <= probe.max_kl
    nothing = try_expert(adapted, Change())
    assert nothing.max_kl == 0


def test_an_expert_whose_scores_are_not_finite_is_refused(read: Callable[..., Any]) -> None:
    adapted, directory, settings = read("llama", **CONFIGS["plain"])
    rewritten(directory, lambda tensors: {name: 1e30 * tensor for name, tensor in tensors.items()})
    with pytest.raises(UnsupportedAdapterError, match="not finite"):
        try_expert(adapted, change_of(adapted, directory, settings))
