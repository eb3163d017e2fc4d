"""Vocabularies of the shipped base, byte-level, and of the tiny models, one token a character."""

from importlib import resources
from typing import Any

import pytest


@pytest.fixture(scope="session")
def vocabulary() -> Any:
    """The shipped base's: byte-level BPE, so that some tokens are parts of characters."""
    from transformers import AutoTokenizer

    from zhub_workers.serving.vocabulary import Vocabulary

    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("zhub_workers") / "shipped_base"))
    return Vocabulary(tokenizer, frozenset({tokenizer.eos_token_id}))
