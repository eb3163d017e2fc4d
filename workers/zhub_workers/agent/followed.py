"""An attempt that an agent polls, and why it is asked to leave its worker."""

import time
from dataclasses import dataclass, field

from zhub_workers.attempts.attempt import AttemptKey

LEAVING = "The node of the job's worker will go away: the job goes on from a checkpoint on another."
CLUSTER_STOPS = (
    "zhub is being stopped. The job leaves its worker with a checkpoint, and goes on from it once zhub runs again."
)


@dataclass
class Followed:
    """What an agent knows of an attempt that it polls."""

    key: AttemptKey
    seq: int = 0
    progress: int = -1
    progressed_at: float = field(default_factory=time.monotonic)
    stop_requested_at: float | None = None
    stop_acknowledged: bool = False
    claimed_at: float | None = None
    """When this agent claimed it. None once its worker has answered, and if an earlier agent claimed it."""
