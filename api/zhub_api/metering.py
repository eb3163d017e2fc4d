"""What models are used for by whom: counted in this process, and added to the database every few seconds.

No answer waits for it. An orderly end loses nothing. A process that is killed loses what it had not yet added, and
where the answer to a commit is lost, what it added is added once more.
"""

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from prometheus_client import Counter
from sqlalchemy import Engine

from zhub.database.sessions import tenant_session
from zhub.registry import use
from zhub.tenancy import token_usage
from zhub.tenancy.keys import Caller
from zhub.tenancy.token_usage import Tokens, UsedBy

log = logging.getLogger("zhub.api")

FLUSH_S = 5.0
MAX_PENDING = 50_000  # rows, while the database is away: some tens of megabytes

NOT_METERED = Counter("zhub_usage_lost_requests_total", "Requests whose tokens could not be kept for the usage.")


class Meter:
    """Counts tokens, and adds them to the usage of their organisations. Thread-safe."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._pending: dict[uuid.UUID, dict[UsedBy, Tokens]] = defaultdict(dict)

    def note(self, caller: Caller, base_model: str, experts: Sequence[str], tokens: Tokens) -> None:
        """Count what a request has used."""
        hour = token_usage.hour_of(self._clock())
        by = UsedBy(caller.org_id, caller.project_id, caller.key_id, hour, base_model, " + ".join(experts))
        self._add(by, tokens)

    def flush(self) -> None:
        """Add what was counted to the database; what cannot be added is kept for the next time."""
        with self._flushing:
            with self._lock:
                pending, self._pending = self._pending, defaultdict(dict)
            for org_id, used in pending.items():
                try:
                    with tenant_session(self._engine, org_id) as session:
                        token_usage.add(session, org_id, used)
                        use.add(session, ((by.experts, t.prompt + t.completion) for by, t in used.items()))
                except Exception:
                    log.warning("usage is not added yet", exc_info=True, extra={"action": "usage_kept"})
                    for by, tokens in used.items():
                        self._add(by, tokens)

    def run(self, stopping: threading.Event) -> None:
        """Flush every few seconds until ``stopping`` is set. A last time is for who has set it."""
        while not stopping.wait(FLUSH_S):
            self.flush()

    def _add(self, by: UsedBy, tokens: Tokens) -> None:
        with self._lock:
            used = self._pending[by.org_id]
            if by not in used and sum(map(len, self._pending.values())) >= MAX_PENDING:
                NOT_METERED.inc(tokens.requests)
                return
            used[by] = used.get(by, Tokens()) + tokens
