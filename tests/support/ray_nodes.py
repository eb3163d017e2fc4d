"""Nodes of a Ray cluster on this machine: raylets that are started, drained and killed, and the workers there.

A worker takes one ``place``; the head has none.
"""

import os
import time
from typing import Any

import ray  # noqa: TID251
from ray._private.node import Node  # noqa: TID251
from ray._private.parameter import RayParams  # noqa: TID251
from ray.core.generated import autoscaler_pb2  # noqa: TID251

from zhub_workers.agent.launcher import WorkerLostError, WorkerSilentError
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.attempts.attempt import AttemptKey
from zhub_workers.cluster import ray_cluster

LEASE_S = 60.0
PLACE = {"place": 1.0}


def start_node(address: str, **parameters: Any) -> Node:
    """Add a node to the cluster whose head is at ``address``, with one CPU unless said otherwise."""
    # As ray.cluster_utils does, which must have started the head itself.
    asked = RayParams(
        node_ip_address="127.0.0.1",
        gcs_address=address,
        redis_address=address,
        object_store_memory=80_000_000,
        num_gpus=0,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        **{"num_cpus": 1} | parameters,
    )
    asked.include_log_monitor = False  # type: ignore[assignment]  # annotated as a string, used as a truth value
    asked.dashboard_agent_listen_port = None
    return Node(asked, head=False, shutdown_at_exit=True, spawn_reaper=True)


def kill_node(node: Node) -> None:
    """End a node with all that runs on it; one that is gone already is no error."""
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def drain(address: str, node_id: str) -> None:
    """Give a node notice, as a cloud does before it takes the machine back: one minute."""
    accepted, why = ray._raylet.GcsClient(address=address).drain_node(  # type: ignore[attr-defined]
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),  # type: ignore[attr-defined]
        "the test says so",
        time.time_ns() // 1_000_000 + 60_000,
    )
    assert accepted, why


def groups(cluster: str) -> set[AttemptKey]:
    """The attempts that have placement groups under a cluster name."""
    return set(ray_cluster.attempts_of_groups(ray_cluster.list_workers_and_groups().groups, cluster).values())


def is_lost(launcher: RayLauncher, key: AttemptKey) -> bool:
    try:
        launcher.poll(key, 0, LEASE_S)
    except WorkerLostError:
        return True
    except WorkerSilentError:
        return False
    return False


def node_of(launcher: RayLauncher, key: AttemptKey) -> str:
    return launcher._workers[launcher.running()[key]].node


def pid_of(launcher: RayLauncher, name: str) -> int:
    pid: int = ray.get(launcher._workers[name].actor.__ray_call__.remote(lambda _self: os.getpid()))
    return pid
