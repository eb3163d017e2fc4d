"""Which matrices the targets of a training mean, by the names that architectures give them."""

import families
import pytest

from zhub.errors import TrainingError
from zhub_workers.model.adapters import target_names
from zhub_workers.model.layers import linear_layers

ATTENTION = [
    "model.layers.0.self_attn.q_proj",
    "transformer.h.1.attn.c_attn",
    "model.layers.0.linear_attn.in_proj_qkvz",
    "model.layers.0.mamba.in_proj",
    "model.layers.1.mamba_decoder.mamba.out_proj",
    "model.layers.0.conv.in_proj",
    "model.layers.0.temporal_block.linear_x",
    "backbone.layers.2.mixer.q_proj",
    "backbone.layers.0.mixer.in_proj",
]
MLP = [
    "model.layers.0.mlp.up_proj",
    "transformer.h.1.mlp.c_fc",
    "model.layers.0.feed_forward.w1",
    "model.layers.0.mlp.shared_expert.down_proj",
    "backbone.layers.3.mixer.up_proj",
    "backbone.layers.1.mixer.shared_experts.down_proj",
    "backbone.layers.1.mixer.experts.3.down_proj",
]


@pytest.mark.parametrize(("targets", "meant"), [("attention", ATTENTION), ("mlp", MLP), ("both", ATTENTION + MLP)])
def test_targets_mean_the_matrices_of_attention_or_of_feed_forward_blocks(targets: str, meant: list[str]) -> None:
    assert target_names([*ATTENTION, *MLP, "model.layers.1.linear"], targets, None) == sorted(meant)


def test_all_means_every_matrix() -> None:
    assert target_names(["model.layers.1.linear"], "all", None) == ["model.layers.1.linear"]


def test_a_target_that_the_base_lacks_is_refused_by_what_it_has() -> None:
    with pytest.raises(TrainingError, match=r"no matrix for targets 'mlp'.* such as 'h.0.attn.c_attn'"):
        target_names(["h.0.attn.c_attn"], "mlp", None)


@pytest.mark.parametrize("name", families.HYBRIDS)
def test_a_hybrids_recurrent_layers_are_trained_with_attention(name: str) -> None:
    names = linear_layers(families.tiny_model(name))
    assert target_names(names, "attention", None)
    # Zamba's blocks are joined by a matrix that is of neither.
    beside = names.keys() - set(target_names(names, "both", None))
    assert {name.rpartition(".")[2] for name in beside} <= {"linear"}
