"""Tiny random models of many architectures, by family, written as ``save_pretrained`` does, with a tokenizer.

Each differs from the published one in its sizes alone: it has every kind of layer that the architecture has.
"""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<user>", "<assistant>"]
VOCABULARY = [*SPECIAL, *string.ascii_lowercase, *string.digits, *" .,?!+-=:"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<user>' if message.role != 'assistant' else '<assistant>' }}{{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = LATENT | {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_chunk_size": 8,
}  # fmt: skip
HALF_RECURRENT = {"layer_types": ["linear_attention", "full_attention"]}

DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 8},
    "gpt_bigcode": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "bloom": {},
    "falcon": {"new_decoder_architecture": True, "head_dim": None},
    "mpt": {"expansion_ratio": 2},
    "stablelm": {},
    "starcoder2": {},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"sliding_window": 8, "logit_scale": 1.0},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "glm4": {},
    "smollm3": {},
    "granite": {},
    "exaone4": {"sliding_window": 8},
    "nemotron": {},
    "helium": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {},
    "seed_oss": {},
    "apertus": {},
}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": MOE,
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 24},
    "qwen3_moe": MOE,
    "olmoe": MOE,
    "phimoe": MOE,
    "granitemoe": MOE,
    "gpt_oss": MOE | {"sliding_window": 8},
    "llama4_text": MOE | {"intermediate_size_mlp": 48, "attention_chunk_size": 16, "num_experts_per_tok": 1},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v32": DEEPSEEK
    | {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 2, "mlp_layer_types": ["dense", "sparse"]},
    "glm4_moe": DEEPSEEK,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1},
    "dots1": DEEPSEEK,
    "jetmoe": MOE | {"kv_channels": 8, "num_key_value_heads": 2},
    "minimax": MOE | HALF_RECURRENT | {"block_size": 8},
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": MOE | DELTA | {"shared_expert_intermediate_size": 24},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": MOE | DELTA | {"shared_expert_intermediate_size": 24},
    "olmo_hybrid": DELTA | {"num_key_value_heads": 4, "linear_num_key_heads": 4},
    "falcon_h1": MAMBA2 | {"mamba_d_ssm": 64},
    "bamba": MAMBA2 | {"attn_layer_indices": [1]},
    "granitemoehybrid": MOE | MAMBA2 | HALF_RECURRENT | {"shared_intermediate_size": 24},
    "jamba": MOE | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2, "mamba_d_state": 8,
        "mamba_dt_rank": 4, "use_mamba_kernels": False, "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 3, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"],
        "n_mamba_heads": 4, "mamba_headdim": 16, "mamba_d_state": 8, "mamba_ngroups": 1, "chunk_size": 8,
        "use_mamba_kernels": False, "num_key_value_heads": 4, "adapter_rank": 4,
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "ssm_state_size": 8,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": MOE | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "recurrent_gemma": {
        "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "num_key_value_heads": 2,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
}  # fmt: skip
FAMILIES = {"dense": DENSE, "mixture": MIXTURES, "hybrid": HYBRIDS}


def tiny_model(name: str, seed: int = 0) -> Any:
    """A random model of this architecture, whose logits differ enough from token to token to be compared."""
    fields = next(family[name] for family in FAMILIES.values() if name in family)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[name](**{k: v for k, v in (COMMON | fields).items() if v is not None})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            # What an architecture begins with zeros or ones would hide mistakes in how it is used.
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def character_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = chat_template
    return fast


def save_tiny(directory: Path, name: str, seed: int = 0) -> Path:
    """Write a tiny model of this architecture and its tokenizer, one token a character."""
    tiny_model(name, seed).save_pretrained(directory)
    character_tokenizer(CHAT_TEMPLATE).save_pretrained(directory)
    return directory
