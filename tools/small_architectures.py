"""The shapes of the small bases that ``make_base_model`` makes: the one that zhub ships, and others to compare with."""

from typing import Any

from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ARCHITECTURES = ("llama", "gpt2", "qwen3", "gemma3", "mixtral")


def make_model(tokenizer: Any, architecture: str) -> Any:
    """Return the untrained model.

    ``llama`` is what zhub ships: 3,072 singular values in its linear layers, under a million parameters. The others
    differ from it in family, width and depth, so that what holds for one base can be tried on several.
    """
    common = {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    match architecture:
        case "llama":
            shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
            return LlamaForCausalLM(LlamaConfig(**common, **heads, **shape))
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(**common, n_embd=160, n_layer=5, n_head=5, n_positions=256))
        case "qwen3":
            shape = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8, "head_dim": 24}
            return Qwen3ForCausalLM(Qwen3Config(**common, **heads, **shape))
        case "gemma3":
            shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "head_dim": 48}
            return Gemma3ForCausalLM(Gemma3TextConfig(**common, **heads, **shape))
        case "mixtral":
            shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4}
            experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
            return MixtralForCausalLM(MixtralConfig(**common, **heads, **shape, **experts))
    raise ValueError(f"no architecture '{architecture}'")
