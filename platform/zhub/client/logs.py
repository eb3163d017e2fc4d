"""The part of the client that reads the logs of jobs."""

import time
from collections.abc import Iterator

from zhub.client.transport import MAX_OUTAGE_S, Http, is_transient, path_part
from zhub.client.wire.training import LogLine
from zhub.errors import ApiError, UnavailableError


class Logs:
    """The logs of jobs' attempts."""

    def __init__(self, http: Http, poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def read(self, job_id: str, *, attempt: int | None = None, tail: int | None = None) -> Iterator[LogLine]:
        """Yield the log as it is now: of one ``attempt``, counted from 1, or all; its last ``tail`` lines, or all."""
        with self._http.stream("GET", _path(job_id), params=_params(attempt, tail)) as response:
            for line in response.iter_lines():
                yield LogLine.model_validate_json(line)

    def follow(self, job_id: str, *, attempt: int | None = None, tail: int | None = None) -> Iterator[LogLine]:
        """Yield lines of the log until the job, or ``attempt``, has ended; outages of up to a minute are bridged."""
        params = {"stream": "true"} | _params(attempt, tail)
        deadline = time.monotonic() + MAX_OUTAGE_S
        while True:
            try:
                for sent in self._http.events(_path(job_id), **params):
                    deadline = time.monotonic() + MAX_OUTAGE_S
                    if sent.event == "end":
                        return
                    params["after"] = sent.id
                    yield LogLine.model_validate_json(sent.data)
            except (UnavailableError, ApiError) as exc:
                if not is_transient(exc) or time.monotonic() > deadline:
                    raise
            time.sleep(self._poll_s)


def _path(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{path_part(job_id)}/logs"


def _params(attempt: int | None, tail: int | None) -> dict[str, str]:
    return {name: str(value) for name, value in (("attempt", attempt), ("tail", tail)) if value is not None}
