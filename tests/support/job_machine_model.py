"""What the rows of jobs should say, in a few lines without SQL."""

import uuid
from dataclasses import dataclass, field

from zhub import states
from zhub.kinds import redrive
from zhub.queue import attempts


@dataclass(eq=False)
class Model:
    """What a job's row should say."""

    id: uuid.UUID
    kind: str
    state: str = "queued"
    desired: str = "run"
    fence: int = 0
    user_failures: int = 0
    infra_failures: int = 0
    needs: list["Model"] = field(default_factory=list)
    rank: int = 0
    """Its place among those that are queued."""
    forgiven: tuple[int, int] = (0, 0)
    """Failures of users and of infrastructure before the last redrive."""
    lost_with_another: bool = False
    """It was cancelled because something that it waited for did not succeed."""
    expired: bool = False
    published: bool = False
    checkpoints: list[int] = field(default_factory=list)
    reported: int = 0

    @property
    def active(self) -> bool:
        return self.state in states.ACTIVE

    def owns(self, fence: int) -> bool:
        return self.active and self.fence == fence

    @property
    def dead(self) -> bool:
        return self.state in redrive.DEAD

    @property
    def rests(self) -> bool:
        """It has ended, or somebody paused it or what it waits for."""
        if self.state == "waiting":
            return self.desired != "cancel" and any(need.rests for need in self.needs if not need.ended)
        return (self.ended and self.desired != "redrive") or self.state == "paused"

    @property
    def ended(self) -> bool:
        return self.state in states.TERMINAL

    def beat(self) -> None:
        self.expired = False
        if self.desired != "run":
            self.state = "stopping"
        elif self.state == "starting":
            self.state = "running"

    def release(self, infra: bool, retryable: bool) -> None:
        failures = self.infra_failures if infra else self.user_failures
        limit = attempts.MAX_INFRA_FAILURES if infra else attempts.MAX_USER_FAILURES
        spent = not retryable or failures >= limit
        self.state = {"cancel": "cancelled", "pause": "paused"}.get(self.desired, "failed" if spent else "queued")
        if self.desired == "preempt":
            self.desired = "run"
        if infra:
            self.infra_failures += 1
        else:
            self.user_failures += 1
