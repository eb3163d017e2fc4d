"""Shards as Ray actors: a job's rows divided between real processes, some of which are killed."""

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: TID251
import torch
from ray_nodes import groups
from suites import GRADER

from zhub.demo.task_families import sample_rows
from zhub.errors import UnavailableError
from zhub.manifest import sha256_file
from zhub.specs import BaseModelSource, BasisReference, StoredFile, TrainSpec
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStoppedError
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.compute.group import ComputeGroup, Stopped
from zhub_workers.compute.requests import Generate
from zhub_workers.compute.sharded import ShardedMember
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import load_base_model, weights_fingerprint
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.training.train import TrainResult, train
from zhub_workers.worker import ray_shards
from zhub_workers.worker.ray_shards import RayShards

pytestmark = pytest.mark.ray

SHIPPED = Path(__file__).parents[2] / "workers" / "zhub_workers" / "shipped_base"
FREE = Flavour()
KEY = AttemptKey(uuid.uuid4(), 1)
Until = Callable[..., Any]


@dataclass
class Job:
    """A job on the shipped base, whose files are in a store that other processes can read."""

    spec: TrainSpec
    adapted: AdaptedModel
    store: DirectoryStore
    root: Path
    events: list[str] = field(default_factory=list)

    def shards(
        self, count: int, flavour: Flavour = FREE, key: AttemptKey = KEY, check: Callable[[], None] = lambda: None
    ) -> RayShards:
        return RayShards(
            count,
            key,
            self.spec,
            self.store.root.as_uri(),
            self.root / "cache",
            device="cpu",
            flavour=flavour,
            check=check,
            on_change=self.events.append,
        )

    def train(self, shards: RayShards | None, on_step: Callable[[int], None] = lambda _step: None) -> TrainResult:
        def on_event(_level: str, _message: str, data: dict[str, Any] | None) -> None:
            if data is not None and data["type"] == "metrics":
                on_step(data["step"])

        with ComputeGroup().join(make_adapter(self.adapted, self.spec.hyperparameters), lambda: False) as local:
            return train(
                self.spec,
                member=local if shards is None else ShardedMember(local, shards),
                grading=Grading(self.spec.grader),
                training_path=self.root / "rows",
                validation_path=None,
                on_event=on_event,
                on_checkpoint=lambda _state, _metrics: None,
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of all jobs are, and what their processes have fetched of them."""
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def spec(root: Path) -> TrainSpec:
    """Four steps on a hundred rows; the shipped base and its basis are in the store."""
    store = DirectoryStore(root / "store")
    files = []
    for path in SHIPPED.iterdir():
        put_path(store, f"base/{path.name}", path)
        size = path.stat().st_size
        files.append(StoredFile(name=path.name, key=f"base/{path.name}", sha256=sha256_file(path), size_bytes=size))
    base = load_base_model(SHIPPED)
    fingerprint = decompose_base(base, root / "basis")
    for path in (root / "basis").iterdir():
        put_path(store, f"basis/{path.name}", path)
    (root / "rows").write_text("\n".join(map(json.dumps, sample_rows("sorting", 100, seed=1))))
    asked = {"n_steps": 4, "eval_interval": 2, "batch_size": 4, "learning_rate": 0.06, "preflight_prompts": 0}
    return TrainSpec.model_validate(
        {
            "expert": "e",
            "base": BaseModelSource(name="zhub-tiny", files=files),
            "basis": BasisReference(
                weights_fingerprint=weights_fingerprint(base.model), basis_fingerprint=fingerprint, key_prefix="basis"
            ),
            "training_file": StoredFile(name="rows", key="", sha256="", size_bytes=0),
            "validation_file": None,
            "recipe": "reinforcement",
            "hyperparameters": resolve_hyperparameters("reinforcement", asked | {"max_new_tokens": 8}, train_rows=100),
            "grader": GRADER,
            "seed": 1,
        }
    )


@pytest.fixture
def job(spec: TrainSpec, root: Path, ray_head: str) -> Job:
    adapted = AdaptedModel(load_base_model(SHIPPED), load_basis(root / "basis", spec.basis.basis_fingerprint))
    return Job(spec, adapted, DirectoryStore(root / "store"), root)


def up(shards: RayShards, count: int, until: Until) -> None:
    until(lambda: len(shards.ready()) == count, timeout_s=120)


def pids(shards: RayShards) -> list[int]:
    """The processes of the shards, in the order of their slots."""
    actors = [shards._actors[slot] for slot in sorted(shards._actors)]
    return [ray.get(actor.__ray_call__.remote(lambda _self: os.getpid())) for actor in actors]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_job_with_shards_becomes_what_it_becomes_alone_though_one_is_killed(job: Job, until: Until) -> None:
    alone = job.train(None)
    with job.shards(2) as shards:
        up(shards, 2, until)
        first, second = pids(shards)

        def kill(step: int) -> None:
            if step == 2:
                os.kill(first, signal.SIGKILL)

        together = job.train(shards, kill)
        up(shards, 2, until)
        assert second in pids(shards) and first not in pids(shards)
    assert alone.best_step == together.best_step
    for name, z in alone.artifact.items():
        # Rounding of sums in another grouping, grown by Adam's first steps.
        torch.testing.assert_close(together.artifact[name], z, rtol=0, atol=2e-3)
    assert [event for event in job.events if "lost" in event] == [
        "Process 2 of 3 was lost, and the others compute its rows."
    ]


def test_a_job_begins_before_its_shards_are_up_and_they_end_with_it(job: Job, until: Until) -> None:
    with job.shards(1) as shards:
        assert shards.ready() == []
        assert job.train(shards).steps == 4
        up(shards, 1, until)
        (pid,) = pids(shards)
    until(lambda: gone(pid), timeout_s=30)


def test_a_shard_that_cannot_start_is_given_up_and_the_job_goes_on(
    job: Job, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_shards, "MAX_FAILURES", 2)
    job.spec = job.spec.model_copy(update={"basis": job.spec.basis.model_copy(update={"weights_fingerprint": "x"})})
    with job.shards(1) as shards:
        until(lambda: not shards.ready() and any("given up" in event for event in job.events), timeout_s=120)
        assert job.train(shards).steps == 4
    assert job.events == ["Process 2 of 2 did not start.", "Process 2 of 2 did not start: given up."]


def test_a_shard_that_stands_still_is_left_out(job: Job, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_shards, "SILENT_S", 2.0)
    with job.shards(1) as shards:
        up(shards, 1, until)
        (pid,) = pids(shards)
        os.kill(pid, signal.SIGSTOP)
        assert job.train(shards).steps == 4
        until(lambda: gone(pid), timeout_s=30)
    assert "Process 2 of 2 was lost, and the others compute its rows." in job.events


def test_a_job_with_shards_stops_at_once(job: Job, until: Until) -> None:
    stopping = threading.Event()
    with job.shards(1) as shards:
        up(shards, 1, until)
        adapter = make_adapter(job.adapted, job.spec.hyperparameters)
        with ComputeGroup().join(adapter, stopping.is_set) as local:
            member = ShardedMember(local, shards)
            threading.Timer(1.0, stopping.set).start()
            started = time.monotonic()
            with pytest.raises(Stopped):
                while True:
                    member.run(Generate(None, [[1, 2, 3]] * 64, max_new_tokens=64, temperature=1.0, seeds=range(64)))
            assert time.monotonic() - started < 60


# Slots


def free_cpus() -> float:
    """Of the head, which has two."""
    resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return resources.get("CPU", 0.0)


@pytest.fixture
def flavour() -> Flavour:
    """Whose workers take half of one of the head's two CPUs each."""
    return Flavour(cluster=f"c{uuid.uuid4().hex[:8]}", cpus=0.5)


def test_the_slots_of_all_shards_are_reserved_before_the_job_begins_and_given_back_after_it(
    job: Job, flavour: Flavour, until: Until
) -> None:
    with job.shards(2, flavour) as shards:
        assert groups(flavour.cluster) == {KEY}
        until(lambda: free_cpus() == 1.0, timeout_s=30)
        up(shards, 2, until)
        assert {ray_cluster.attempt_of_shard(name, flavour.cluster) for name in ray_cluster.names()} >= {KEY}
    until(lambda: free_cpus() == 2.0, timeout_s=30)
    assert groups(flavour.cluster) == set()


def test_a_shard_that_died_comes_back_to_its_slot_until_it_is_given_up(
    job: Job, flavour: Flavour, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_shards, "MAX_FAILURES", 2)
    killed = []
    with (
        job.shards(1, flavour) as shards,
        ComputeGroup().join(make_adapter(job.adapted, job.spec.hyperparameters), lambda: False) as local,
    ):
        member = ShardedMember(local, shards)
        for _ in range(2):
            up(shards, 1, until)
            killed += pids(shards)
            os.kill(killed[-1], signal.SIGKILL)
            assert len(member.run(Generate(None, [[1, 2, 3]] * 8, max_new_tokens=2))) == 8
        assert shards.ready() == [] and len(set(killed)) == 2
    lost = "Process 2 of 2 was lost, and the others compute its rows"
    assert [event for event in job.events if "lost" in event] == [f"{lost}.", f"{lost}: given up."]


def test_a_job_whose_shards_have_no_room_together_begins_with_none_and_keeps_no_slot(
    job: Job, flavour: Flavour, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_shards, "GROUP_TIMEOUT_S", 2.0)
    with pytest.raises(UnavailableError, match="no room for 5 more processes.*0.5 CPU"), job.shards(5, flavour):
        pass
    until(lambda: groups(flavour.cluster) == set() and free_cpus() == 2.0, timeout_s=30)


def test_a_job_that_waits_for_room_stops_when_it_is_told_to(job: Job, flavour: Flavour) -> None:
    def stop() -> None:
        raise AttemptStoppedError

    with pytest.raises(AttemptStoppedError), job.shards(5, flavour, check=stop):
        pass
    assert groups(flavour.cluster) == set()


def test_a_worker_that_dies_takes_its_shards_and_their_slots_along(job: Job, flavour: Flavour, until: Until) -> None:
    launcher = RayLauncher(flavour, slots=2, jobs_per_worker=1, device="cpu", log_format="text")

    def free() -> bool:
        launcher.restore_pool_sizes()
        return launcher.free("torch") > 0

    until(free, timeout_s=90)
    rows = job.root / "rows"
    put_path(job.store, "rows", rows)
    spec = job.spec.model_dump(mode="json")
    spec["training_file"] |= {"key": "rows", "sha256": sha256_file(rows), "size_bytes": rows.stat().st_size}
    spec["hyperparameters"] |= {"data_parallel": 2, "n_steps": 500}
    key = AttemptKey(uuid.uuid4(), 1)
    attempt = Attempt(key, uuid.uuid4(), spec, job.store.root.as_uri(), job.root / "cache", "cpu", workers=2)
    launcher.start("torch", attempt, 60)

    def together() -> bool:
        status = launcher.poll(key, 0, 60)
        assert status.failure is None, status.failure
        return "2 of 2 processes share the rows." in [event.message for event in status.events]

    until(together, timeout_s=90)
    assert (groups(flavour.cluster), launcher.free("torch")) == ({key}, 0)
    launcher.kill(key)
    until(lambda: not groups(flavour.cluster) and free_cpus() == 2.0, timeout_s=30)
    until(lambda: all(ray_cluster.attempt_of_shard(name, flavour.cluster) is None for name in ray_cluster.names()))
    ray_cluster.kill_all([name for name in ray_cluster.names() if ray_cluster.pool_of(name, flavour.cluster)])
