"""Exports to PEFT, loaded by PEFT itself: they answer as the expert does, or as near as is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from following import IDS, error
from peft import PeftModel
from random_experts import change_of, expert_of, followed
from safetensors.torch import load_file
from torch import Tensor

from zhub.errors import UnsupportedAdapterError
from zhub.registry.peft_config import CONFIG_FILE, WEIGHTS_FILE, read_config
from zhub.specs import BaseModelSource
from zhub_workers.model import psoft_export
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.layers import layer_weight
from zhub_workers.model.lora_export import LoraExport, as_lora, write_lora
from zhub_workers.model.peft_weights import read_lora
from zhub_workers.model.probe import distance
from zhub_workers.model.psoft_export import write_psoft

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
Load = Callable[[str], AdaptedModel]
Directory = Callable[[str], Path]
BASE = BaseModelSource(name="tiny")


def written(adapted: AdaptedModel, expert: ExpertFile, rank: int | None, directory: Path) -> LoraExport:
    directory.mkdir()
    lora = as_lora(expert, adapted, rank)
    write_lora(directory, lora, adapted, BASE)
    return lora


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["svf", "frames", "core", "lora", "dora"])
def test_a_lora_of_the_whole_rank_is_the_expert_in_peft(
    load_adapted: Load, model_directory: Directory, tmp_path: Path, family: str, kind: str
) -> None:
    adapted = load_adapted(family)
    expert = expert_of(adapted, kind)
    lora = written(adapted, expert, 512 if kind == "svf" else None, tmp_path / "lora")
    model = PeftModel.from_pretrained(load_base_model(model_directory(family)).model, tmp_path / "lora").eval()
    expected = followed(adapted, expert, tmp_path / "z")
    assert lora.error == 0
    assert error(logits(model), expected) < 2e-5
    assert error(logits(model.merge_and_unload()), expected) < 1e-4


@pytest.mark.parametrize("kind", ["svf", "core", "lora"])
def test_of_a_smaller_rank_it_is_the_best_approximation_and_the_error_is_told(
    load_adapted: Load, tmp_path: Path, kind: str
) -> None:
    adapted = load_adapted("llama")
    expert = expert_of(adapted, kind)
    whole, lora = as_lora(expert, adapted, 512), as_lora(expert, adapted, 3)
    left_out = total = 0.0
    for name in {key.rpartition(".")[0] for key in lora.tensors}:
        change, kept = product(whole, name), product(lora, name)
        best = torch.linalg.svdvals(change)[3:].square().sum()
        assert float((change - kept).square().sum()) == pytest.approx(float(best), rel=1e-3)
        left_out, total = left_out + float(best), total + float(change.square().sum())
    assert lora.rank == 3
    assert lora.error == pytest.approx((left_out / total) ** 0.5, rel=1e-3)


def product(lora: LoraExport, name: str) -> Tensor:
    a, b = (lora.tensors[f"{name}.{part}"].double() for part in ("lora_A", "lora_B"))
    return lora.alpha / lora.rank * b @ a


def test_the_distance_of_an_approximation_falls_with_its_rank(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("llama")
    expert = expert_of(adapted, "svf")
    exact = change_of(adapted, expert, tmp_path / "z")
    found = []
    for rank in (1, 8, 512):
        lora = as_lora(expert, adapted, rank)
        near = ExpertFile("lora", lora.tensors, {"rank": lora.rank, "alpha": lora.alpha})
        found.append(distance(adapted, exact, change_of(adapted, near, tmp_path / f"{rank}")))
    assert found[0].logits > found[1].logits > 100 * found[2].logits
    assert found[0].max_kl >= found[0].mean_kl > found[2].mean_kl


def test_a_lora_that_was_exported_is_one_that_is_imported(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("llama")
    expert = expert_of(adapted, "core")
    (tmp_path / "lora").mkdir()
    base = BaseModelSource(name="tiny", hub_id="acme/tiny", hub_revision="0" * 40)
    write_lora(tmp_path / "lora", as_lora(expert, adapted, None), adapted, base)
    config = json.loads((tmp_path / "lora" / CONFIG_FILE).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (base.hub_id, base.hub_revision)
    back = read_lora(tmp_path / "lora" / WEIGHTS_FILE, read_config(config), adapted)
    assert error(followed(adapted, back, tmp_path / "a"), followed(adapted, expert, tmp_path / "b")) < 2e-5


def test_a_dora_has_no_smaller_rank(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    with pytest.raises(UnsupportedAdapterError, match="give 16"):
        as_lora(expert_of(adapted, "dora"), adapted, 2)


def test_moe_experts_have_no_lora_and_no_psoft(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("mixtral")
    expert = expert_of(adapted, "svf")
    with pytest.raises(UnsupportedAdapterError, match=r"matrices of MoE experts, such as 'model\.layers\.0"):
        as_lora(expert, adapted, None)
    with pytest.raises(UnsupportedAdapterError, match="MoE experts"):
        write_psoft(tmp_path, expert, adapted, BASE)


def loaded_psoft(base: Any, directory: Path, folders: list[str]) -> Any:
    """As the folder's README says."""
    first: dict[str, Any] = {} if folders[0] == "." else {"subfolder": folders[0]}
    model: Any = PeftModel.from_pretrained(base, directory, **first)
    for folder in folders[1:]:
        model.load_adapter(str(directory), folder, subfolder=folder)
    model.base_model.set_adapter(["default", *folders[1:]])
    return model.eval()


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_psoft_is_exactly_the_expert_also_saved_loaded_and_merged(
    load_adapted: Load, model_directory: Directory, tmp_path: Path, family: str
) -> None:
    adapted = load_adapted(family)
    expert = expert_of(adapted, "svf")
    (tmp_path / "psoft").mkdir()
    here = BaseModelSource(name=str(model_directory(family)))  # PEFT looks for its vocabulary when it saves
    folders = write_psoft(tmp_path / "psoft", expert, adapted, here)
    sizes = {min(layer_weight(adapted.linear_layer(name)).shape) for name in expert.tensors}
    assert len(folders) == len(sizes), "PEFT has one number of directions in an adapter"
    model = loaded_psoft(load_base_model(model_directory(family)).model, tmp_path / "psoft", folders)
    expected = followed(adapted, expert, tmp_path / "z")
    assert error(logits(model), expected) < 2e-5
    model.save_pretrained(str(tmp_path / "again"))
    kept = ["default", *folders[1:]]
    again: Any = PeftModel.from_pretrained(load_base_model(model_directory(family)).model, tmp_path / "again")
    for name in kept[1:]:
        again.load_adapter(str(tmp_path / "again" / name), name)
    again.base_model.set_adapter(kept)
    assert error(logits(again.eval()), expected) < 2e-5
    assert error(logits(again.merge_and_unload(adapter_names=kept)), expected) < 1e-4


def test_psoft_takes_the_bytes_that_are_reckoned_and_is_refused_above_the_limit(
    load_adapted: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = load_adapted("llama")
    expert = expert_of(adapted, "svf")
    folders = write_psoft(tmp_path, expert, adapted, BASE)
    stored = [load_file(tmp_path / folder / WEIGHTS_FILE) for folder in folders]
    reckoned = psoft_export.psoft_bytes(expert.tensors)
    assert reckoned == sum(tensor.nbytes for tensors in stored for tensor in tensors.values())
    monkeypatch.setattr(psoft_export, "MAX_BYTES", reckoned - 1)
    with pytest.raises(UnsupportedAdapterError, match=rf"each of its {len(expert.tensors)} matrices, r up to 32"):
        write_psoft(tmp_path, expert, adapted, BASE)


@pytest.mark.parametrize(
    ("family", "kind", "told"), [("llama", "core", "of the kind 'core'"), ("gpt2", "svf", "Conv1D")]
)
def test_psoft_is_for_svf_experts_of_plain_linear_layers(
    load_adapted: Load, tmp_path: Path, family: str, kind: str, told: str
) -> None:
    adapted = load_adapted(family)
    with pytest.raises(UnsupportedAdapterError, match=told):
        write_psoft(tmp_path, expert_of(adapted, kind), adapted, BASE)
