"""Base models and fine-tuning jobs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

from zhub.client.transport import MAX_OUTAGE_S, Http, is_transient, path_part, wait
from zhub.client.wire.training import (
    BaseModelRecord,
    CheckpointRecord,
    EstimateRecord,
    FineTuningJob,
    JobEvent,
    QueueRecord,
    SeriesRecord,
)
from zhub.errors import ApiError, UnavailableError, UnsupportedModelError
from zhub.registry.model_directory import ModelFiles, model_files

EVENTS_PER_PAGE = 200


class BaseModels:
    """Base models: frozen weights that experts adapt."""

    def __init__(self, http: "Http", poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def add_directory(
        self,
        name: str,
        path: Path,
        *,
        chat_template: Path | None = None,
        cluster: str = "default",
        private: bool | None = None,
        started: Callable[[ModelFiles], None] = lambda _files: None,
        progress: Callable[[str, int], None] = lambda _name, _sent_bytes: None,
    ) -> BaseModelRecord:
        """Upload a Hugging Face directory and have it decomposed, see ``wait_ready``.

        ``cluster``: which workers decompose it. ``private``: only for the key's organisation; None: only where the key
        may not add base models for everybody. ``started`` is called with the files that are sent or
        skipped, ``progress`` with the name of a file and how many of its bytes have been sent.

        Raises:
            InvalidRequestError, UnsupportedModelError: the directory lacks something; nothing was sent.
        """
        files = model_files(path, chat_template)
        self._begin(name, cluster=cluster, private=private)
        started(files)
        for filename, source in files.uploads.items():
            self._http.put_file(f"/v1/base_models/{path_part(name)}/files/{path_part(filename)}", source, progress)
        return self._complete(name)

    def add_hub(
        self, name: str, hub_id: str, revision: str, *, cluster: str = "default", private: bool | None = None
    ) -> BaseModelRecord:
        """Add a model of the Hugging Face hub at a commit, which the workers fetch, and have it decomposed."""
        self._begin(name, cluster=cluster, private=private, hub_id=hub_id, hub_revision=revision)
        return self._complete(name)

    def get(self, name: str) -> BaseModelRecord:
        return BaseModelRecord.model_validate(self._http.get(f"/v1/base_models/{path_part(name)}"))

    def list(self) -> list[BaseModelRecord]:
        return [BaseModelRecord.model_validate(entry) for entry in self._http.pages("/v1/base_models", limit=100)]

    def wait_ready(
        self,
        name: str,
        *,
        progress: Callable[[BaseModelRecord], None] = lambda _base: None,
        timeout_s: float = 3600.0,
    ) -> BaseModelRecord:
        """Return the base model once it is decomposed; ``progress`` is called at every poll.

        Raises:
            UnsupportedModelError: it cannot be adapted.
            UnavailableError: it was not ready within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            base = self.get(name)
            progress(base)
            if base.status == "ready":
                return base
            if base.status == "error":
                raise UnsupportedModelError(f"The base model '{name}' cannot be used: {base.error}")
            wait(self._poll_s, deadline, f"The base model '{name}' was not ready within {timeout_s:g} s")

    def _begin(self, name: str, *, private: bool | None, **fields: str) -> None:
        asked = {} if private is None else {"private": private}
        self._http.post("/v1/base_models", {"name": name, **fields, **asked})

    def _complete(self, name: str) -> BaseModelRecord:
        return BaseModelRecord.model_validate(self._http.post(f"/v1/base_models/{path_part(name)}/complete", {}))


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

    def list(self) -> list[FineTuningJob]:
        """Every fine-tuning job of the project, newest first."""
        return [FineTuningJob.model_validate(entry) for entry in self._http.pages("/v1/fine_tuning/jobs", limit=100)]

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
