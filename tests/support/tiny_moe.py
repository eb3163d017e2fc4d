"""Random mixture-of-experts models of a few thousand weights, one of each way in which transformers keeps them."""

from pathlib import Path
from typing import Any

import torch
from families import VOCABULARY
from tiny_models import CONTEXT, tiny_tokenizer
from transformers import AutoModelForCausalLM, JetMoeConfig, JetMoeForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WIDTH = 32
COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": CONTEXT},
    "deepseek_v2": {**LATENT, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**LATENT, "q_lora_rank": 16},
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 40},
}


def tiny_moe(family: str, seed: int = 0) -> Any:
    """A random model of ``FAMILIES``, its biases random as well."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    config: PretrainedConfig = CONFIG_MAPPING[family](**{**COMMON, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or parameter.ndim == 3:
                parameter.normal_(std=0.2)
    return model.eval()


def save_tiny_moe(directory: Path, family: str, seed: int = 0) -> Path:
    """Write a tiny model and its tokenizer as ``save_pretrained`` does."""
    tiny_moe(family, seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def save_unreached(directory: Path) -> Path:
    """Write a tiny model whose MoE experts zhub cannot adapt."""
    own = {"num_local_experts": 2, "num_experts_per_tok": 2, "kv_channels": 8, "num_hidden_layers": 1}
    model = JetMoeForCausalLM(JetMoeConfig(**{**COMMON, **own}))
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
