"""Jobs that wait for each other's requests in one group."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from tiny_training import Load

from zhub_workers.compute.group import LINGER_S, ComputeGroup, Stopped
from zhub_workers.compute.requests import Embed, Generate
from zhub_workers.model.adapters import SvfAdapter


def test_a_job_that_should_stop_leaves_in_the_middle_of_what_its_neighbours_compute(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    group, both, stopping, left = ComputeGroup(), threading.Barrier(2), threading.Event(), threading.Event()
    adapter = SvfAdapter(adapted, list(adapted.layers), sigmoid=False)

    def neighbour() -> bool:
        def ask() -> bool:
            """Asked in the middle of the computation, which goes on only once the other has left."""
            if threading.current_thread().name.startswith("compute"):
                stopping.set()
                for _ in range(3000):
                    if left.wait(0.01):
                        break
                    group.pulse()
            return False

        with group.join(adapter, ask) as member:
            both.wait(30)
            member.run(Generate(None, [[1, 2]], max_new_tokens=2))
            return left.is_set()

    def stopped() -> None:
        with pytest.raises(Stopped), group.join(adapter, stopping.is_set) as member:
            both.wait(30)
            member.run(Generate(None, [[1, 2]], max_new_tokens=2))
        left.set()

    with ThreadPoolExecutor(2) as threads:
        answered, gone = threads.submit(neighbour), threads.submit(stopped)
        gone.result(60)
        assert answered.result(60)


def test_a_job_that_waits_shows_no_progress_while_the_computation_hangs(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    group, hanging, asked = ComputeGroup(), threading.Event(), threading.Event()
    adapter = SvfAdapter(adapted, list(adapted.layers), sigmoid=False)
    progress: list[bool] = []

    def count() -> bool:
        progress.append(True)
        return False

    def hang() -> bool:
        asked.set()
        hanging.wait(30)
        return False

    def hung() -> None:
        with group.join(adapter, hang) as member:
            member.run(Generate(None, [[1, 2]], max_new_tokens=2))

    def waiting() -> None:
        with group.join(adapter, count) as member:
            member.run(Embed(None, [[1, 2]]))

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(hung)
        assert asked.wait(30)
        second = threads.submit(waiting)
        wait([second], timeout=4 * LINGER_S)
        shown = len(progress)
        hanging.set()
        first.result(60)
        second.result(60)
    assert (shown, len(progress) > 0) == (0, True)
