"""Answers about dataset files, base models and fine-tuning jobs."""

from typing import Any

from zhub.client.wire.answer import ENDED, Answer
from zhub.client.wire.completions import Provenance


class ClassifiedRecord(Answer):
    """A label of a classifier's dataset, and the expert version whose prompts have it; ``rows`` once they are made."""

    label: str
    model: str
    rows: int | None


class ClassificationDataset(Answer):
    """Rows for a classifier; ``file`` is there once the ``status`` is ``succeeded``."""

    id: str
    created_at: int
    finished_at: int | None
    status: str
    error: dict[str, Any] | None
    name: str
    labels: list[ClassifiedRecord]
    file: str | None


class DatasetFile(Answer):
    """A dataset file. ``status`` is ``uploaded`` until its rows are checked, then ``processed`` or ``error``."""

    id: str
    filename: str
    bytes: int
    created_at: int
    status: str
    status_details: str | None
    sha256: str
    version: int
    validation: dict[str, Any] | None
    dataset: str = ""
    """The name of the dataset that it is a version of."""
    classifies: list[ClassifiedRecord] = []
    """Where it is for a classifier: the experts whose prompts it has."""
    is_new: bool = False
    """Of an upload: whether these bytes were not there before under this name."""
    completions: Provenance | None = None
    """Of which stored ones it was made, if it was."""


class LongRowRecord(Answer):
    line: int
    tokens: int


class TokenCountRecord(Answer):
    """Which rows of a file do not fit a base; ``status`` is ``counting``, then ``counted`` or ``failed``.

    ``long_rows`` are the first of the ``long_row_count``. ``tokenizer_warning`` is there where the base's tokenizer
    does not know the language of the rows.
    """

    status: str
    error: dict[str, Any] | None
    context_length: int | None
    long_row_count: int | None
    long_rows: list[LongRowRecord]
    tokenizer_warning: str | None = None


class BaseModelRecord(Answer):
    """A base model. ``status`` is ``uploading``, ``decomposing``, then ``ready`` or ``error``."""

    id: str
    created_at: int
    status: str
    error: str | None
    is_default: bool
    private: bool = False
    cluster: str
    rank: int | None = None
    files: list[str]
    hub_id: str | None
    hub_revision: str | None
    weights_fingerprint: str | None
    basis_fingerprint: str | None
    details: dict[str, Any] | None


class TrainingResult(Answer):
    """What a training led to: how base and expert did on test rows, None where there are none.

    ``learned_nothing``: no step was better than what training began from, so the version equals it. ``general`` says
    what the expert does better and worse beside its task, None where that was not measured.
    """

    best_step: int
    learned_nothing: bool
    base_mean: float | None
    expert_mean: float | None
    p_value: float | None
    general_base_mean: float | None = None
    general_expert_mean: float | None = None
    general: str | None = None


class Money(Answer):
    """An amount in a currency (ISO 4217, lower case)."""

    value: float
    currency: str


class FineTuningJob(Answer):
    """A job. ``status`` is ``queued``, ``running``, ``paused``, or one of ``ENDED``."""

    id: str
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    status: str
    error: dict[str, Any] | None
    training_file: str | None
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int
    suffix: str | None
    attempts: int
    cluster: str
    priority: int
    result: TrainingResult | None = None
    metadata: dict[str, str] = {}
    description: str | None = None
    archived_at: int | None = None
    worker_seconds: float | None = None
    cost: Money | None = None

    @property
    def steps(self) -> int:
        """How many steps were requested."""
        return int(self.hyperparameters["n_steps"])

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class JobEvent(Answer):
    """One thing that happened to a job."""

    id: str
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


class LogLine(Answer):
    """A line of a job's log. ``at`` is in UTC, by the clock of the worker that wrote it."""

    at: str
    level: str
    logger: str
    message: str
    fence: int


class SeriesPoint(Answer):
    step: int
    value: float


class SeriesRecord(Answer):
    """One metric of a job by step. ``count`` is how many points there are, ``points`` a selection of them."""

    name: str
    count: int
    points: list[SeriesPoint]


class PastTrainings(Answer):
    """How many earlier trainings an estimate rests on, and whether only those with steps of the same size counted."""

    trainings: int
    same_size: bool


class EstimateRecord(Answer):
    """What a job would need: ``workers``, unless it ``shares_a_worker`` with other jobs."""

    expert: str
    method: dict[str, Any]
    seed: int
    workers: int
    shares_a_worker: bool
    expected_seconds: float | None
    shortest_seconds: float | None = None
    longest_seconds: float | None = None
    expected_worker_seconds: float | None
    expected_cost: Money | None = None
    expected_tokens: int | None = None
    based_on: PastTrainings | None = None


class QueueRecord(Answer):
    """What a job, an evaluation or a base, which ``job_id`` names, waits for.

    ``estimated_start`` and ``expected_seconds``, its run time, are None while they are not known.
    """

    job_id: str
    status: str
    position: int | None
    reason: str
    estimated_start: int | None
    expected_seconds: float | None


class CheckpointRecord(Answer):
    """A checkpoint that a job keeps; ``fine_tuned_model_checkpoint`` is its name as a model."""

    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int
    size_bytes: int
