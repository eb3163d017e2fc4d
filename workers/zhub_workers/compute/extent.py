"""How many tokens a batch of answers takes while it grows row by row: what scoring keeps in memory grows with them.

Where prompts are shared, that is what ``token_logprobs`` reads, each distinct prompt once, and the copies of the
prompts' keys and values that each answer is read on.
"""

import math
from collections.abc import Sequence
from os.path import commonprefix

from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.shared_start import LEAST_SAVED, allows_gaps


class Extent:
    """Of the rows added so far.

    Args:
        copied_token: what keys and values of a token of a prompt take, copied for one answer, in tokens that are read.
    """

    def __init__(self, base: BaseModel, copied_token: float) -> None:
        ways = base.batching
        self._shares_prompts = ways.together and ways.padded and ways.selected and ways.continued
        self._shares_start = allows_gaps(base)
        self._copied_token = copied_token
        self._rows = self._longest_prompt = self._longest_answer = 0
        self._shortest_prompt = math.inf
        self._prompts: set[tuple[int, tuple[int, ...]]] = set()
        self._owners: set[int] = set()
        self._start: tuple[int, ...] | None = None

    def add(self, owner: int, prompt: Sequence[int], answer_tokens: int) -> None:
        """Take in a row: whose expert it follows, its prompt, and how long its answer is."""
        self._rows += 1
        self._longest_prompt = max(self._longest_prompt, len(prompt))
        self._shortest_prompt = min(self._shortest_prompt, len(prompt))
        self._longest_answer = max(self._longest_answer, answer_tokens)
        tokens = tuple(prompt)
        self._prompts.add((owner, tokens))
        self._owners.add(owner)
        self._start = tokens if self._start is None else tuple(commonprefix([self._start, tokens]))

    @property
    def tokens(self) -> int:
        """Padding included."""
        padded = self._rows * (self._longest_prompt + self._longest_answer)
        if not self._shares_prompts or self._start is None:
            return padded
        read = len(self._prompts) * self._longest_prompt + self._rows * self._longest_answer
        saved = (len(self._prompts) - len(self._owners)) * int(min(len(self._start), self._shortest_prompt - 1))
        if self._shares_start and saved >= LEAST_SAVED:
            read -= saved
        return min(padded, math.ceil(read + self._copied_token * self._rows * self._longest_prompt))
