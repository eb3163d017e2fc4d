"""Mixture-of-experts bases on their way to an expert: their basis, the targets of a job, and training."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from following import as_z, logits, random_delta
from tiny_moe import FAMILIES, save_unreached
from tiny_training import PROMPTS, Load, reinforcement, run, supervised, write_rows

from zhub.errors import BasisMismatchError, TrainingError
from zhub_workers.compute.sizes import sizes_of
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import target_names
from zhub_workers.model.artifact import read_z, write_z
from zhub_workers.model.base_model import load_base_model, weights_fingerprint
from zhub_workers.model.basis import Basis, check_z, decompose_base
from zhub_workers.model.layers import adapted_layers, linear_layers, unreached_weights

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_the_size_of_a_basis_is_known_before_it_is_made(load_adapted: Load, family: str) -> None:
    adapted = load_adapted(family)
    size = sizes_of(adapted.base.model, torch.float32)
    factors = adapted.basis.factors.values()
    assert size.matrices == len(factors)
    assert size.basis_bytes == sum(factor.nbytes for three in factors for factor in three)
    assert size.factors_bytes == sum(4 * (len(s) ** 2 + len(s)) for _, s, _ in factors)
    assert size.parameters == sum(parameter.numel() for parameter in adapted.base.model.parameters())
    assert size.adapted_parameters == sum(len(u) * vh.shape[1] for u, _, vh in factors)
    assert size.adapted_parameters > 0.75 * size.parameters
    assert unreached_weights(adapted.base.model) == []


def test_weights_that_no_expert_can_adapt_are_named(tmp_path: Path) -> None:
    model = load_base_model(save_unreached(tmp_path)).model
    size = sizes_of(model, torch.float32)
    assert "model.layers.*.mlp.input_linear.weight" in unreached_weights(model)
    assert size.adapted_parameters < size.parameters / 2


def test_a_decomposition_that_was_cut_short_goes_on_where_it_stopped(
    model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    base = load_base_model(model_directory("gpt_oss"))
    fingerprint = decompose_base(base, tmp_path)
    index = json.loads((tmp_path / "basis.json").read_bytes())
    file_of = {matrix["name"]: tmp_path / matrix["file"] for matrix in index["matrices"]}
    lost = file_of["model.layers.0.mlp.experts.down_proj.1"]
    kept = file_of["model.layers.0.mlp.experts.down_proj.2"]
    inode = kept.stat().st_ino
    lost.unlink()
    (tmp_path / "basis.json").unlink()
    assert decompose_base(base, tmp_path) == fingerprint
    assert kept.stat().st_ino == inode
    assert lost.exists()


def test_a_changed_slice_is_decomposed_again_alone(model_directory: Callable[[str], Path], tmp_path: Path) -> None:
    base = load_base_model(model_directory("mixtral"))
    fingerprint, weights = decompose_base(base, tmp_path), weights_fingerprint(base.model)
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("*.safetensors")}
    base.model.model.layers[1].mlp.experts.down_proj[3] *= 2
    assert weights_fingerprint(base.model) != weights
    assert decompose_base(base, tmp_path) != fingerprint
    made = [path.name for path in tmp_path.glob("*.safetensors") if before[path.name] != path.stat().st_ino]
    names = list(adapted_layers(base.model))
    assert made == [f"{names.index('model.layers.1.mlp.experts.down_proj.3'):05d}.safetensors"]


def test_a_z_of_moe_experts_is_checked_matrix_by_matrix(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("qwen3_moe")
    z, name = as_z(random_delta(adapted, 1)), "model.layers.0.mlp.experts.down_proj.3"
    path = tmp_path / "z.safetensors"
    write_z(path, z, basis_fingerprint=adapted.basis.fingerprint, base_model="tiny")
    read = read_z(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), basis=adapted.basis)
    assert read.keys() == z.keys() and all(torch.equal(read[key], z[key]) for key in z)
    with pytest.raises(BasisMismatchError, match=r"experts\.down_proj\.4', which the basis lacks"):
        check_z({name.replace(".3", ".4"): z[name]}, adapted.basis)
    with pytest.raises(BasisMismatchError, match=r"experts\.down_proj\.3' has shape \(5,\)"):
        check_z({name: torch.ones(5)}, adapted.basis)


def test_a_basis_without_moe_experts_leaves_them_as_they_are(load_adapted: Load) -> None:
    whole = load_adapted("mixtral")
    linear = {name: whole.basis.factors[name] for name in linear_layers(whole.base.model)}
    adapted = AdaptedModel(whole.base, Basis("older", whole.basis.weights_fingerprint, linear))
    delta = random_delta(adapted, 1)
    assert delta.keys() == linear.keys()
    with whole.merged(as_z(whole.zero_delta() | delta)):
        expected = logits(whole)
    with adapted.merged(as_z(delta)):
        assert torch.equal(logits(adapted), expected)


def test_a_basis_with_matrices_that_the_model_lacks_is_refused(load_adapted: Load) -> None:
    whole = load_adapted("qwen2_moe")
    router = "model.layers.0.mlp.shared_expert_gate"
    factors = {router: (torch.ones(1, 1), torch.ones(1), torch.ones(1, 32)), **whole.basis.factors}
    with pytest.raises(BasisMismatchError, match=router):
        AdaptedModel(whole.base, Basis("older", whole.basis.weights_fingerprint, factors))


@every_family
def test_targets_name_the_moe_experts_alone_or_with_the_rest(load_adapted: Load, family: str) -> None:
    adapted = load_adapted(family)
    names = adapted.layers.keys()
    moe = {name for name in names if name not in linear_layers(adapted.base.model)}
    shared = {name for name in names if "shared_expert" in name}
    dense = {name for name in names if ".layers.0.mlp." in name} if "deepseek" in family else set()
    assert moe and set(target_names(names, "experts", None)) == moe
    assert set(target_names(names, "mlp", None)) == moe | shared | dense
    assert set(target_names(names, "all", None)) == set(names)
    assert not moe & set(target_names(names, "attention", None))
    assert all(".layers.1." in name for name in target_names(names, "experts", (1, 1)))


def test_experts_are_no_target_of_a_dense_base(load_adapted: Load) -> None:
    with pytest.raises(TrainingError, match="no matrix for targets 'experts'"):
        target_names(load_adapted("llama").layers, "experts", None)


@every_family
def test_reinforcement_moves_moe_experts_and_leaves_the_rest(load_adapted: Load, family: str, tmp_path: Path) -> None:
    adapted = load_adapted(family)
    spec = reinforcement(n_steps=4, targets="experts", eval_interval=2)
    result, events = run(adapted, spec, write_rows(tmp_path / "t", PROMPTS))
    assert result.steps == 4
    assert result.artifact.keys() == set(target_names(adapted.layers, "experts", None))
    assert all(data["grad_norm"] > 0 for _, _, data in events if data and "grad_norm" in data)
    check_z(result.artifact, adapted.basis)


@every_family
def test_supervised_training_learns_on_every_family(load_adapted: Load, family: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS, answer="ok")
    result, events = run(load_adapted(family), supervised(n_steps=12, targets="experts"), rows)
    losses = [data["train_loss"] for _, _, data in events if data and "train_loss" in data]
    assert losses[-1] < 0.9 * losses[0]
    assert result.validation is not None and result.validation.expert.mean >= result.validation.base.mean


@pytest.mark.parametrize("targets", ["all", "mlp", "experts"])
def test_a_lora_on_moe_experts_is_refused_and_told_what_to_do(load_adapted: Load, tmp_path: Path, targets: str) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    with pytest.raises(TrainingError, match=f"'lora' cannot .* '{targets}' mean .* Use the adapter 'svf'"):
        run(load_adapted("mixtral"), reinforcement(n_steps=1, adapter="lora", targets=targets), rows)


def test_a_lora_on_the_attention_of_a_mixture_of_experts_is_trained(load_adapted: Load, tmp_path: Path) -> None:
    spec = reinforcement(n_steps=1, adapter="lora", targets="attention")
    result, _ = run(load_adapted("mixtral"), spec, write_rows(tmp_path / "t", PROMPTS))
    assert result.artifact and all("self_attn" in name for name in result.artifact)
