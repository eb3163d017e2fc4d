"""What a replica does where it cannot answer: its waits end, and its disk's faults are those of who needs the disk."""

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served_engines import Served, until_end

from zhub.generation import Ended, Failed, Line, Started
from zhub.specs import BaseModelSource
from zhub.storage import object_store
from zhub_workers.serving import engine as engine_module
from zhub_workers.serving.engine import Engine


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_directory: Callable[[str], Path]) -> Served:
    return Served(tmp_path_factory.mktemp("served"), model_directory("llama"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "FIRST_PIECE_WITHIN_S", 0.0)
    monkeypatch.setattr(engine_module, "LOOK_S", 0.01)


class HangingStore:
    """A store that answers nobody until it is told to."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.answers = threading.Event()

    def open(self, key: str) -> Iterator[bytes]:
        self.answers.wait(60)
        yield from self._store.open(key)


def last_line(engine: Engine, request: Any) -> Line:
    lines: queue.Queue[Line] = queue.Queue()
    engine.submit(request, lines.put)
    return until_end(lines)[-1]


@pytest.mark.usefixtures("impatient")
def test_the_wait_for_a_base_that_does_not_come_ends_and_says_so(
    served: Served, tmp_path: Path, until: Callable[..., Any]
) -> None:
    store = HangingStore(served.store)
    engine = Engine(store, tmp_path / "cache", "cpu")  # type: ignore[arg-type]  # it is only opened
    last = last_line(engine, served.request("x"))
    store.answers.set()
    until(lambda: engine._lanes)  # transformers cannot load two models at a time
    assert isinstance(last, Failed) and last.code == "unavailable"
    assert "'tiny' is still being loaded" in last.message


def test_the_wait_for_the_memory_of_another_base_ends_and_the_other_goes_on(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    template = tmp_path / "chat_template.jinja"
    template.write_text("{% for message in messages %}<assistant>{{ message.content }}{% endfor %}")
    files = [file for file in served.source.files if file.name != template.name] + [served.add_file(template)]
    engine = Engine(served.store, tmp_path / "cache", "cpu")
    first: queue.Queue[Line] = queue.Queue()
    engine.submit(served.request("say a", max_new_tokens=55), first.put)
    until(lambda: first.qsize() > 1)
    monkeypatch.setattr(engine_module, "FIRST_PIECE_WITHIN_S", 0.0)
    monkeypatch.setattr(engine_module, "LOADED_RATIO", 10**9)  # no two bases have room
    other = served.request("x").model_copy(update={"base": BaseModelSource(name="other", files=files)})
    last = last_line(engine, other)
    assert isinstance(last, Failed) and "hold the memory that 'other' needs" in last.message
    assert isinstance(until_end(first)[-1], Ended)
    assert not engine._wanted


def test_a_request_whose_turn_does_not_come_ends_and_those_that_are_answered_go_on(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    monkeypatch.setattr("zhub_workers.serving.lane.PLACES", 1)
    engine = Engine(served.store, tmp_path / "cache", "cpu")
    first, second = queue.Queue[Line](), queue.Queue[Line]()
    engine.submit(served.request("x", max_new_tokens=55), first.put)
    until(lambda: first.qsize() > 1)
    engine.submit(served.request("x"), second.put)
    until(lambda: not second.empty())
    assert isinstance(second.queue[0], Started)
    monkeypatch.setattr(engine_module, "FIRST_PIECE_WITHIN_S", 0.0)
    last = until_end(second)[-1]
    assert isinstance(last, Failed) and "the replica answers others" in last.message
    assert isinstance(until_end(first)[-1], Ended)


def test_a_full_disk_is_an_error_of_who_needs_it_and_others_are_answered(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = served.expert("numbers", 1, [f"add {i} and {i + 7}" for i in range(40)])
    served.ask(served.request("x"))

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(object_store, "replacing", full)
        failed, answered = served.ask_all([served.request("x", experts=[expert]), served.request("x")])
    assert isinstance(failed[-1], Failed) and failed[-1].code == "disk_error"
    assert "No space left on device. Free space there" in failed[-1].message
    assert isinstance(answered[-1], Ended)
    assert isinstance(served.ask(served.request("x", experts=[expert]))[-1], Ended), "it is tried again"
