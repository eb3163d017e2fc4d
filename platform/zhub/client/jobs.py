"""Fine-tuning jobs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Required, TypedDict, Unpack

from zhub.client.transport import MAX_OUTAGE_S, Http, is_transient, path_part
from zhub.client.wire.training import (
    CheckpointRecord,
    EstimateRecord,
    FineTuningJob,
    JobEvent,
    QueueRecord,
    SeriesRecord,
)
from zhub.errors import ApiError, UnavailableError

EVENTS_PER_PAGE = 200


class TrainingRequest(TypedDict, total=False):
    """The request for a fine-tuning job; the API's documentation says what each field means."""

    model: Required[str]
    training_file: Required[str]
    method: Required[Mapping[str, Any]]
    suffix: str | None
    seed: int | None
    depends_on: Sequence[str]
    dedup_key: str | None
    promotion: Mapping[str, Any] | None
    cluster: str
    priority: int


class JobQuery(TypedDict, total=False):
    """Which jobs a list has; a field that is None or missing matches all."""

    status: Sequence[str] | None
    method: str | None
    expert: str | None
    since: int | None
    """Unix time."""
    metadata: Mapping[str, str] | None
    search: str | None
    archived: bool
    """Only those that are archived, instead of only those that are not."""
    order: str | None


class JobChanges(TypedDict, total=False):
    """A change of a job."""

    description: str | None
    metadata: Mapping[str, str] | None
    archived: bool


class Jobs:
    """Fine-tuning jobs."""

    def __init__(self, http: "Http", poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def create(self, **request: Unpack[TrainingRequest]) -> FineTuningJob:
        return FineTuningJob.model_validate(self._http.post("/v1/fine_tuning/jobs", request))

    def estimate(self, **request: Unpack[TrainingRequest]) -> EstimateRecord:
        """The job that ``create`` would make, and how long it may run; nothing is created."""
        return EstimateRecord.model_validate(self._http.post("/v1/fine_tuning/jobs/estimate", request))

    def get(self, job_id: str) -> FineTuningJob:
        return FineTuningJob.model_validate(self._http.get(f"/v1/fine_tuning/jobs/{path_part(job_id)}"))

    def list(self, *, most: int | None = None, **wanted: Unpack[JobQuery]) -> list[FineTuningJob]:
        """The project's fine-tuning jobs, at most so many: newest first, unless ``order`` is ``asc``."""
        params: dict[str, Any] = {**wanted}
        for key, value in (params.pop("metadata", None) or {}).items():
            params[f"metadata[{key}]"] = value
        entries = self._http.pages("/v1/fine_tuning/jobs", limit=100, most=most, **params)
        return [FineTuningJob.model_validate(entry) for entry in entries]

    def change(self, job_id: str, **changes: Unpack[JobChanges]) -> FineTuningJob:
        """Describe a job, replace its ``metadata``, archive it, or show it again; other fields stay as they are."""
        return FineTuningJob.model_validate(self._http.patch(f"/v1/fine_tuning/jobs/{path_part(job_id)}", changes))

    def cancel(self, job_id: str) -> FineTuningJob:
        return self._request_change(job_id, "cancel")

    def pause(self, job_id: str) -> FineTuningJob:
        """Have the job write a checkpoint and release its worker."""
        return self._request_change(job_id, "pause")

    def resume(self, job_id: str) -> FineTuningJob:
        """Queue a paused job again, to continue from its newest checkpoint."""
        return self._request_change(job_id, "resume")

    def redrive(self, job_id: str) -> FineTuningJob:
        """Queue a failed or cancelled job again."""
        return self._request_change(job_id, "redrive")

    def queue(self, waiting: str) -> QueueRecord:
        """What a job (``ftjob-…``), an evaluation (``eval-…``) or the decomposition of a base (its name) waits for."""
        kinds = {"ftjob-": "fine_tuning/jobs", "eval-": "evaluations"}
        kind = next((kind for prefix, kind in kinds.items() if waiting.startswith(prefix)), "base_models")
        return QueueRecord.model_validate(self._http.get(f"/v1/{kind}/{path_part(waiting)}/queue"))

    def checkpoints(self, job_id: str) -> Sequence[CheckpointRecord]:
        """The checkpoints that the job keeps, newest first."""
        entries = self._http.pages(f"/v1/fine_tuning/jobs/{path_part(job_id)}/checkpoints", limit=100)
        return [CheckpointRecord.model_validate(entry) for entry in entries]

    def _request_change(self, job_id: str, change: str) -> FineTuningJob:
        return FineTuningJob.model_validate(self._http.post(f"/v1/fine_tuning/jobs/{path_part(job_id)}/{change}", {}))

    def events(self, job_id: str, *, after: str | None = None) -> Sequence[JobEvent]:
        """What happened to the job, oldest first: everything, or only what followed the event ``after``."""
        events = []
        for entry in self._http.pages(f"/v1/fine_tuning/jobs/{path_part(job_id)}/events", limit=EVENTS_PER_PAGE):
            if entry["id"] == after:
                break
            events.append(JobEvent.model_validate(entry))
        return events[::-1]

    def metrics(self, job_id: str, *, points: int) -> Sequence[SeriesRecord]:
        """A series for each metric of the job, of at most ``points`` points (4 to 2000)."""
        answer = self._http.get(f"/v1/fine_tuning/jobs/{path_part(job_id)}/metrics", points=points)
        return [SeriesRecord.model_validate(series) for series in answer["series"]]

    def follow(self, job_id: str) -> Iterator[tuple[FineTuningJob, Sequence[JobEvent]]]:
        """Yield the job with each event as it happens, until it has ended; an outage of up to a minute is bridged."""
        last: dict[str, str] = {}
        deadline = time.monotonic() + MAX_OUTAGE_S
        while True:
            try:
                job = self.get(job_id)
                for sent in self._http.events(
                    f"/v1/fine_tuning/jobs/{path_part(job_id)}/events", stream="true", **last
                ):
                    deadline = time.monotonic() + MAX_OUTAGE_S
                    if sent.event == "end":
                        yield FineTuningJob.model_validate_json(sent.data), []
                        return
                    event = JobEvent.model_validate_json(sent.data)
                    if event.type == "message":
                        job = self.get(job_id)  # an event with a message may come with a new status
                    last = {"after": event.id}
                    yield job, [event]
            except (UnavailableError, ApiError) as exc:
                if not is_transient(exc) or time.monotonic() > deadline:
                    raise
            time.sleep(self._poll_s)
