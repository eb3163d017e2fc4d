"""Which settings of a LoRA of PEFT are honoured, ignored, or refused by name; and what is known of its base."""

import dataclasses
from typing import Any

import pytest
from peft import LoraConfig

from zhub.errors import InvalidRequestError, UnsupportedAdapterError
from zhub.registry import peft_config
from zhub.registry.peft_config import check_base, read_config, scaling
from zhub.specs import BaseModelSource, LoraSettings

COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
HUB = BaseModelSource(name="small", hub_id="Maker/small-1b", hub_revision=COMMIT)
FILES = BaseModelSource(name="small")
PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}


def as_saved(**settings: Any) -> dict[str, Any]:
    """A configuration as peft writes it into ``adapter_config.json``."""
    return {name: _plain(value) for name, value in settings_of(LoraConfig(**settings)).items()}


def settings_of(config: Any) -> dict[str, Any]:
    return dict(config.to_dict())


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)


def test_a_plain_lora_of_peft_is_read_with_all_its_settings() -> None:
    config = as_saved(
        r=4, lora_alpha=12, use_rslora=True, use_dora=True, target_modules=["q_proj"], lora_dropout=0.1,
        rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 3}, layers_to_transform=[0], layers_pattern="layers",
        init_lora_weights="gaussian", fan_in_fan_out=True, task_type="CAUSAL_LM", revision="main",
    )  # fmt: skip
    assert read_config(config) == LoraSettings(
        rank=4, alpha=12, ranks={"v_proj": 2}, alphas={"v_proj": 3}, rank_stabilised=True, dora=True
    )


def test_every_setting_of_peft_is_read_ignored_or_refused() -> None:
    known = {*peft_config.READ, *peft_config.IGNORED, *peft_config.REFUSED}
    assert {field.name for field in dataclasses.fields(LoraConfig)} == known


@pytest.mark.parametrize(
    "setting",
    [
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"lora_bias": True},
        {"trainable_token_indices": [1, 2]},
        {"alora_invocation_tokens": [5]},
        {"layer_replication": [[0, 2]]},
        {"target_parameters": ["experts.up"]},
        {"use_qalora": True},
        {"kasa_config": {"beta": 1}},
        {"arrow_config": {"top_k": 2}},
        {"invented_in_a_newer_peft": 3},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_would_change_the_answer_is_refused_by_name(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(UnsupportedAdapterError, match=f"'{name}'") as refused:
        read_config(PLAIN | setting)
    assert refused.value.param == name


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", 1, ["gaussian"]])
def test_a_start_that_changes_the_base_is_refused_with_how_to_save_it_plainly(start: Any) -> None:
    with pytest.raises(UnsupportedAdapterError, match="path_initial_model_for_weight_conversion"):
        read_config(PLAIN | {"init_lora_weights": start})


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_a_start_beside_the_base_is_fine(start: Any) -> None:
    assert read_config(PLAIN | {"init_lora_weights": start}).rank == 8


@pytest.mark.parametrize("kind", ["IA3", "VERA", None])
def test_another_method_is_refused(kind: str | None) -> None:
    with pytest.raises(UnsupportedAdapterError, match="LoRA and DoRA alone"):
        read_config(PLAIN | {"peft_type": kind})


@pytest.mark.parametrize(
    ("setting", "field"),
    [({"r": 0}, "r"), ({"r": "8"}, "r"), ({"r": 513}, "r"), ({"lora_alpha": 0}, "lora_alpha"),
     ({"lora_alpha": -1.0}, "lora_alpha"), ({"rank_pattern": {"q": 0}}, "rank_pattern.q"),
     ({"use_dora": "yes"}, "use_dora")],
)  # fmt: skip
def test_a_value_that_none_can_have_is_refused_by_field(setting: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        read_config(PLAIN | setting)


def test_the_scale_is_that_of_peft() -> None:
    assert scaling(LoraSettings(rank=4, alpha=8), 4, 8.0) == 2
    assert scaling(LoraSettings(rank=4, alpha=8, rank_stabilised=True), 4, 8.0) == 4


def test_another_model_of_the_hub_is_refused_with_what_to_do_if_it_is_the_same() -> None:
    with pytest.raises(InvalidRequestError, match="write 'Maker/small-1b' as 'base_model_name_or_path'"):
        check_base({"base_model_name_or_path": "other/large-7b"}, HUB)


def test_another_commit_is_refused() -> None:
    claimed = {"base_model_name_or_path": "Maker/small-1b", "revision": OTHER_COMMIT}
    with pytest.raises(InvalidRequestError, match=f"commit {OTHER_COMMIT}.*commit {COMMIT}"):
        check_base(claimed, HUB)


@pytest.mark.parametrize(
    ("claimed", "base", "told"),
    [
        ({}, HUB, "does not say which base"),
        ({"base_model_name_or_path": "/data/small"}, HUB, "whether the weights are the same is not known"),
        ({"base_model_name_or_path": "Maker/small-1b"}, FILES, "whether the weights are the same is not known"),
        ({"base_model_name_or_path": "maker/Small-1b", "revision": "main"}, HUB, "not at which commit"),
        ({"base_model_name_or_path": "Maker/small-1b", "revision": COMMIT}, HUB, "at the commit that the base"),
    ],
)
def test_what_is_known_of_the_base_is_told(claimed: dict[str, Any], base: BaseModelSource, told: str) -> None:
    assert told in check_base(claimed, base)
