"""Queries and operations on the Ray cluster: its nodes, its named actors, and its placement groups.

If Ray has no public API for a query, this module uses the private one. No other module does, and a test fails when an
upgrade of Ray changes it.
"""

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

import ray
from ray.exceptions import AuthenticationError
from ray.util import get_placement_group, list_named_actors, placement_group_table, remove_placement_group

from zhub.errors import UnavailableError
from zhub.states import POOLS
from zhub_workers.attempts.attempt import AttemptKey

log = logging.getLogger("zhub.agent")

NAMESPACE = "zhub"
CONNECT_TRY_WITHIN_S = 300.0  # Ray itself waits a minute for its head, and half a minute for a node
CONNECT_WITHIN_S = 900.0
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
_ATTEMPT = re.compile(r"([0-9a-f]{32})-f(\d+)")


class View(NamedTuple):
    """The actors, groups and nodes that Ray's head reports, of all cluster names."""

    names: Set[str]
    """Names of zhub's actors that run or are starting."""
    draining: Set[str]
    """Ids of nodes that will go away: idle nodes that the autoscaler removes, and nodes with a preemption notice."""
    groups: Set[str]
    """Names of placement groups that are not removed."""
    nodes: Set[str]
    """Ids of nodes that are alive."""


def list_workers_and_groups() -> View:
    """Ask Ray's head for its actors, placement groups and nodes. While it is away, Ray's error comes after a minute."""
    table = placement_group_table().values()
    groups = {entry["name"] for entry in table if entry["state"] != "REMOVED"}
    return View(names(), draining_nodes(), groups, {node["NodeID"] for node in _living_nodes()})


def connect(address: str | None, *, trying: Callable[[], object] = lambda: None) -> None:
    """Join the Ray cluster at ``address``; if it is None, start a cluster in this process.

    On a busy machine Ray takes longer to start than its own limits, which are fixed: what fails is tried again, with
    growing pauses. ``trying`` is called before each try, which lasts at most CONNECT_TRY_WITHIN_S.

    Raises:
        AuthenticationError, ValueError: Ray refuses the token or the address.
        UnavailableError: Ray did not answer within CONNECT_WITHIN_S.
    """
    give_up, pause_s = time.monotonic() + CONNECT_WITHIN_S, FIRST_PAUSE_S
    while True:
        trying()
        try:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                include_dashboard=False,
                configure_logging=False,
            )
            return
        except (AuthenticationError, ValueError):
            raise
        except Exception as exc:  # a plain one, where a node takes longer to start than Ray waits
            ray.shutdown()  # what the try has left
            if time.monotonic() + pause_s > give_up:
                raise UnavailableError(f"Ray did not answer within {CONNECT_WITHIN_S:.0f} s: {exc}") from exc
            where = f"at {address}" if address else "in this process"
            about: dict[str, object] = {"action": "ray_away"}
            log.warning("Ray %s does not answer yet: %s; trying again in %.0f s", where, exc, pause_s, extra=about)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


def gpus_in_cluster() -> float:
    """How many GPUs the joined cluster has, in use or not."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0.0)


def draining_nodes() -> set[str]:
    # The public state API needs Ray's dashboard. Ray Train uses this private call, too.
    return set(ray._private.state.state.get_draining_nodes())


def has_process(actor: Any) -> bool:
    """Whether Ray has started a process for an actor. If not, the actor may wait for a node for ever."""
    # Not the state: it is PENDING_CREATION until the constructor has returned.
    return bool(ray._private.state.actors(actor._actor_id.hex())["Pid"])


def nodes() -> str:
    """The nodes that are alive, as text: the resources and labels of each."""
    return "; ".join(
        ", ".join(
            [f"{amount:g} {name}" for name, amount in node["Resources"].items() if _is_counted(name)]
            + [f"{name}={value}" for name, value in node["Labels"].items() if name != "ray.io/node-id"]
        )
        for node in _living_nodes()
    )


def _living_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _is_counted(resource: str) -> bool:
    return not resource.startswith("node:") and resource not in ("memory", "object_store_memory")


def names() -> set[str]:
    return {entry["name"] for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE}


def worker_name(pool: str, cluster: str) -> str:
    return f"zhub-{pool}-{cluster}-{uuid.uuid4().hex[:12]}"


def pool_of(name: str, cluster: str) -> str | None:
    """The pool of a worker of this cluster name; None for any other actor."""
    start = name.rpartition("-")[0]
    return next((pool for pool in POOLS if start == f"zhub-{pool}-{cluster}"), None)


def shard_name(cluster: str, key: AttemptKey) -> str:
    return f"zhub-shard-{cluster}-{key.job_id.hex}-f{key.fence}-{uuid.uuid4().hex[:6]}"


def attempt_of_shard(name: str, cluster: str) -> AttemptKey | None:
    """The attempt that an actor is a shard of; None for any other actor."""
    return _attempt(name.rpartition("-")[0], f"zhub-shard-{cluster}-")


def group_name(cluster: str, key: AttemptKey) -> str:
    return f"pg-{cluster}-{key.job_id.hex}-f{key.fence}"


def attempts_of_groups(groups: Set[str], cluster: str) -> Mapping[str, AttemptKey]:
    """The attempts to which placement groups of this cluster name belong, by the group's name."""
    keys = {name: _attempt(name, f"pg-{cluster}-") for name in groups}
    return {name: key for name, key in keys.items() if key is not None}


def remove_groups(groups: Iterable[str]) -> None:
    """Remove placement groups; actors in them end. A group that does not exist any more is no error."""
    for name in groups:
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(name))


def kill_all(actors: Iterable[str]) -> None:
    """Kill actors by name. An actor that does not exist any more is no error."""
    for name in actors:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


def _attempt(name: str, prefix: str) -> AttemptKey | None:
    match = _ATTEMPT.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    return None if match is None else AttemptKey(uuid.UUID(match[1]), int(match[2]))
