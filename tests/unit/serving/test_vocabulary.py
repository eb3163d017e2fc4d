"""What tokens write, in the ways in which tokenizers spell it."""

from typing import Any

import pytest

from zhub_workers.serving.vocabulary import Vocabulary

TEXTS = ["héllo wörld", "\U0001f600 {}\n\t", "a  b", "\u2028"]


def metaspace_tokenizer() -> Any:
    """A tokenizer as SentencePiece's: ``▁`` for a space, and a token for each byte that has none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(256)), *"helo"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_are_those_of_their_text(vocabulary: Vocabulary, text: str) -> None:
    sentence_piece = metaspace_tokenizer()
    for tokens_of, of in (
        (vocabulary._tokenizer, vocabulary),
        (sentence_piece, Vocabulary(sentence_piece, frozenset({1}))),
    ):
        ids = tokens_of(text, add_special_tokens=False)["input_ids"]
        assert len(ids) > 1 and b"".join(of.bytes_of(token) for token in ids) == text.encode()


def test_a_character_tokenizer_writes_its_characters(tiny: Any) -> None:
    tokenizer = tiny.tiny_tokenizer()
    vocabulary = Vocabulary(tokenizer, frozenset({tokenizer.eos_token_id}))
    ids = tokenizer("add 3", add_special_tokens=False)["input_ids"]
    assert b"".join(vocabulary.bytes_of(token) for token in ids) == b"add 3"
    assert vocabulary.bytes_of(tokenizer.eos_token_id) == b"</s>" and vocabulary.bytes_of(10**6) == b""
    assert vocabulary.id_of("<user>") == tokenizer.convert_tokens_to_ids("<user>")
    assert vocabulary.id_of("a") is None
