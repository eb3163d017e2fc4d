"""What a training job works with: its spec, its access to the device, its grader, and the receiver of its events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zhub.datasets.splits import prompt_position
from zhub.graders import Grade
from zhub.process import tracing
from zhub.recipes import Hyperparameters
from zhub.specs import TrainSpec
from zhub_workers.compute.group import Member
from zhub_workers.compute.requests import Embed
from zhub_workers.evaluation.grading import EncodedRow, Grading, greedy_answers, preferences
from zhub_workers.model.adapters import Values

OnEvent = Callable[[str, str, dict[str, Any] | None], None]

MAX_ROUTING_PROMPTS = 512  # half as many route 2 of 100 prompts less right, on the shipped families


@dataclass(frozen=True)
class TrainingJob:
    """``member`` computes for the job, and ``on_event(level, message, data)`` reports to its owner."""

    spec: TrainSpec
    member: Member
    grading: Grading
    on_event: OnEvent

    @property
    def hyper(self) -> Hyperparameters:
        return self.spec.hyperparameters

    def score(self, values: Values | None, rows: Sequence[EncodedRow]) -> list[float]:
        """The reward of each row under the model that follows ``values``, None for the base."""
        if self.spec.recipe == "dpo":
            return preferences(self.member, values, rows)
        return [grade.reward for _, grade in self.answer(values, rows)]

    @tracing.span("evaluate")
    def answer(self, values: Values | None, rows: Sequence[EncodedRow]) -> list[tuple[str, Grade]]:
        """The greedy answer to each row by the model that follows ``values``, None for the base, and its grade."""
        texts = self.texts(values, rows)
        return list(zip(texts, self.grading(texts, rows), strict=True))

    def texts(self, values: Values | None, rows: Sequence[EncodedRow]) -> list[str]:
        """The greedy answer to each row, ungraded."""
        return greedy_answers(self.member, values, rows, max_new_tokens=self.hyper.max_new_tokens)

    def embeddings(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Embeddings of the rows' prompts, ``(n, d)``; n is at most MAX_ROUTING_PROMPTS."""
        # By hash, because a file may be sorted by subject.
        chosen = sorted(rows, key=lambda row: prompt_position(row.row.prompt))[:MAX_ROUTING_PROMPTS]
        return self.member.run(Embed(None, [row.prompt for row in chosen]))
