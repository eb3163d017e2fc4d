"""The answers of a release to the rows of an evaluation: chosen and generated as a replica of serving does."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from zhub.answering import Answering
from zhub.errors import TrainingError
from zhub.generation import Embeddings, Ended, Failed, GenerationRequest, Line, Started, Text
from zhub.specs import EvaluateSpec
from zhub_workers.evaluation.evaluate import Answer
from zhub_workers.evaluation.grading import EncodedRow
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.weight_files import device_memory_bytes
from zhub_workers.serving.asked import Asked
from zhub_workers.serving.experts import Experts
from zhub_workers.serving.lane import PLACES, Lane

# Of the device's memory, for keys and values: trainings of the same worker need the rest.
CACHE_SHARE = 1 / 16


class ReleaseAnswers:
    """Answers rows by what a release says, in a lane of its own.

    Args:
        model: shares its weights with nothing that changes them.
        before_step: called before each step of the lane; what it raises ends the evaluation.
    """

    def __init__(
        self,
        model: AdaptedModel,
        release: Answering,
        spec: EvaluateSpec,
        experts: Experts,
        before_step: Callable[[], object],
    ) -> None:
        self._release = release
        self._spec = spec
        self._before_step = before_step
        self._lane = Lane(model, experts, int(CACHE_SHARE * device_memory_bytes(model.base.device)))
        self._open: set[Asked] = set()

    def __call__(
        self, rows: Sequence[EncodedRow], temperature: float = 0.0, seeds: Sequence[int] | None = None
    ) -> list[Answer]:
        """One answer to each row.

        Raises:
            TrainingError: a row that cannot be answered, by its line.
            DigestMismatchError, ArtifactError, BasisMismatchError: a file of an expert is not what it should be.
        """
        lines: list[list[Line]] = [[] for _ in rows]
        waiting = deque(range(len(rows)))
        try:
            while waiting or not self._lane.is_idle:
                self._before_step()
                while waiting and len(self._open) < PLACES:
                    index = waiting.popleft()
                    self._ask(rows[index], temperature, None if seeds is None else seeds[index], lines[index])
                self._lane.step()
        finally:
            self._end_open()
        return [_answer(row, said) for row, said in zip(rows, lines, strict=True)]

    def _ask(self, row: EncodedRow, temperature: float, seed: int | None, lines: list[Line]) -> None:
        request = GenerationRequest(
            base=self._spec.base,
            basis=self._spec.basis,
            messages=row.row.prompt,
            max_new_tokens=self._spec.max_new_tokens,
            temperature=temperature,
            seed=seed,
            **dict(self._release),
        )
        asked = Asked(request, partial(_hear, lines), self._close)
        self._open.add(asked)
        self._lane.prepare(asked)
        self._lane.start(asked)

    def _end_open(self) -> None:
        """Where the evaluation is ended: what the lane has begun to read comes to its end, and no thread is left."""
        for asked in list(self._open):
            asked.end()
        while not self._lane.is_idle:
            self._lane.step()

    def _close(self, asked: Asked) -> None:
        self._open.discard(asked)


def _hear(lines: list[Line], line: Line | Embeddings) -> None:
    if not isinstance(line, Embeddings):
        lines.append(line)


def _answer(row: EncodedRow, lines: Sequence[Line]) -> Answer:
    started, last = lines[0], lines[-1]
    if isinstance(last, Failed):
        raise TrainingError(f"line {row.row.line}: {last.message}")
    assert isinstance(started, Started) and isinstance(last, Ended)
    text = "".join(line.text for line in lines if isinstance(line, Text))
    return Answer(text, [expert.name for expert in started.experts])
