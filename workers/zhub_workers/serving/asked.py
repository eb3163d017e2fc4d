"""A request that a replica has taken, and whoever waits for its lines."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from zhub.errors import InvalidRequestError, PromptTooLongError, ZhubError
from zhub.generation import EmbeddingRequest, Embeddings, Ended, Failed, GenerationRequest, Line, Started
from zhub_workers.serving.grammars import Grammar
from zhub_workers.serving.tool_calls import ToolFormat

log = logging.getLogger("zhub.serving")

Request = GenerationRequest | EmbeddingRequest
Send = Callable[[Any], object]  # of a line, or of embeddings; what it returns is ignored


class Asked:
    """A request and where its lines go.

    Attributes:
        prompts: its prompt, or the inputs to be embedded, once they are tokens.
        tool_format: how its tools are called, where it has some.
        grammar: what its answers must be, once that is compiled.
        asked_at: when it came, of the monotonic clock.
        ended: nothing more is sent, and nothing need be computed any more.
    """

    def __init__(self, request: Request, send: Send, on_end: "Callable[[Asked], object]") -> None:
        self.request = request
        self.prompts: list[list[int]] = []
        self.tool_format: ToolFormat | None = None
        self.grammar: Grammar | None = None
        self.asked_at = time.monotonic()
        self.ended = False
        self._has_piece = False
        self._send = send
        self._on_end = on_end
        self._open = request.n if isinstance(request, GenerationRequest) else 1
        self._lock = threading.Lock()

    @property
    def is_begun(self) -> bool:
        """Whoever asked has a piece of an answer, or waits for none."""
        return self._has_piece or self.ended

    def tell(self, line: Line | Embeddings) -> None:
        """Send a line. Where nobody can be told any more the request has ended, and the others go on."""
        if self.ended:
            return
        self._has_piece = self._has_piece or not isinstance(line, Started)
        try:
            self._send(line)
        except Exception:
            log.warning("nobody is there for an answer", exc_info=True, extra={"action": "answer_unheard"})
            self.end()
        if isinstance(line, Ended | Embeddings):
            self._open -= 1
            if self._open == 0:
                self.end()

    def end(self) -> None:
        """Nothing more need be computed: all is sent, or nobody waits. From any thread."""
        with self._lock:
            ended, self.ended = self.ended, True
        if not ended:
            self._on_end(self)

    def fail(self, exc: Exception) -> None:
        """Send why there is no answer, as the last line."""
        if isinstance(exc, PromptTooLongError):
            exc = InvalidRequestError(
                f"The conversation has {exc.tokens} tokens; this base model reads at most {exc.limit}. Shorten it.",
                code="context_length_exceeded",
            )
        if isinstance(exc, ZhubError):
            line = Failed(code=exc.code, message=str(exc), param=getattr(exc, "param", None))
        else:
            log.error("a request failed", exc_info=exc, extra={"action": "request_failed"})
            line = Failed(code="internal_error", message=f"{type(exc).__name__}: {exc}")
        self.tell(line)
        self.end()
