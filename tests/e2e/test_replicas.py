"""Two replicas of the Serve app on a real Ray: where requests go, and what a replica's end costs whom."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray  # noqa: TID251
from pydantic import SecretStr
from served_engines import Served, text_of

from zhub.embedded.children import free_ports
from zhub.generation import AFFINITY_HEADER, LINE, Ended, Failed, GenerationRequest, Line, Started
from zhub.process.config import Settings
from zhub_workers.cluster.ray_cluster import connect
from zhub_workers.serving.app import serving_of
from zhub_workers.serving.keeper import Serving

pytestmark = pytest.mark.ray
TOKEN = "0123456789abcdef" * 4
REPLICA = "ServeReplica:zhub:generation"


class Replicas:
    """A Serve app of two replicas, as the API asks it."""

    def __init__(self, served: Served, serving: Serving, url: str) -> None:
        self.served = served
        self.serving = serving
        self.client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)
        self._others = _replicas_here()  # of the stack of other tests

    def ask(self, request: GenerationRequest, on_line: Callable[[Line], object] = lambda _line: None) -> list[Line]:
        """The lines of an answer, as far as they come."""
        lines = []
        headers = {AFFINITY_HEADER: request.affinity}
        try:
            with self.client.stream("POST", "/generate", content=request.model_dump_json(), headers=headers) as answer:
                assert answer.status_code == 200, answer.read()
                for text in answer.iter_lines():
                    lines.append(LINE.validate_json(text))
                    on_line(lines[-1])
        except httpx.HTTPError:
            pass
        return lines

    def long(self, content: str) -> GenerationRequest:
        """A request that takes a while to be answered."""
        never = {token: -100.0 for token in self.served.base.stop_ids}
        return self.served.request(content, n=8, max_new_tokens=100, logit_bias=never, org_id="acme")

    def warm_both(self) -> None:
        """Ask for so much at a time, and for so long, that both load the base: one takes eight more than the other."""
        requests = [self.long(f"say {number}") for number in range(20)]
        with ThreadPoolExecutor(len(requests)) as pool:
            assert all(is_whole(lines, 8) for lines in pool.map(self.ask, requests))

    def pids(self) -> set[int]:
        return _replicas_here() - self._others


def _replicas_here() -> set[int]:
    """The processes of replicas of any Ray that this process has started."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if REPLICA in " ".join(child.cmdline()):
                found.add(child.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    root = tmp_path_factory.mktemp("replicas")
    served = Served(root, Path(str(resources.files("zhub_workers") / "shipped_base")))
    (port,) = free_ports(1)
    settings = Settings(
        database_url="postgresql://nowhere",
        store_url=served.store.root.as_uri(),
        serving_token=SecretStr(TOKEN),
        serving_port=port,
        serving_replicas=2,
        cache_dir=root / "cache",
        device="cpu",
    )
    serving = serving_of(settings, gpus=0)
    made = Replicas(served, serving, f"http://127.0.0.1:{port}")
    connect(None)
    serving.deploy()
    with closing(made.client):
        yield made
    serving.remove()
    ray.shutdown()


@pytest.fixture(autouse=True)
def both_run(replicas: Replicas, until: Callable[..., Any]) -> None:
    """Both answer before each test."""
    until(lambda: _is_up(replicas.serving) and len(replicas.pids()) == 2, timeout_s=120)


def _is_up(serving: Serving) -> bool:
    return serving.answers()


def is_whole(lines: list[Line], count: int) -> bool:
    return sum(isinstance(line, Ended) for line in lines) == count and not any(isinstance(x, Failed) for x in lines)


def test_the_second_turn_of_a_conversation_finds_the_first_read(replicas: Replicas) -> None:
    for number in range(6):
        first = replicas.served.request(
            f"What is {number} plus {number} plus two plus three plus four plus five?", org_id="acme", max_new_tokens=8
        )
        said = text_of(replicas.ask(first))
        turns = [*first.messages, {"role": "assistant", "content": said}, {"role": "user", "content": "x"}]
        ended = replicas.ask(first.model_copy(update={"messages": turns}))[-1]
        assert isinstance(ended, Ended) and ended.cached_tokens > 0


def test_a_replica_that_dies_breaks_its_own_answers_off_and_no_other(
    replicas: Replicas, until: Callable[..., Any]
) -> None:
    for attempt in range(2):
        replicas.warm_both()
        whole = whole_beside_a_death(replicas, f"conversation {attempt}")
        assert is_whole(replicas.ask(replicas.long("afterwards")), 8)
        if True in whole and False in whole:
            return
        # All conversations were on one replica, which says nothing: once more.
        until(lambda: _is_up(replicas.serving) and len(replicas.pids()) == 2, timeout_s=120)
    raise AssertionError("conversations must be on both for this to mean anything")


def whole_beside_a_death(replicas: Replicas, text: str) -> list[bool]:
    """Which of eight answers are whole, where one of the replicas is killed once they have begun."""
    begun = threading.Barrier(9, timeout=60)

    def ask(number: int) -> list[Line]:
        first = iter([begun.wait])
        request = replicas.long(f"{text} {number}")
        return replicas.ask(request, lambda line: isinstance(line, Started) and next(first)())

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, number) for number in range(8)]
        begun.wait()
        os.kill(min(replicas.pids()), signal.SIGKILL)
        return [is_whole(one.result(), 8) for one in asked]


def test_an_update_of_the_app_ends_no_answer_early(replicas: Replicas, until: Callable[..., Any]) -> None:
    before = replicas.pids()
    stop = threading.Event()

    def ask(number: int) -> list[bool]:
        whole = []
        while not stop.is_set():
            whole.append(is_whole(replicas.ask(replicas.long(f"{number}")), 8))
        return whole

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        try:
            replicas.serving.deploy()
            until(lambda: len(replicas.pids() - before) == 2 and not replicas.pids() & before, timeout_s=120)
        finally:
            stop.set()
        answers = [whole for one in asked for whole in one.result()]
    assert all(answers) and len(answers) > 4


def test_what_a_client_has_left_is_computed_no_farther(replicas: Replicas, until: Callable[..., Any]) -> None:
    request = replicas.long("x")
    body, headers = request.model_dump_json(), {AFFINITY_HEADER: request.affinity}
    left = []
    for _ in range(3):
        with replicas.client.stream("POST", "/generate", content=body, headers=headers) as answer:
            left.append(json.loads(next(answer.iter_lines())))
    assert all(line["type"] == "started" for line in left)
    assert is_whole(replicas.ask(request), 8)
