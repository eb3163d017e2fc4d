"""The generation engine of a serving replica: one thread, one model at a time, rows that follow different experts.

Requests that wait for the same base model are answered as one batch, whatever kinds of experts its rows follow: of an
SVF ``y = W x + U((s·Δ_b) ∘ (Vᵀ x))``, each row with its own Δ, and of the others as ``row_changes`` says; exactly the
base where nothing changes. No weight is ever swapped. Requests that arrive while a batch is under way form the next.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from zhub.errors import InvalidRequestError, NonFiniteLogitsError, PromptTooLongError, UnavailableError, ZhubError
from zhub.generation import Ended, Failed, GenerationRequest, Line, Text
from zhub.storage.object_store import ObjectStore
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import render_prompt
from zhub_workers.model.changes import Change, mix_changes
from zhub_workers.model.model_cache import ModelCache
from zhub_workers.model.rollout import Completion, generate
from zhub_workers.model.row_changes import following_rows
from zhub_workers.serving.experts import Experts
from zhub_workers.serving.strategies import choose

log = logging.getLogger("zhub.serving")

MAX_BATCH_ROWS = 64
MAX_WAITING = 256
MAX_BASE_MODELS = 2
DEFAULT_MAX_NEW_TOKENS = 512
STUCK_AFTER_S = 900.0  # without a token while a batch is generated; the first one may wait for a long prompt
REPLACEMENT = "\ufffd"  # what a decoder shows for a character whose last bytes are still to come

Send = Callable[[Line], object]  # what it returns is ignored


@dataclass
class _Row:
    """One request of a batch. ``follows``: the digests and weights of its experts, whose mixture is ``change``."""

    request: GenerationRequest
    send: Send
    prompt: list[int] = field(default_factory=list)
    follows: tuple[tuple[str, float], ...] = ()
    change: Change = field(default_factory=Change)
    ids: list[int] = field(default_factory=list)
    sent: int = 0
    ended: bool = False

    def tell(self, line: Line) -> None:
        """Send a line. Where nobody can be told any more the row has ended, and the others of its batch go on."""
        try:
            self.send(line)
        except Exception:
            log.warning("nobody is there for an answer", exc_info=True, extra={"action": "answer_unheard"})
            self.ended = True


class Engine:
    """Answers requests with ``send``, which it calls from its own thread: Started, Text…, Ended, or Failed."""

    def __init__(self, store: ObjectStore, cache_dir: Path, device: str | None) -> None:
        self._store = store
        self._cache_dir = cache_dir
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._models = ModelCache(self._device, capacity=MAX_BASE_MODELS)
        self._experts = Experts(store, cache_dir)
        self._waiting: queue.Queue[_Row] = queue.Queue(MAX_WAITING)
        self._put_back: list[_Row] = []
        self._generated_at: float | None = None
        """When the batch under way was begun or got its last token; None between batches and while a base loads."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="engine")
        self._thread.start()

    def check_health(self) -> None:
        """Raise RuntimeError if no request will be answered any more: the engine's thread has died or stands still."""
        if not self._thread.is_alive():
            raise RuntimeError("The engine's thread has died; its log says why.")
        generated_at = self._generated_at
        if generated_at is not None and time.monotonic() - generated_at > STUCK_AFTER_S:
            raise RuntimeError(f"The engine has generated nothing for {STUCK_AFTER_S:.0f} s in the middle of a batch.")

    def submit(self, request: GenerationRequest, send: Send) -> None:
        """Take a request; its answer begins when its batch does.

        Raises:
            UnavailableError: too many requests wait already.
        """
        try:
            self._waiting.put_nowait(_Row(request, send))
        except queue.Full as exc:
            raise UnavailableError(f"{MAX_WAITING} requests wait already; try again in a moment.") from exc

    def _run(self) -> None:
        while True:
            rows = self._next_batch()
            try:
                self._answer(rows)
            except Exception as exc:
                log.exception("a batch of %d rows failed", len(rows), extra={"action": "batch_failed"})
                for row in rows:
                    _fail(row, exc)
            finally:
                self._generated_at = None

    def _next_batch(self) -> list[_Row]:
        """The request that has waited longest, and every other that waits for the same base model."""
        waiting = self._put_back or [self._waiting.get()]
        while True:
            try:
                waiting.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        same = [row for row in waiting if _on_one_model(row.request, waiting[0].request)][:MAX_BATCH_ROWS]
        chosen = {id(row) for row in same}
        self._put_back = [row for row in waiting if id(row) not in chosen]
        return same

    @torch.no_grad()
    def _answer(self, rows: Sequence[_Row]) -> None:
        first = rows[0].request
        adapted = self._models.get(first.base, first.basis, self._store, self._cache_dir)
        ready = [row for row in rows if self._prepare(adapted, row)]
        if not ready:
            return

        def on_token(index: int, token: int) -> None:
            self._generated_at = time.monotonic()
            _send_token(adapted, ready[index], token)

        self._generated_at = time.monotonic()
        changes, owners = _distinct(ready)
        with following_rows(adapted, changes) as assign:
            completions = generate(
                adapted.base,
                [row.prompt for row in ready],
                max_new_tokens=[row.request.max_new_tokens or DEFAULT_MAX_NEW_TOKENS for row in ready],
                temperature=[row.request.temperature for row in ready],
                top_p=[row.request.top_p for row in ready],
                seeds=[random.getrandbits(62) if row.request.seed is None else row.request.seed for row in ready],
                on_token=on_token,
                on_non_finite=lambda index: _fail(ready[index], NonFiniteLogitsError()),
                should_stop=lambda: all(row.ended for row in ready),
                owners=owners,
                assign=assign,
            )
        for row, completion in zip(ready, completions, strict=True):
            _send_end(row, completion)

    def _prepare(self, adapted: AdaptedModel, row: _Row) -> bool:
        """Render the prompt, choose and load the experts, and say so; False when the request cannot be answered."""
        request = row.request
        try:
            row.prompt = render_prompt(adapted.base, request.messages)
            limit = adapted.base.context_length
            if limit is not None and len(row.prompt) >= limit:
                raise PromptTooLongError(1, len(row.prompt), limit - 1)
            started, experts = choose(adapted, request, row.prompt, self._experts)
            if experts:
                changes = [self._experts.change(adapted, expert) for expert in experts]
                row.change = mix_changes(changes, [expert.weight for expert in experts])
                row.follows = tuple((expert.z_sha256, expert.weight) for expert in experts)
        except Exception as exc:
            _fail(row, exc)
            return False
        row.tell(started)
        return True


def _on_one_model(a: GenerationRequest, b: GenerationRequest) -> bool:
    """Whether their rows can share a batch. An equal basis is not enough: another template or RoPE reads otherwise."""
    return (a.base.digest, a.basis) == (b.base.digest, b.basis)


def _distinct(rows: Sequence[_Row]) -> tuple[list[Change], list[int]]:
    """The distinct changes of the rows, one that is empty for the base; and each row's index among them.

    Those without multipliers come first, as ``following_rows`` likes it.
    """
    distinct = {row.follows: row.change for row in sorted(rows, key=lambda row: bool(row.change.z))}
    indices = {follows: index for index, follows in enumerate(distinct)}
    return list(distinct.values()), [indices[row.follows] for row in rows]


def _send_token(adapted: AdaptedModel, row: _Row, token: int) -> None:
    """Send the text that a new token completes; what may still change, or may begin a stop string, waits."""
    if row.ended or token in adapted.base.stop_ids:
        return
    row.ids.append(token)
    text: str = adapted.base.tokenizer.decode(row.ids, skip_special_tokens=True)
    cut = _stop_position(text, row.request.stop)
    if cut is not None:
        _send_text(row, text[:cut])
        row.tell(Ended(finish_reason="stop", completion_tokens=len(row.ids)))
        row.ended = True
    elif not text.endswith(REPLACEMENT):
        _send_text(row, text[: len(text) - _possible_stop(text, row.request.stop)])


def _send_end(row: _Row, completion: Completion) -> None:
    if not row.ended:
        _send_text(row, completion.text)
        row.tell(Ended(finish_reason=completion.finish_reason, completion_tokens=len(completion.token_ids)))
        row.ended = True


def _send_text(row: _Row, text: str) -> None:
    if len(text) > row.sent:
        row.tell(Text(text=text[row.sent :]))
        row.sent = len(text)


def _stop_position(text: str, stops: Sequence[str]) -> int | None:
    positions = [text.index(stop) for stop in stops if stop and stop in text]
    return min(positions) if positions else None


def _possible_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of a stop string."""
    longest = 0
    for stop in stops:
        for length in range(1, len(stop)):
            if text.endswith(stop[:length]):
                longest = max(longest, length)
    return longest


def _fail(row: _Row, exc: Exception) -> None:
    if row.ended:
        return
    row.ended = True
    if isinstance(exc, PromptTooLongError):
        exc = InvalidRequestError(
            f"The conversation has {exc.tokens} tokens; this base model reads at most {exc.limit}. Shorten it.",
            code="context_length_exceeded",
        )
    if isinstance(exc, ZhubError):
        row.tell(Failed(code=exc.code, message=str(exc)))
        return
    log.error("a request failed", exc_info=exc, extra={"action": "request_failed"})
    row.tell(Failed(code="internal_error", message=f"{type(exc).__name__}: {exc}"))
