"""Log-probabilities of tokens as the dialect tells them: in chat by token, in text completions by columns."""

from collections.abc import Iterable, Sequence
from typing import Any

from zhub.generation import ChosenToken, LikelyToken


def by_token(tokens: Iterable[ChosenToken]) -> dict[str, Any]:
    """``logprobs`` of a chat's choice. A token that is a part of a character has its bytes."""
    content = [_entry(token) | {"top_logprobs": [_entry(likely) for likely in token.likeliest]} for token in tokens]
    return {"content": content, "refusal": None}


def by_column(tokens: Sequence[ChosenToken], offset: int) -> dict[str, Any]:
    """``logprobs`` of a text completion's choice, whose text begins ``offset`` characters after the prompt's."""
    offsets, so_far = [], b""
    for token in tokens:
        offsets.append(offset + len(so_far.decode(errors="ignore")))
        so_far += token.token
    return {
        "tokens": [_text(token) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_text(likely): likely.logprob for likely in token.likeliest} for token in tokens],
        "text_offset": offsets,
    }


def _entry(token: LikelyToken) -> dict[str, Any]:
    return {"token": _text(token), "logprob": token.logprob, "bytes": list(token.token)}


def _text(token: LikelyToken) -> str:
    return token.token.decode(errors="replace")
