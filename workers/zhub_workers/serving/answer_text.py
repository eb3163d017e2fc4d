"""The text of an answer from its tokens as they come: characters are sent whole, and never what a stop string ends."""

from collections.abc import Sequence
from typing import Any

from zhub.generation import ChosenToken

REPLACEMENT = "\ufffd"  # what a decoder shows for a character whose last bytes are still to come

# Tokens that are decoded again with each new one, at most; and those that are still so where it would be more.
LONGEST_WINDOW, KEPT_IN_WINDOW = 16, 4


class AnswerText:
    """What of an answer may be sent.

    Args:
        stops: the first of these strings ends the answer, and is not part of it.
        with_special: whether special tokens are part of the text.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], *, with_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._with_special = with_special
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        # A token's text may depend on those before: each is decoded behind some that were decoded already.
        self._window, self._before = 0, ""
        self._held = ""  # decoded and not sent: it may begin a stop string
        self._length = 0  # of all that was decoded
        self._tokens: list[tuple[int, ChosenToken]] = []  # not sent yet, with where each begins
        self.stopped = False

    def add(self, token: int, chosen: ChosenToken | None = None) -> tuple[str, list[ChosenToken]]:
        """Take the next token; return the text that can be sent now, and the tokens that begin in it."""
        if chosen is not None:
            self._tokens.append((self._length, chosen))
        self._ids.append(token)
        text = self._decode(self._window)
        return ("", []) if text.endswith(REPLACEMENT) else self._take(text, last=False)

    def end(self) -> tuple[str, list[ChosenToken]]:
        """What is left when no token comes any more."""
        return self._take(self._decode(self._window), last=True)

    def _decode(self, start: int) -> str:
        return str(self._tokenizer.decode(self._ids[start:], skip_special_tokens=not self._with_special))

    def _take(self, text: str, *, last: bool) -> tuple[str, list[ChosenToken]]:
        new = text[len(self._before) :]
        self._before = text
        if len(self._ids) - self._window > LONGEST_WINDOW:
            self._window = len(self._ids) - KEPT_IN_WINDOW
            self._before = self._decode(self._window)
        self._held += new
        self._length += len(new)
        positions = [self._held.index(stop) for stop in self._stops if stop in self._held]
        if positions:
            self.stopped = True
            sent = min(positions)
        else:
            sent = len(self._held) - (0 if last else _possible_stop(self._held, self._stops))
        piece, self._held = self._held[:sent], self._held[sent:]
        end = self._length - len(self._held)
        tokens = [chosen for start, chosen in self._tokens if start < end or (last and not self.stopped)]
        self._tokens = self._tokens[len(tokens) :]
        return piece, tokens


def _possible_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of a stop string."""
    return max((length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0)
