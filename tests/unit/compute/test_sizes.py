"""What a base takes, counted on shapes, against real tensors and against what is published of known models."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zhub.registry.model_sizes import GPUS, USES, ModelSizes, least
from zhub_workers.compute.sizes import ROW_TOKENS, sizes_of
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import model_of_config
from zhub_workers.model.rollout import token_logprobs

ROOT = Path(__file__).parents[3]
PARAMETERS = {  # as their makers state them
    "Qwen2.5-0.5B": 494_032_768,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3-70B": 70_553_706_496,
    "Mixtral-8x7B": 46_702_792_704,
    "GPT-OSS-20B": 20_914_757_184,
}
TOKENS = 32

LoadAdapted = Callable[[str], AdaptedModel]
of_each_kind = pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])


@pytest.fixture(scope="module")
def make_sizes() -> Any:
    """The script that writes the page."""
    spec = importlib.util.spec_from_file_location("make_sizes", ROOT / "tools" / "make_sizes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def counted(make_sizes: Any) -> dict[str, ModelSizes]:
    sizes: dict[str, ModelSizes] = make_sizes.counted()
    return sizes


def test_the_page_of_sizes_says_what_the_code_counts(make_sizes: Any, counted: dict[str, ModelSizes]) -> None:
    assert make_sizes.page(counted) == (ROOT / "docs" / "sizes.md").read_text()


def test_known_models_have_the_parameters_that_they_are_known_for(counted: dict[str, ModelSizes]) -> None:
    assert {name: sizes.parameters for name, sizes in counted.items() if ", rank" not in name} == PARAMETERS


def test_a_rank_makes_the_basis_smaller_and_nothing_else(counted: dict[str, ModelSizes]) -> None:
    whole, leading = counted["Llama-3-70B"], counted["Llama-3-70B, rank 512"]
    assert leading.multipliers == 512 * leading.matrices
    assert leading.basis_bytes < whole.basis_bytes / 8 and leading.factors_bytes < whole.factors_bytes / 8
    changed = {name for name, value in leading.model_dump().items() if value != getattr(whole, name)}
    assert changed == {"multipliers", "basis_bytes", "factors_bytes", "needs"}


def test_the_least_machine_is_the_smallest_that_has_room() -> None:
    assert least({"small": 10, "large": 20}, 9_000_000_000) == "small"
    assert least({"small": 10, "large": 20}, 9_000_000_001) == "large"
    assert least(GPUS, 10**13) is None


@of_each_kind
def test_weights_and_basis_take_what_was_counted(
    kind: str, load_adapted: LoadAdapted, model_directory: Callable[[str], Path]
) -> None:
    adapted, directory = load_adapted(kind), model_directory(kind)
    sizes = sizes_of(*model_of_config(directory))
    parameters = list(adapted.base.model.parameters())
    assert sizes.parameters == sum(parameter.numel() for parameter in parameters)
    assert sizes.weights_bytes == sum(parameter.nbytes for parameter in parameters)
    header = int.from_bytes((directory / "model.safetensors").read_bytes()[:8], "little")
    assert sizes.checkpoint_bytes == (directory / "model.safetensors").stat().st_size - 8 - header
    factors = [factor for of_matrix in adapted.basis.factors.values() for factor in of_matrix]
    assert sizes.basis_bytes == sum(factor.nbytes for factor in factors)
    held = [tensor for name in adapted.layers for tensor in (adapted.factor(name), adapted.singular_values(name))]
    assert sizes.factors_bytes == sum(tensor.nbytes for tensor in held)
    assert (sizes.matrices, sizes.multipliers) == (len(adapted.layers), adapted.basis.parameters)


@of_each_kind
def test_a_training_holds_the_weights_of_one_expert_beside_the_base(kind: str, load_adapted: LoadAdapted) -> None:
    adapted = load_adapted(kind)
    base = {parameter.data_ptr() for parameter in adapted.base.model.parameters()}
    with adapted.training(adapted.zero_delta()):
        weights: list[Any] = [layer.weight for layer in adapted.layers.values()]
        merged = sum(weight.nbytes for weight in weights if weight.data_ptr() not in base)
    assert sizes_of(adapted.base.model, torch.float32).merged_bytes == merged


@of_each_kind
def test_a_cache_takes_what_was_counted(kind: str, load_adapted: LoadAdapted) -> None:
    model = load_adapted(kind).base.model
    cache = model(torch.full((1, TOKENS), 7), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert sizes_of(model, torch.float32, row_tokens=TOKENS).cache_bytes == held


@of_each_kind
def test_what_a_backward_keeps_of_a_row_is_estimated_within_a_half(kind: str, load_adapted: LoadAdapted) -> None:
    adapted = load_adapted(kind)
    delta = {name: zeros.requires_grad_() for name, zeros in adapted.zero_delta().items()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with adapted.training(delta), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = [*adapted.base.model.parameters(), *delta.values(), *map(adapted.factor, delta)]
        scored = token_logprobs(adapted.base, [[7] * (TOKENS // 2)], [[8] * (TOKENS // 2)], temperature=1.0)
        for tensor in held:
            kept.pop(tensor.untyped_storage().data_ptr(), None)
    del scored
    counted = sizes_of(adapted.base.model, torch.float32, row_tokens=TOKENS).activations_bytes
    assert 2 / 3 < counted / sum(kept.values()) < 3 / 2


def test_more_is_needed_for_training_than_for_serving_and_a_gpu_needs_a_host_beside_it() -> None:
    sizes = sizes_of(*model_of_config(ROOT / "tools" / "model_shapes" / "Qwen2.5-0.5B.json"))
    assert list(sizes.needs) == list(USES) and sizes.row_tokens == ROW_TOKENS
    decompose, train, serve = (sizes.needs[use] for use in USES)
    assert decompose.device_bytes < serve.device_bytes < train.device_bytes
    assert train.loading_bytes == serve.loading_bytes == sizes.weights_bytes
