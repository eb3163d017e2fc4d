"""Several agents on one Ray, and what earlier ones left."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import playing
import pytest
import ray  # noqa: TID251
from ray._private.node import Node  # noqa: TID251
from ray.util import placement_group  # noqa: TID251
from ray_nodes import LEASE_S, groups

from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.attempts.attempt import Attempt
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("playing_cluster")]

Until = Callable[..., Any]
AddNode = Callable[..., Node]
MakeLauncher = Callable[..., RayLauncher]


def test_agents_of_other_names_on_the_same_ray_do_not_see_each_others_workers(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None]
) -> None:
    one, other = replace(flavour, resources={}), Flavour(cluster=f"{flavour.cluster}-b")
    first, second = make_launcher(one), make_launcher(other)
    for launcher in (first, second):
        come_to(launcher, 1)
    made = attempt()
    first.start("torch", made, LEASE_S)
    successor = make_launcher(other)
    assert successor.running() == {}
    assert successor._usable("torch").keys() == second._usable("torch").keys()
    assert make_launcher(one).running() == first.running()


def test_a_worker_that_an_earlier_agent_started_late_is_found_with_its_attempt(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], until: Until
) -> None:
    launcher = make_launcher(replace(flavour, resources={}))
    made = attempt()
    name = ray_cluster.worker_name("torch", flavour.cluster)
    stranger: Any = ray.remote(playing.PlayingActor).options(
        name=name, namespace=ray_cluster.NAMESPACE, lifetime="detached", max_concurrency=4, num_cpus=0
    ).remote(None, "text", flavour)  # fmt: skip
    ray.get(stranger.start.remote(made, LEASE_S))
    launcher.clean_up()

    def adopted() -> bool:
        launcher.restore_pool_sizes()
        return launcher.running() == {made.key: name}

    until(adopted, timeout_s=60)


def test_shards_and_groups_of_attempts_that_no_worker_holds_are_removed_and_no_others(
    make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt], come_to: Callable[..., None],
    until: Until,
) -> None:  # fmt: skip
    launcher = make_launcher(replace(flavour, resources={}))
    come_to(launcher, 1)
    held, gone = attempt(), attempt()
    launcher.start("torch", held, LEASE_S)
    elsewhere = f"{flavour.cluster}-b"
    owners = [(flavour.cluster, held.key), (flavour.cluster, gone.key), (elsewhere, gone.key)]
    shards = [ray_cluster.shard_name(*owner) for owner in owners]
    for name in shards:
        options: dict[str, Any] = {"name": name, "namespace": ray_cluster.NAMESPACE, "lifetime": "detached"}
        actor: Any = ray.remote(playing.PlayingActor).options(num_cpus=0, **options).remote(None, "text", flavour)
        ray.get(actor.held.remote())
    for owner in owners:
        placement_group([{"CPU": 0.01}], name=ray_cluster.group_name(*owner), lifetime="detached").wait(10)
    launcher.clean_up()
    until(lambda: set(ray_cluster.names()) & set(shards) == {shards[0], shards[2]})
    until(lambda: groups(flavour.cluster) == {held.key})
    assert groups(elsewhere) == {gone.key}
    ray_cluster.kill_all([shards[0], shards[2]])
    ray_cluster.remove_groups([ray_cluster.group_name(*owner) for owner in owners])


def test_free_workers_make_way_for_the_shards_of_a_job_and_come_back_after_it(
    add_node: AddNode, make_launcher: MakeLauncher, flavour: Flavour, attempt: Callable[..., Attempt],
    come_to: Callable[..., None], until: Until,
) -> None:  # fmt: skip
    add_node(resources={"place": 3.0})
    launcher = make_launcher(flavour, slots=3)
    come_to(launcher, 3)
    made = attempt(workers=3)
    launcher.start("torch", made, LEASE_S)
    group = placement_group([flavour.bundle] * 2, name=ray_cluster.group_name(flavour.cluster, made.key))
    assert group.wait(30)
    launcher.clean_up()
    launcher.restore_pool_sizes()
    assert (launcher.free("torch"), launcher.slots(), len(launcher._starting)) == (0, 3, 0)
    assert make_launcher(flavour, slots=3).slots() == 3
    launcher.kill(made.key)
    come_to(launcher, 3)
