"""What the scheduler and the agent both show Prometheus: a listener, whether the database answers, and lost leases.

The metrics of one process alone live in ``zhub.scheduler``, ``zhub.admission.metrics`` and
``zhub_workers.agent.metrics``, those of the API in ``zhub_api.observed``.
"""

import logging
import time

from prometheus_client import REGISTRY, Counter, Gauge, start_http_server

from zhub.errors import UnavailableError
from zhub.process.config import Settings

log = logging.getLogger("zhub.metrics")

QUEUE_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)  # seconds that jobs wait for their turn
START_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 10, 30, 60, 120, 300)  # seconds that machines need
SILENT_AFTER_S = 20.0  # a pass and a round are seconds apart, and every statement ends within this


LEASE_LOST = Counter(
    "zhub_lease_lost_total",
    "Attempts whose job was taken back: the lease ran out (expired), the worker died (worker_died) or never had it "
    "(worker_missing), or it made no progress (stalled).",
    ["reason"],
)
# Registered last, because the other collectors of the same scrape query the database first.
DATABASE_UP = Gauge("zhub_database_up", "Whether the database answers this process.", registry=None)


class _Answers:
    """When the loop of this process was answered last."""

    def __init__(self) -> None:
        self._at = float("-inf")
        DATABASE_UP.set_function(self._are_fresh)

    def came(self) -> None:
        self._at = time.monotonic()

    def failed(self) -> None:
        self._at = float("-inf")

    def _are_fresh(self) -> float:
        # A database that is frozen fails nothing: it does not answer.
        return float(time.monotonic() - self._at < SILENT_AFTER_S)


database_answers = _Answers()


def serve_metrics(settings: Settings) -> None:
    """Answer Prometheus at ``ZHUB_METRICS_HOST``:``ZHUB_METRICS_PORT``, from a thread, if a port is set.

    Raises:
        UnavailableError: nothing can listen there.
    """
    host, port = settings.metrics_host, settings.metrics_port
    if port is None:
        return
    REGISTRY.register(DATABASE_UP)
    try:
        start_http_server(port, addr=host)
    except OSError as exc:
        raise UnavailableError(
            f"Metrics cannot be served at {host}:{port}: {exc.strerror}. Set ZHUB_METRICS_PORT to a free port, or "
            "leave it unset."
        ) from exc
    log.info("metrics at http://%s:%d/metrics", host, port, extra={"action": "metrics_served"})
