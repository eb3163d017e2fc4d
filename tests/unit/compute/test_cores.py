"""The cores of a node, divided between what computes on it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zhub_workers.compute import cores, group
from zhub_workers.compute.cores import sharing_cores, usable_cores
from zhub_workers.compute.requests import Embed


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)


def test_alone_a_computation_has_all_cores_and_gives_them_back_to_the_next(tmp_path: Path) -> None:
    with sharing_cores("a", tmp_path) as of_a:
        assert of_a() == 8
        with sharing_cores("b", tmp_path) as of_b:
            assert (of_a(), of_b()) == (4, 4)
            with sharing_cores("c", tmp_path):
                assert (of_a(), of_b()) == (2, 2)
        assert of_a() == 8
    assert list(tmp_path.iterdir()) == []


def test_each_has_at_least_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 1)
    with sharing_cores("a", tmp_path) as of_a, sharing_cores("b", tmp_path) as of_b:
        assert (of_a(), of_b()) == (1, 1)


def test_a_directory_that_cannot_be_had_keeps_nobody_from_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with sharing_cores("a", tmp_path / "file") as of_a:
        assert of_a() == 1
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # the directory is another user's
    with sharing_cores("a", tmp_path) as of_a:
        assert of_a() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing was written into it"


def test_a_directory_that_is_cleaned_up_under_a_computation_costs_it_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "cores"
    with sharing_cores("a", directory) as of_a:
        shutil.rmtree(directory)
        assert of_a() == 8


HOLD = """
import signal, sys
from pathlib import Path
from zhub_workers.compute.cores import sharing_cores
with sharing_cores("other", Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_a_process_that_dies_gives_its_cores_back(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with sharing_cores("a", tmp_path) as of_a:
            assert of_a() == 4
            process.kill()
            process.wait()
            assert of_a() == 8


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1)])
def test_a_container_has_the_cores_of_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int | None
) -> None:
    monkeypatch.setattr(cores, "CPU_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores() == (expected or len(os.sched_getaffinity(0)))


def test_a_group_computes_with_the_cores_that_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def answer(tasks: Sequence[object]) -> list[None]:
        seen.append(torch.get_num_threads())
        return [None] * len(tasks)

    monkeypatch.setattr(group, "sharing_cores", lambda name: sharing_cores(name, tmp_path))
    monkeypatch.setattr(group, "answer", answer)
    computing = group.ComputeGroup("g")
    adapter: Any = SimpleNamespace(release=lambda: None)
    with computing.join(adapter, lambda: False, token_limit=1) as member:
        member.run(Embed(None, []))
        with sharing_cores("other", tmp_path):
            member.run(Embed(None, []))
    assert seen == [8, 4]


MADE = """
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.worker.actors import TorchActor
TorchActor("cpu", "text", Flavour())
"""


def test_a_worker_gives_the_core_of_a_thread_that_waits_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")  # has OpenMP say what it has read, when torch loads it
    made = subprocess.run([sys.executable, "-c", MADE], capture_output=True, text=True, timeout=300, check=True)
    assert "GOMP_SPINCOUNT = '0'" in made.stderr
