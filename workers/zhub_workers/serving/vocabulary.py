"""The tokens of a base model as bytes: log-probabilities name tokens by them, and grammars read them.

A token need not be a whole character: byte-level tokenizers cut one into several.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORD_MARK = "▁"  # SentencePiece writes a space so
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """``tokens[i]`` is what token i writes: of an added token, such as the end of a turn, its name."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        self.stop_ids = stop_ids
        self._tokenizer = tokenizer
        self._added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        decoders = _decoders(tokenizer)
        texts = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.tokens = tuple(
            self._added[index].encode() if index in self._added else _bytes_of(text or "", decoders)
            for index, text in enumerate(texts)
        )

    def bytes_of(self, token: int) -> bytes:
        """What a token writes; nothing, where the model has more tokens than its tokenizer."""
        return self.tokens[token] if token < len(self.tokens) else b""

    def id_of(self, text: str) -> int | None:
        """The token that was added to the vocabulary for ``text``, or None."""
        return next((index for index, content in self._added.items() if content == text), None)

    @cached_property
    def grammar_tokens(self) -> LLTokenizer:
        """The vocabulary as grammars read it. Made once, in about 0.4 s for 50,000 tokens, without holding the GIL."""
        return LLTokenizer(TokenizerWrapper(_Tokens(self._tokenizer, self.tokens, self._added, min(self.stop_ids))))


class _Tokens:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Any, tokens: Sequence[bytes], added: Iterable[int], eos_id: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = tokens
        # Special or not for the tokenizer: a grammar's text never makes one, and names it by its number.
        self.special_token_ids = sorted(added)
        self.eos_token_id = eos_id
        self.bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _decoders(tokenizer: Any) -> dict[str, Any]:
    """The steps of the tokenizer's decoder by their types; none where it has none to show."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return {}
    state = json.loads(backend.decoder.__getstate__())
    return {step["type"]: step for step in state.get("decoders", [state])}


def _bytes_of(text: str, decoders: dict[str, Any]) -> bytes:
    if "ByteLevel" in decoders:
        return b"".join(_BYTES.get(character) or character.encode() for character in text)
    if "ByteFallback" in decoders and (byte := BYTE_TOKEN.fullmatch(text)):
        return bytes.fromhex(byte[1])
    if "Metaspace" in decoders or decoders.get("Replace", {}).get("pattern") == {"String": WORD_MARK}:
        text = text.replace(WORD_MARK, " ")
    return text.encode()


_BYTES = {character: bytes([byte]) for byte, character in bytes_to_unicode().items()}
