"""The base model in the package: small, safe to load, and able to read any text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zhub_workers
from zhub.demo.task_families import FAMILIES, sample_rows

DIRECTORY = Path(zhub_workers.__file__).parent / "shipped_base"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DIRECTORY)


def test_it_is_under_four_megabytes() -> None:
    assert sum(file.stat().st_size for file in DIRECTORY.rglob("*") if file.is_file()) <= 4_000_000


def test_it_holds_no_pickle_and_no_code() -> None:
    names = {file.name for file in DIRECTORY.rglob("*") if file.is_file()}
    assert {Path(name).suffix for name in names} <= {".json", ".jinja", ".md", ".safetensors"}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names


def test_it_is_a_llama_of_under_a_million_parameters_with_3072_singular_values(model: Any) -> None:
    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    assert model.config.model_type == "llama"
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000
    assert sum(min(layer.weight.shape) for layer in linear) == 3072


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "What is 47 plus 35?",
        "naïve  café\n\ttab",
        "漢字かな交じり文",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "\x00\x7f\u2028\ufeff",
        "a" * 5000,
        "".join(map(chr, range(0x20, 0x2000))),
    ],
)
def test_any_text_survives_encoding(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < len(tokenizer) for token in tokens)


def test_the_letters_of_a_quoted_string_are_one_token_each(tokenizer: Any) -> None:
    assert tokenizer.tokenize('Sort the letters of "dbcath".')[-8:] == ["d", "b", "c", "a", "t", "h", '"', "."]


def test_the_chat_template_marks_every_role_and_asks_for_the_answer(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Add 12 and 34."},
        {"role": "assistant", "content": "46"},
        {"role": "user", "content": "Sort."},
    ]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == (
        "<|system|>Be short.<|end|><|user|>Add 12 and 34.<|end|><|assistant|>46<|end|><|user|>Sort.<|end|><|assistant|>"
    )
    markers = [t for t in tokenizer(asked)["input_ids"] if t in tokenizer.all_special_ids]
    assert len(markers) == 9


def test_a_developer_message_reads_as_a_system_message(tokenizer: Any) -> None:
    texts = [
        tokenizer.apply_chat_template(
            [{"role": role, "content": "x"}, {"role": "user", "content": "y"}], tokenize=False
        )
        for role in ("system", "developer")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_ends_its_answers(model: Any, tokenizer: Any, family: str) -> None:
    rows = sample_rows(family, 16, seed=9, split="test")
    batch = tokenizer.apply_chat_template(
        [row["messages"] for row in rows],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    tokens = model.generate(**batch, do_sample=False, max_new_tokens=16)[:, batch["input_ids"].shape[1] :]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert bool((tokens == tokenizer.eos_token_id).any(1).all())


def test_every_family_is_on_the_model_card_with_its_accuracy() -> None:
    card = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert f"\n| {family} | " in card
