"""Answers about graders."""

from typing import Any

from zhub.client.wire.answer import Answer


class GraderRunDetails(Answer):
    """How one run of a grader went. ``errors`` has the dialect's flags, True or a message where something failed."""

    name: str
    type: str
    execution_time: float
    errors: dict[str, Any]
    detail: str | None


class GraderRun(Answer):
    """The reward of one answer; ``sub_rewards`` are those of the parts of a ``multi`` grader."""

    reward: float
    sub_rewards: dict[str, float]
    metadata: GraderRunDetails

    @property
    def failures(self) -> list[str]:
        """The names of the flags that are set."""
        return [name for name, flag in self.metadata.errors.items() if flag is True]
