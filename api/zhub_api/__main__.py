"""``python -m zhub_api``: the API on ``ZHUB_HOST``:``ZHUB_PORT``."""

import sys

import uvicorn

from zhub.config import Settings
from zhub.errors import ZhubError
from zhub.logs import configure_logging
from zhub_api.app import create_app


def main() -> None:
    configure_logging()
    settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    try:
        app = create_app(settings)
    except ZhubError as exc:
        sys.exit(str(exc))
    # A stream that a client holds open must not keep the process: it ends after this many seconds.
    uvicorn.run(
        app, host=settings.host, port=settings.port, log_config=None, access_log=False, timeout_graceful_shutdown=5
    )


if __name__ == "__main__":
    main()
