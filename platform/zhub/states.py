"""The states of a job and their allowed transitions, and the states of other objects.

Users and the leader write ``desired``, the requested change. The lease holder, the reaper and the leader write
``state``. So "cancel" never races with "finished": they are two columns, and one guarded statement reads both.
"""

from typing import Final, Literal

DESIRED: Final = ("run", "pause", "cancel", "preempt", "redrive")

WAITING = "waiting"  # what it depends on has not ended, or its base is not decomposed
QUEUED = "queued"  # the leader may admit it
ADMITTED = "admitted"  # workers are reserved; any agent of its cluster may claim it
STARTING = "starting"  # claimed under a fence and a lease; no poll has succeeded yet
RUNNING = "running"  # its worker answers
STOPPING = "stopping"  # the lease holder has read a desired other than "run"
PAUSED = "paused"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"

JOB_STATES: Final = (
    WAITING, QUEUED, ADMITTED, STARTING, RUNNING, STOPPING, PAUSED, SUCCEEDED, FAILED, CANCELLED,
)  # fmt: skip
ACTIVE: Final = (STARTING, RUNNING, STOPPING)  # exactly the states that have a lease
TERMINAL: Final = (SUCCEEDED, FAILED, CANCELLED)

TRANSITIONS: Final[dict[str, tuple[str, ...]]] = {
    WAITING: (QUEUED, CANCELLED, SUCCEEDED, FAILED),  # the last two: only a gate, which the scheduler ends
    QUEUED: (ADMITTED, CANCELLED, PAUSED),
    ADMITTED: (QUEUED, STARTING, CANCELLED, PAUSED),
    STARTING: (RUNNING, STOPPING, QUEUED, SUCCEEDED, FAILED, CANCELLED, PAUSED),
    RUNNING: (STOPPING, QUEUED, SUCCEEDED, FAILED, CANCELLED, PAUSED),
    STOPPING: (QUEUED, SUCCEEDED, FAILED, CANCELLED, PAUSED),
    PAUSED: (QUEUED, CANCELLED),
    SUCCEEDED: (),
    FAILED: (QUEUED, WAITING),  # an audited redrive
    CANCELLED: (QUEUED, WAITING),
}

TORCH, LIGHT = "torch", "light"
POOLS: Final = (TORCH, LIGHT)  # of workers, in the order in which an agent claims jobs for them

OUTCOMES: Final = ("succeeded", "failed_user", "failed_infra", "lost", "cancelled", "paused", "preempted")

FILE_STATUSES: Final = ("uploaded", "processed", "error")
VersionState = Literal["ready", "deprecated", "yanked", "deleted", "purged"]
BASE_MODEL_STATUSES: Final = ("uploading", "decomposing", "ready", "error")
EVENT_LEVELS: Final = ("info", "warn", "error")
EVENT_TYPES: Final = ("message", "metrics")
MISFIRES: Final = ("skip", "fire_once", "backfill")
OVERLAPS: Final = ("skip", "buffer_one", "allow", "cancel_running")
TICK_OUTCOMES: Final = (
    "fired", "buffered", "skipped_overlap", "skipped_misfire", "refused", "no_regression", "collected",
)  # fmt: skip
COMPLETION_DATASET_STATUSES: Final = ("queued", "succeeded", "failed")
WEBHOOK_ENDPOINT_STATUSES: Final = ("enabled", "disabled")

USER_KINDS: Final = ("person", "service_account")
ROLES: Final = ("member", "viewer", "developer", "admin", "owner")
PROJECT_ROLES: Final = ("viewer", "developer", "admin")
