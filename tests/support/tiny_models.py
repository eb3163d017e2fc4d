"""Random language models of a few thousand weights, saved as directories.

The unit tests import it on demand, so that those without a model do not pay for importing torch.
"""

from pathlib import Path
from typing import Any

import torch
from families import VOCABULARY, character_tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<user>' if message.role != 'assistant' else '<assistant>' }}{{ message.content }}"
    "{% if message.role == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONTEXT = 64


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    return character_tokenizer(chat_template)


def tiny_model(kind: str, seed: int = 0, width: int = 32) -> Any:
    """A random model whose logits differ enough from token to token for a policy to have something to learn."""
    vocabulary = len(VOCABULARY)
    torch.manual_seed(seed)
    # The models are so small that a second thread only waits, and for long where other tests run beside.
    torch.set_num_threads(1)
    match kind:
        case "llama":
            model: Any = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocabulary,
                    hidden_size=width,
                    intermediate_size=2 * width,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=CONTEXT,
                    tie_word_embeddings=True,
                    initializer_range=0.2,
                    bos_token_id=1,
                    eos_token_id=2,
                    pad_token_id=0,
                )
            )
        case "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=vocabulary,
                    n_positions=CONTEXT,
                    n_embd=width,
                    n_layer=2,
                    n_head=4,
                    initializer_range=0.2,
                    bos_token_id=1,
                    eos_token_id=2,
                )
            )
        case "neox":
            model = GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=vocabulary,
                    hidden_size=width,
                    intermediate_size=2 * width,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    max_position_embeddings=CONTEXT,
                    initializer_range=0.2,
                    bos_token_id=1,
                    eos_token_id=2,
                )
            )
        case _:
            raise ValueError(kind)
    return model.eval()


def save_tiny(directory: Path, kind: str = "llama", seed: int = 0) -> Path:
    """Write a tiny model and its tokenizer as ``save_pretrained`` does."""
    tiny_model(kind, seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
