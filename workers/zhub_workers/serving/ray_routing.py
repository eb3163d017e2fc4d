"""What Ray Serve asks about replicas: which of them a request goes to, and how many there are to be.

Ray sends this module whole to its HTTP front and to its controller.
"""

import asyncio
import math
import time
from collections import Counter, deque
from typing import Any

from ray.serve.config import AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from zhub_workers.serving.warmth import Warmth

# Requests of a replica, waiting and running, beyond which there are to be more replicas: its places are full then.
TARGET_REQUESTS = 48
# How long the prompts that wait in a replica may take to be read, before there are to be more.
TARGET_QUEUE_S = 5.0
JUST_CHOSEN_S = 0.1
QUEUE_S = "queue_s"  # what a replica reports


def routing() -> RequestRouterConfig:
    """By ``WarmReplicas``."""
    return RequestRouterConfig(request_router_class=WarmReplicas)  # type: ignore[arg-type]  # its kwargs are mistyped


def scaling() -> AutoscalingPolicy:
    """By ``replicas_wanted``."""
    return AutoscalingPolicy(policy_function=replicas_wanted)  # type: ignore[no-untyped-call]


class WarmReplicas(RequestRouter):
    """Sends a request to a replica that has its experts and the beginning of its prompt, or else to the least busy."""

    def initialize_state(self, **_: Any) -> None:
        self._warmth: Warmth[ReplicaID] = Warmth()
        # Counted here: Ray's own count of a replica is unknown until that has answered, and it takes an unknown one for
        # worse than any other.
        self._under_way: Counter[ReplicaID] = Counter()
        # When, and which: requests that come at once are chosen for before the first of them is counted.
        self._chosen: deque[tuple[float, ReplicaID]] = deque()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each replica by itself, the best first: the next is tried where one does not answer or is full."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        if pending_request is None:
            return [list(replicas.values())]
        pending_request.routing_context.should_backoff = True  # where all are full
        now = time.monotonic()
        while self._chosen and self._chosen[0][0] < now - JUST_CHOSEN_S:
            self._chosen.popleft()
        just_chosen = Counter(replica_id for _, replica_id in self._chosen)
        loads = {replica_id: self._under_way[replica_id] + just_chosen[replica_id] for replica_id in replicas}
        ranked = self._warmth.ranked(pending_request.metadata.session_id, loads)
        self._chosen.append((now, ranked[0]))
        return [[replicas[replica_id]] for replica_id in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Ray calls this on the loop of the router, once the replica has taken the request."""
        self._warmth.note(pending_request.metadata.session_id, replica_id)
        self._under_way[replica_id] += 1
        loop = asyncio.get_running_loop()
        result.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended, replica_id))

    def _ended(self, replica_id: ReplicaID) -> None:
        self._under_way[replica_id] -= 1
        if not self._under_way[replica_id]:
            del self._under_way[replica_id]


def replicas_wanted(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """As many replicas as have time to read the prompts that wait, and places for all requests."""
    reported = context.aggregated_metrics or {}
    queue_s = sum(reported.get(QUEUE_S, {}).values())
    wanted = max(context.total_num_requests / TARGET_REQUESTS, queue_s / TARGET_QUEUE_S)
    return math.ceil(wanted), {}
