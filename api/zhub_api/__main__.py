"""``python -m zhub_api``: the API on ``ZHUB_HOST``:``ZHUB_PORT``."""

import math
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn

from zhub.errors import ZhubError
from zhub.process.config import Settings
from zhub.process.logs import configure_logging
from zhub.process.shutdown import GRACE_S, end_after, end_from_outside
from zhub_api.app import create_app
from zhub_api.client_timeouts import TimedProtocol

# A stream that a client holds open must not keep the process: it ends after this many seconds.
STREAM_GRACE_S = 5
# Longer than clients and load balancers keep an idle connection: else it is closed just when a request comes on it.
KEEP_ALIVE_S = 90


def main() -> None:
    settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    configure_logging(settings.log_format)
    try:
        app = create_app(settings)
    except ZhubError as exc:
        sys.exit(str(exc))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=TimedProtocol,
        log_config=None,
        access_log=False,  # zhub_api.observed logs requests
        timeout_graceful_shutdown=STREAM_GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    _Server(config, app.state.draining, drain_s=settings.drain_s).run()


class _Server(uvicorn.Server):
    """Reports at ``/readyz`` that it drains, stops accepting ``drain_s`` seconds later, and ends in any case."""

    def __init__(self, config: uvicorn.Config, draining: threading.Event, *, drain_s: float) -> None:
        super().__init__(config)
        self._draining = draining
        self._drain_s = drain_s
        self._exit_at = math.inf
        end_after(draining, drain_s + GRACE_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        end_from_outside(self._drain_s + GRACE_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self._draining.is_set()
        self._draining.set()
        self._exit_at = time.monotonic() + (0 if again else self._drain_s)
        self.force_exit = again and sig == signal.SIGINT

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or time.monotonic() >= self._exit_at


if __name__ == "__main__":
    main()
