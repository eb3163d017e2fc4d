"""A job's training as a curve, from its events."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from zhub.client.wire.training import JobEvent


@dataclass
class TrainingCurve:
    """What a job's events say about its training: one value for each step and for each evaluation."""

    step: int = 0
    rewards: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def add(self, events: Iterable[JobEvent]) -> None:
        """Add events in their order; an attempt that starts over restarts the curve."""
        for event in events:
            values = event.data or {}
            if "step" not in values or (event.type != "metrics" and values.get("type") != "metrics"):
                continue
            if values["step"] <= self.step and self.accuracies:
                self.step, self.rewards, self.accuracies = 0, [], []
            self.step = int(values["step"])
            if "train_reward_mean" in values:
                self.rewards.append(values["train_reward_mean"])
            if "valid_reward_mean" in values:
                self.accuracies.append(values["valid_reward_mean"])
