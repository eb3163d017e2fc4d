"""The part of the client that reads what jobs print."""

import time
from collections.abc import Iterator

from zhub.client.transport import MAX_OUTAGE_S, Http, may_pass, path_part
from zhub.client.wire.training import LogLine
from zhub.errors import ApiError, UnavailableError


class Logs:
    """What the attempts of jobs printed."""

    def __init__(self, http: Http, poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def read(self, job_id: str, *, attempt: int | None = None, tail: int | None = None) -> Iterator[LogLine]:
        """Yield the log as it is now: of one ``attempt``, counted from 1, or all; its last ``tail`` lines, or all."""
        with self._http.stream("GET", _path(job_id), params=_params(attempt, tail)) as response:
            for line in response.iter_lines():
                yield LogLine.model_validate_json(line)

    def follow(self, job_id: str, *, attempt: int | None = None, tail: int | None = None) -> Iterator[LogLine]:
        """Yield the log line by line until the job, or ``attempt``, has ended; an outage of a minute is survived."""
        params = {"stream": "true"} | _params(attempt, tail)
        give_up = time.monotonic() + MAX_OUTAGE_S
        while True:
            try:
                for sent in self._http.events(_path(job_id), **params):
                    give_up = time.monotonic() + MAX_OUTAGE_S
                    if sent.event == "end":
                        return
                    params["after"] = sent.id
                    yield LogLine.model_validate_json(sent.data)
            except (UnavailableError, ApiError) as exc:
                if not may_pass(exc) or time.monotonic() > give_up:
                    raise
            time.sleep(self._poll_s)


def _path(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{path_part(job_id)}/logs"


def _params(attempt: int | None, tail: int | None) -> dict[str, str]:
    return {name: str(value) for name, value in (("attempt", attempt), ("tail", tail)) if value is not None}
