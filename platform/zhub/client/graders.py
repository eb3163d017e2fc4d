"""Graders, checked and tried on one answer."""

from collections.abc import Mapping
from typing import Any

from zhub.client.transport import SLOW_READ_TIMEOUT_S, Http
from zhub.client.wire.graders import GraderRun


class Graders:
    """Functions that turn an answer and its row into a reward."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def validate(self, grader: Any) -> dict[str, Any]:
        """Check all of a grader that can be checked without a dataset; return it with its defaults filled in."""
        answer = self._http.post("/v1/fine_tuning/alpha/graders/validate", {"grader": grader})
        validated: dict[str, Any] = answer["grader"]
        return validated

    def run(self, grader: Any, sample: str, item: Mapping[str, Any] | None = None) -> GraderRun:
        """Grade one answer, ``sample``, to a row with the columns of ``item``."""
        body = {"grader": grader, "model_sample": sample, "item": dict(item or {})}
        answer = self._http.post("/v1/fine_tuning/alpha/graders/run", body, read_timeout_s=SLOW_READ_TIMEOUT_S)
        return GraderRun.model_validate(answer)
