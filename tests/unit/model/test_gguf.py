"""GGUF files become directories of models, or are refused by name."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from zhub.errors import UnsupportedModelError
from zhub_workers.model.base_model import load_base_model, render_prompt
from zhub_workers.model.gguf import convert_gguf

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
WIDTH, HEADS, MLP, LAYERS = 32, 4, 64, 2
BYTES = [chr(letter) for letter in range(33, 127)]  # of the byte alphabet, those that stand for themselves
TOKENS = ["<|endoftext|>", "<s>", "</s>", *BYTES, "Ġ", "hi"]

WriteGguf = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """Write a llama of random weights with its tokenizer and template, in float32."""

    def write(name: str = "tiny.gguf", *, architecture: str = "llama") -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        writer.add_context_length(64)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(MLP)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10_000.0)
        writer.add_vocab_size(len(TOKENS))
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
        writer.add_token_merges(["h i"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(2)
        writer.add_chat_template(TEMPLATE)
        rng = np.random.default_rng(1)
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd": (len(TOKENS), WIDTH),
            "output_norm": (WIDTH,),
            "output": (len(TOKENS), WIDTH),
        }
        for layer in range(LAYERS):
            block: dict[str, tuple[int, ...]] = {f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
            block |= {"ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP)}
            block |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
        for tensor, shape in shapes.items():
            writer.add_tensor(f"{tensor}.weight", rng.normal(size=shape).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


def test_a_gguf_file_becomes_a_base_model_with_its_template_and_weights(write_gguf: WriteGguf, tmp_path: Path) -> None:
    file = write_gguf()
    convert_gguf(file, tmp_path / "model")
    base = load_base_model(tmp_path / "model")
    assert base.tokenizer.decode(render_prompt(base, [{"role": "user", "content": "hi"}])) == "hi"
    (stored,) = [tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "blk.1.ffn_down.weight"]
    weight = base.model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(weight, torch.from_numpy(stored.data.copy()).bfloat16().float())


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UnsupportedModelError, match="model.gguf: not a GGUF file"):
        convert_gguf(file, tmp_path / "model")


def test_a_gguf_file_that_is_cut_short_is_refused_by_name(write_gguf: WriteGguf, tmp_path: Path) -> None:
    file = write_gguf()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UnsupportedModelError, match="tiny.gguf: transformers cannot read this GGUF file"):
        convert_gguf(file, tmp_path / "model")


@pytest.mark.parametrize(("number", "named"), [(99, "99.* is not a valid"), (9, "Q8_1")])
def test_a_gguf_file_of_an_unknown_quantisation_is_refused_by_name_with_another_to_take(
    write_gguf: WriteGguf, tmp_path: Path, number: int, named: str
) -> None:
    file = write_gguf()
    content = file.read_bytes()
    # A tensor's name is followed by its dimensions, one here, each 8 bytes, and then by the number of its type.
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    assert content[at : at + 4] == bytes(4)  # float32
    file.write_bytes(content[:at] + number.to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(UnsupportedModelError, match=f"tiny.gguf: its weights are quantised .*{named}.* Q8_0 or F16"):
        convert_gguf(file, tmp_path / "model")


def test_a_gguf_file_of_an_architecture_that_nobody_reads_is_refused_by_name(
    write_gguf: WriteGguf, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match="tiny.gguf: .*nobodys"):
        convert_gguf(write_gguf(architecture="nobodys"), tmp_path / "model")
