"""The agent's own Prometheus metrics. The leader exports the metrics of the queue and of the workers."""

from prometheus_client import Counter, Gauge, Histogram

from zhub.process.metrics import START_BUCKETS

ROUND = Histogram("zhub_agent_round_seconds", "Duration of a round: every attempt polled once, and claims.")
FOLLOWED = Gauge("zhub_agent_attempts", "Attempts that this agent polls.")
PICKUP = Histogram(
    "zhub_pickup_seconds", "From a job's admission until an agent claimed it (starting).", buckets=START_BUCKETS
)
START = Histogram(
    "zhub_start_seconds", "From a claim until its worker answered for the first time (running).", buckets=START_BUCKETS
)
FENCE_REJECTED = Counter(
    "zhub_fence_rejected_total",
    "Attempts whose write was refused because another claim came after, or the job had been taken back. Must stay near "
    "zero: each is work thrown away, and shows an agent that was cut off longer than its lease.",
)
ORPHANS_KILLED = Counter(
    "zhub_orphan_workers_killed_total", "Workers freed because they ran an attempt that no row leases to this cluster."
)
# Registered where this agent keeps serving up.
SERVING_UP = Gauge("zhub_serving_up", "Whether the serving that this agent keeps up answers.", registry=None)
UNPLACED = Gauge("zhub_workers_unplaced", "Workers that Ray could not place on a node for minutes: nodes are missing.")
