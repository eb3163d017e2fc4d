"""Two ways to let a model read the next tokens of answers in the making; what they keep lasts from step to step.

``PagedRunner`` reads all tokens of a step in one forward. Most architectures allow it; ``runner_for`` tries. The others
(recurrent states, attention of their own make) are read answer by answer, each on a cache of its own, by
``SingleRunner``: they join and leave as freely, and cost as much as they would alone.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zhub.errors import UnsupportedModelError
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.caches import new_cache
from zhub_workers.model.logprobs import selecting
from zhub_workers.model.reading import FAILURES, difference, sample_rows, told, tolerance_of
from zhub_workers.serving.blocks import BLOCK_TOKENS
from zhub_workers.serving.paged_attention import NAME, Pages, Span, reading
from zhub_workers.serving.scheduler import Answer, Part

log = logging.getLogger("zhub.serving")

Assign = Callable[[Sequence[int]], None]  # see ``following_rows``
UNBOUNDED_TOKENS = 8192  # of one answer, where the architecture has no bound
KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


class PagedRunner:
    """Reads all parts of a step as one row of tokens, on keys and values in ``count`` blocks.

    ``base``: its attention is changed for good; nothing else may use that model.
    """

    divided = True
    shared = True

    def __init__(self, base: BaseModel, count: int) -> None:
        base.model.set_attn_implementation(NAME)
        self._base = base
        self._pages = Pages(count)

    @torch.no_grad()
    def read(self, parts: Sequence[Part], owners: Sequence[int], assign: Assign | None) -> Tensor:
        """Logits ``(n, v)`` after each part that is its answer's last, in order.

        Args:
            owners: whose row each part is, ascending; ``assign`` is told for each token.
        """
        ids = [token for part in parts for token in _tokens(part)]
        positions = [p for part in parts for p in range(part.answer.read, part.answer.read + part.count)]
        ends, end = [], 0
        for part in parts:
            end += part.count
            if part.is_last:
                ends.append(end - 1)
        if assign is not None:
            assign([owner for part, owner in zip(parts, owners, strict=True) for _ in range(part.count)])
        device = self._base.device
        spans = [Span(part.answer.read, part.count, part.answer.blocks) for part in parts]
        arguments: dict[str, Any] = {"input_ids": torch.tensor([ids], device=device), "use_cache": False}
        arguments["position_ids"] = torch.tensor([positions], device=device)
        model, at = self._base.model, torch.tensor(ends, dtype=torch.int64, device=device)
        with reading(self._pages, spans, model.config.get_text_config(), device), selecting(self._base, at):
            logits: Tensor = model(**arguments).logits
        return logits

    def keep(self, running: Sequence[Answer]) -> None:
        """Nothing is kept beside the blocks, which are the scheduler's."""

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks of an answer that failed."""
        self._pages.clear(blocks)

    @property
    def block_bytes(self) -> int:
        """Of one block, once something was read."""
        return self._pages.block_bytes


class SingleRunner:
    """Reads each part by itself, on a cache of its answer's own."""

    shared = False

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._caches: dict[Answer, Any] = {}
        self.divided = base.batching.continued

    @torch.no_grad()
    def read(self, parts: Sequence[Part], owners: Sequence[int], assign: Assign | None) -> Tensor:
        """As ``PagedRunner.read``."""
        logits = []
        for part, owner in zip(parts, owners, strict=True):
            if assign is not None:
                assign([owner])
            if part.answer.read == 0:
                self._caches[part.answer] = new_cache(self._base.model)
            after = self._read(part)
            if part.is_last:
                logits.append(after)
        return torch.cat(logits) if logits else torch.empty(0)

    def keep(self, running: Sequence[Answer]) -> None:
        """Drop the caches of all other answers."""
        self._caches = {answer: self._caches[answer] for answer in running if answer in self._caches}

    def clear(self, blocks: Sequence[int]) -> None:
        """Nothing lies in blocks."""

    def _read(self, part: Part) -> Tensor:
        device = self._base.device
        end = part.answer.read + part.count
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor([_tokens(part)], device=device),
            "attention_mask": torch.ones(1, end, dtype=torch.int64, device=device),
        }
        if "position_ids" in self._base.forward_arguments:
            arguments["position_ids"] = torch.arange(part.answer.read, end, device=device).unsqueeze(0)
        with selecting(self._base, torch.tensor([part.count - 1], device=device)):
            cache = self._caches[part.answer]
            logits: Tensor = self._base.model(**arguments, past_key_values=cache, use_cache=True).logits
        return logits


Runner = PagedRunner | SingleRunner


def runner_for(base: BaseModel, view: BaseModel, cache_bytes: int, places: int) -> tuple[Runner, int]:
    """The runner that suits a base, and for how many blocks; ``view`` is the same model, for the runner alone.

    Args:
        cache_bytes: that keys and values may take.
        places: answers at a time; there are no more blocks than they can fill.
    """
    most = places * -(-(base.context_length or UNBOUNDED_TOKENS) // BLOCK_TOKENS)
    try:
        block_bytes = _try_paged(base, view)
    except (UnsupportedModelError, *FAILURES) as exc:
        log.info("answers of this base are read one by one: %s", told(exc), extra={"action": "read_singly"})
        view.model.set_attn_implementation(base.model.config._attn_implementation)
        # Keys and values of every layer, as if it had a head of its own for each of its queries.
        config = base.model.config.get_text_config()
        block_bytes = 2 * BLOCK_TOKENS * config.num_hidden_layers * config.hidden_size * base.model.dtype.itemsize
        return SingleRunner(view), _count(cache_bytes, block_bytes, most)
    count = _count(cache_bytes, block_bytes, most)
    return PagedRunner(view, count), count


def _count(cache_bytes: int, block_bytes: int, most: int) -> int:
    return max(1, min(most, cache_bytes // block_bytes))


@torch.no_grad()
def _try_paged(base: BaseModel, view: BaseModel) -> int:
    """The bytes of a block, if tokens of many answers in one row get the logits that each answer alone gets.

    Raises:
        UnsupportedModelError, FAILURES: they do not.
    """
    if unknown := sorted(set(getattr(base.model.config.get_text_config(), "layer_types", None) or ()) - KNOWN_LAYERS):
        raise UnsupportedModelError(f"it has layers of {', '.join(unknown)}")
    if "position_ids" not in base.forward_arguments or not base.model._can_set_attn_implementation():
        raise UnsupportedModelError("its attention cannot be replaced")
    texts, runner, read = _trial(view)
    alone = torch.cat([base.model(input_ids=torch.tensor([text], device=base.device)).logits[0, -1:] for text in texts])
    share = difference(read.float(), alone.float()) / float(alone.float().std())
    if share > tolerance_of(base):
        raise UnsupportedModelError(f"logits differ by {share:.2g} of their spread")
    return runner.block_bytes


def _trial(view: BaseModel) -> tuple[list[list[int]], PagedRunner, Tensor]:
    """Texts read together, in parts and some of them later, and the logits after each."""
    first, second, third = sample_rows(view)
    room = view.context_length or len(first) * 4
    texts = [text[:room] for text in (first + second + third, second + first, third)]
    runner = PagedRunner(view, count=sum(-(-len(text) // BLOCK_TOKENS) for text in texts))
    answers, block = [], 0
    for text in texts:
        blocks = -(-len(text) // BLOCK_TOKENS)
        answers.append(Answer("", b"", text, len(text), blocks=list(range(block, block + blocks))))
        block += blocks
    long, middle, short = answers
    steps = [[(long, 5), (middle, len(middle.tokens) - 1)], [(short, 2), (long, len(long.tokens) - 6)]]
    steps += [[(short, len(short.tokens) - 3)], [(long, 1), (middle, 1), (short, 1)]]
    read = torch.empty(0)
    for step in steps:
        parts = [Part(answer, count) for answer, count in step]
        read = runner.read(parts, [0] * len(parts), None)
        for part in parts:
            part.answer.read += part.count
    return texts, runner, read


def _tokens(part: Part) -> list[int]:
    return part.answer.tokens[part.answer.read : part.answer.read + part.count]
