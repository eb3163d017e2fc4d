"""What models are used for by whom: counted in this process, and added to the database every few seconds.

No answer waits for it. An orderly end loses nothing. A process that is killed loses what it had not yet added, and
where the answer to a commit is lost, what it added is added once more.
"""

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from prometheus_client import Counter
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from zhub.answering import SharedExpert
from zhub.database.sessions import tenant_session
from zhub.registry import shared_usage, use
from zhub.registry.shared_usage import UsedFromOutside
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
        self._pending: dict[uuid.UUID, dict[UsedBy | UsedFromOutside, Tokens]] = defaultdict(dict)

    def note(
        self,
        caller: Caller,
        base_model: str,
        experts: Sequence[str],
        tokens: Tokens,
        shared: Sequence[SharedExpert] = (),
    ) -> None:
        """Count what a request has used: for the caller's organisation, and for the owner of each of ``shared``."""
        hour = token_usage.hour_of(self._clock())
        by = UsedBy(caller.org_id, caller.project_id, caller.key_id, hour, base_model, " + ".join(experts))
        self._add(caller.org_id, by, tokens)
        for expert in shared:
            of = UsedFromOutside(expert.owner_org_id, expert.version_id, caller.org_id, expert.user, hour)
            self._add(expert.owner_org_id, of, tokens)

    def flush(self) -> None:
        """Add what was counted to the database; what cannot be added is kept for the next time."""
        with self._flushing:
            with self._lock:
                pending, self._pending = self._pending, defaultdict(dict)
            for org_id, used in pending.items():
                try:
                    with tenant_session(self._engine, org_id) as session:
                        _write(session, org_id, used)
                except Exception:
                    log.warning("usage is not added yet", exc_info=True, extra={"action": "usage_kept"})
                    for of, tokens in used.items():
                        self._add(org_id, of, tokens)

    def run(self, stopping: threading.Event) -> None:
        """Flush every few seconds until ``stopping`` is set. A last time is for who has set it."""
        while not stopping.wait(FLUSH_S):
            self.flush()

    def _add(self, org_id: uuid.UUID, of: UsedBy | UsedFromOutside, tokens: Tokens) -> None:
        with self._lock:
            used = self._pending[org_id]
            if of not in used and sum(map(len, self._pending.values())) >= MAX_PENDING:
                NOT_METERED.inc(tokens.requests)
                return
            used[of] = used.get(of, Tokens()) + tokens


def _write(session: Session, org_id: uuid.UUID, used: Mapping[UsedBy | UsedFromOutside, Tokens]) -> None:
    own = {by: tokens for by, tokens in used.items() if isinstance(by, UsedBy)}
    from_outside = {of: tokens for of, tokens in used.items() if isinstance(of, UsedFromOutside)}
    if own:
        token_usage.add(session, org_id, own)
    if from_outside:
        shared_usage.add(session, from_outside)
    use.add(session, [(by.experts, tokens.prompt + tokens.completion) for by, tokens in own.items()])
    use.add_to_versions(
        session, [(of.version_id, tokens.prompt + tokens.completion) for of, tokens in from_outside.items()]
    )
