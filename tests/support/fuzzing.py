"""Requests made from the interface's own document, with what the API has answered before put in where it fits.

A request of invented ids ends at 404. So ids are gathered from answers and used again, and names, files, graders and
methods are often those that exist: only then the code behind the first check is reached.
"""

import random
import re
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import schemathesis
from example_graders import PYTHON, STRING
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PUBLIC_ID = re.compile(r'"((?:file|ftjob|ftckpt|eval|promo|sched|fb|whe|whd|chatcmpl|cds)-[0-9a-f]{32})"')
KEPT_IDS = 50
# How likely a value is one that exists.
KNOWN = 0.6
ROUND = 40  # requests to one operation before the next one's turn

ID_OF = {
    "file_id": "file", "job_id": "ftjob", "checkpoint_id": "ftckpt", "evaluation_id": "eval", "promotion_id": "promo",
    "schedule_id": "sched", "feedback_id": "fb", "completion_id": "chatcmpl", "collection_id": "cds",
    "endpoint_id": "whe", "delivery_id": "whd", "training_file": "file", "validation_file": "file", "file": "file",
    "after": "ftjob",
}  # fmt: skip
REINFORCEMENT = {"type": "reinforcement", "reinforcement": {"grader": STRING, "hyperparameters": {"n_steps": 2}}}
JSON_SCHEMA = {"type": "json_schema", "name": "j", "json_schema": {"type": "object", "required": ["a"]}}
VALUES: dict[str, Sequence[Any]] = {
    "model": ("tiny", "auto", "main.summer@v1", "main.summer@prod"),
    "version": ("main.summer@v1",),
    "name": ("tiny", "main.summer@v1", "summer", "weekly"),
    "expert": ("summer",),
    "alias": ("prod",),
    "filename": ("manifest.json", "config.json"),
    "dataset": ("suite",),
    "cron": ("0 3 * * 1", "* * * * *"),
    "timezone": ("UTC", "Europe/Paris"),
    "url": ("https://example.com/",),
    "suffix": ("summer", "winter"),
    "grader": (STRING, PYTHON, JSON_SCHEMA),
    "method": (REINFORCEMENT, {"type": "supervised", "supervised": {}}),
    "training": ({"model": "tiny", "method": REINFORCEMENT, "suffix": "summer"},),
    "messages": ([{"role": "user", "content": "1 + 1 ="}],),
    "cluster": ("default",),
}


class Fuzzer:
    """Sends requests, and fails with how to repeat it where an answer is not what the document says."""

    def __init__(self, base_url: str, api_key: str, *, first_seed: int) -> None:
        self.statuses: Counter[int] = Counter()
        document = httpx.get(f"{base_url}/openapi.json").json()
        # Else schemathesis leaves the key out of every third request.
        del document["components"]["securitySchemes"]
        for operation in (operation for path in document["paths"].values() for operation in path.values()):
            operation.pop("security", None)
        self._schema = schemathesis.openapi.from_dict(document)
        self._base_url = base_url
        self._headers = {"authorization": f"Bearer {api_key}"}
        self._seed = first_seed
        self._rng = random.Random(first_seed)
        self._ids: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=KEPT_IDS))

    def run(self, requests: int) -> None:
        """Send so many requests, or a few more, to all operations in turn."""
        operations = [result.ok() for result in self._schema.get_all_operations() if isinstance(result, Ok)]
        for round_ in range(max(1, round(requests / len(operations) / ROUND))):
            for operation in operations:
                self._probe(operation, min(ROUND, 1 + requests // len(operations)), self._seed + round_)

    def _probe(self, operation: Any, requests: int, seed_of_round: int) -> None:
        well_formed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        broken = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @seed(seed_of_round)
        @settings(
            max_examples=requests,
            phases=[Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(well_formed, well_formed, broken))
        def probe(case: Any) -> None:
            self._fill_in(case)
            response = case.call(self._base_url, headers=self._headers, timeout=60)
            self.statuses[response.status_code] += 1
            for public_id in PUBLIC_ID.findall(response.text if "json" in response.headers["content-type"][0] else ""):
                self._ids[public_id.partition("-")[0]].append(public_id)
            case.validate_response(response, checks=CHECKS)

        probe()

    def _fill_in(self, case: Any) -> None:
        if case.path.endswith("/test"):
            return  # of an endpoint that exists: it waits for a scheduler, and there is none
        if isinstance(case.path_parameters, dict):
            case.path_parameters = self._known(case.path_parameters)
        if isinstance(case.query, dict):
            # A stream of a job that waits ends when the job does.
            case.query = {name: value for name, value in self._known(case.query).items() if name != "stream"}
        if isinstance(case.body, dict):
            case.body = self._known(case.body)

    def _known(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._value(name, value) for name, value in values.items()}

    def _value(self, name: str, given: Any) -> Any:
        if self._rng.random() < KNOWN:
            if ids := self._ids.get(ID_OF.get(name, "")):
                return self._rng.choice(ids)
            if name in VALUES:
                return self._rng.choice(VALUES[name])
        if isinstance(given, dict):
            return self._known(given)
        if isinstance(given, list):
            return [self._known(one) if isinstance(one, dict) else one for one in given]
        return given


@dataclass
class Silence:
    """The longest wait for an answer, and the most processor time that the process took during one, in seconds.

    A machine that has no time for the process makes it silent as well; only the second is its own fault.
    """

    wait_s: float = 0.0
    busy_s: float = 0.0


@contextmanager
def longest_silence(url: str, process: psutil.Process) -> Iterator[Silence]:
    """Ask ``/healthz`` of this process all the time, from a thread."""
    longest, over = Silence(), threading.Event()

    def busy_s() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.wait(0.02):
                began, busy = time.monotonic(), busy_s()
                assert client.get(f"{url}/healthz").status_code == 200
                longest.wait_s = max(longest.wait_s, time.monotonic() - began)
                longest.busy_s = max(longest.busy_s, busy_s() - busy)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()
