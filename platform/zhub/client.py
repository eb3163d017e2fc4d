"""A synchronous client of zhub's HTTP API: what the command line and the demo stand on.

Programs may as well use the ``openai`` package; this client adds what that dialect lacks (base models, experts)
and checks every byte it pulls.
"""

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Required, Self, TypedDict, Unpack

import httpx
from pydantic import ValidationError

from zhub.client_lifecycle import Aliases, Promotions, Schedules
from zhub.client_logs import Logs
from zhub.errors import (
    ApiError,
    ArtifactError,
    ConflictError,
    DigestMismatchError,
    InvalidDatasetError,
    InvalidRequestError,
    RowProblem,
    UnavailableError,
    UnsupportedModelError,
)
from zhub.generation import ChosenExpert
from zhub.manifest import CHUNK_BYTES, MANIFEST_FILE, FileEntry, Manifest, sha256_file
from zhub.model_directory import ModelFiles, model_files
from zhub.transport import MAX_OUTAGE_S, MAY_PASS, SLOW_READ_TIMEOUT_S, Http, api_error, path_part, wait
from zhub.webhook_client import Webhooks
from zhub.wire import (
    BaseModelRecord,
    ChatPiece,
    CheckpointRecord,
    DatasetFile,
    EstimateRecord,
    EvaluationRecord,
    ExpertVersion,
    FineTuningJob,
    JobEvent,
    ModelRecord,
    QueueRecord,
    Routing,
    SeriesRecord,
)

MAX_MANIFEST_BYTES = 16 << 20
EVENTS_PER_PAGE = 200


class Client:
    """One connection to one project of one zhub. Close it, or use it as a context manager."""

    def __init__(
        self, base_url: str, api_key: str, *, transport: httpx.BaseTransport | None = None, poll_s: float = 0.5
    ) -> None:
        http = Http(base_url, api_key, transport)
        self.base_url = base_url
        self.files = Files(http, poll_s)
        self.base_models = BaseModels(http, poll_s)
        self.jobs = Jobs(http, poll_s)
        self.logs = Logs(http, poll_s)
        self.experts = Experts(http)
        self.evaluations = Evaluations(http, poll_s)
        self.aliases = Aliases(http)
        self.promotions = Promotions(http, poll_s)
        self.schedules = Schedules(http)
        self.webhooks = Webhooks(http)
        self._http = http

    def models(self) -> list[ModelRecord]:
        """Everything that a request may name as its model."""
        return [ModelRecord.model_validate(found) for found in self._http.get("/v1/models")["data"]]

    def health(self) -> dict[str, Any]:
        """That the API's process answers, and its ``version``. Needs no key."""
        answer = self._http.get("/healthz")
        assert isinstance(answer, dict)
        return answer

    def readiness(self) -> dict[str, Any]:
        """Whether a scheduler leads, and how many agents were seen lately. Needs no key."""
        answer = self._http.get("/readyz")
        assert isinstance(answer, dict)
        return answer

    def chat(
        self,
        model: str,
        message: str,
        *,
        mixture: Mapping[str, float] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> ChatPiece:
        """Ask one question and return the whole answer. ``mixture`` maps experts to their weights."""
        body = _chat_body(model, message, mixture, temperature, max_tokens)
        answer = self._http.post("/v1/chat/completions", body, read_timeout_s=SLOW_READ_TIMEOUT_S)
        return _piece(answer, answer["choices"][0]["message"]["content"])

    def chat_stream(
        self,
        model: str,
        message: str,
        *,
        mixture: Mapping[str, float] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Iterator[ChatPiece]:
        """Ask one question and yield the answer as it is made.

        Raises:
            ApiError, UnavailableError: also in the middle of an answer.
        """
        body = _chat_body(model, message, mixture, temperature, max_tokens) | {"stream": True}
        with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                content = line.removeprefix("data:").strip()
                if content == "[DONE]":
                    return
                chunk = json.loads(content)
                if "error" in chunk:
                    raise api_error(503, chunk, response)
                for choice in chunk["choices"]:
                    yield _piece(chunk, choice["delta"].get("content") or "")
        raise UnavailableError("The answer broke off; ask again.")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Files:
    """Dataset files."""

    def __init__(self, http: "Http", poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def upload(self, path: Path) -> DatasetFile:
        """Send a JSONL file, read from disk in pieces; its rows are checked afterwards, see ``wait_processed``."""
        if not path.is_file():
            raise InvalidRequestError(f"{path}: expected a JSONL file, found {_kind(path)}.", param="file")
        with path.open("rb") as file:
            answer = self._http.post_form("/v1/files", {"purpose": "fine-tune"}, {"file": (path.name, file)})
        return DatasetFile.model_validate(answer)

    def get(self, file_id: str) -> DatasetFile:
        return DatasetFile.model_validate(self._http.get(f"/v1/files/{path_part(file_id)}"))

    def list(self) -> list[DatasetFile]:
        """Every file of the project, newest first."""
        return [DatasetFile.model_validate(found) for found in self._http.pages("/v1/files", limit=1000)]

    def first_bytes(self, file_id: str) -> bytes:
        """The beginning of a file's content: the object store answers."""
        with self._http.stream("GET", f"/v1/files/{path_part(file_id)}/content") as response:
            return next(response.iter_bytes(1024), b"")

    def wait_processed(
        self, file_id: str, *, progress: Callable[[DatasetFile], None] = lambda _file: None, timeout_s: float = 600.0
    ) -> DatasetFile:
        """Return the file once its rows have been checked; ``progress`` is called at every look.

        Raises:
            InvalidDatasetError: rows that break the schema, by their lines.
            UnavailableError: nobody checked them within ``timeout_s``.
        """
        give_up = time.monotonic() + timeout_s
        while True:
            file = self.get(file_id)
            progress(file)
            if file.status == "processed":
                return file
            if file.status == "error":
                problems = [RowProblem(**problem) for problem in (file.validation or {}).get("problems", [])]
                raise InvalidDatasetError(f"{file.filename} did not pass validation.\n{file.status_details}", problems)
            wait(self._poll_s, give_up, f"{file.filename} was not checked within {timeout_s:g} s")


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
        started: Callable[[ModelFiles], None] = lambda _files: None,
        progress: Callable[[str, int], None] = lambda _name, _sent_bytes: None,
    ) -> BaseModelRecord:
        """Upload a Hugging Face directory and have it decomposed, see ``wait_ready``.

        ``started`` learns which files are sent and which are not, ``progress`` how much of each has been sent.

        Raises:
            InvalidRequestError, UnsupportedModelError: the directory lacks something; nothing was sent.
        """
        files = model_files(path, chat_template)
        self._http.post("/v1/base_models", {"name": name})
        started(files)
        for filename, source in files.uploads.items():
            self._http.put_file(f"/v1/base_models/{path_part(name)}/files/{path_part(filename)}", source, progress)
        return self._complete(name)

    def add_hub(self, name: str, hub_id: str, revision: str) -> BaseModelRecord:
        """Add a model of the Hugging Face hub at a commit, which the workers fetch, and have it decomposed."""
        self._http.post("/v1/base_models", {"name": name, "hub_id": hub_id, "hub_revision": revision})
        return self._complete(name)

    def get(self, name: str) -> BaseModelRecord:
        return BaseModelRecord.model_validate(self._http.get(f"/v1/base_models/{path_part(name)}"))

    def list(self) -> list[BaseModelRecord]:
        return [BaseModelRecord.model_validate(found) for found in self._http.get("/v1/base_models")["data"]]

    def wait_ready(
        self,
        name: str,
        *,
        progress: Callable[[BaseModelRecord], None] = lambda _base: None,
        timeout_s: float = 3600.0,
    ) -> BaseModelRecord:
        """Return the base model once it is decomposed; ``progress`` is called at every look.

        Raises:
            UnsupportedModelError: it cannot be adapted.
            UnavailableError: it was not ready within ``timeout_s``.
        """
        give_up = time.monotonic() + timeout_s
        while True:
            base = self.get(name)
            progress(base)
            if base.status == "ready":
                return base
            if base.status == "error":
                raise UnsupportedModelError(f"The base model '{name}' cannot be used: {base.error}")
            wait(self._poll_s, give_up, f"The base model '{name}' was not ready within {timeout_s:g} s")

    def _complete(self, name: str) -> BaseModelRecord:
        return BaseModelRecord.model_validate(self._http.post(f"/v1/base_models/{path_part(name)}/complete", {}))


class TrainingRequest(TypedDict, total=False):
    """What a fine-tuning job is asked for with; the API's documentation says what each field means."""

    model: Required[str]
    training_file: Required[str]
    method: Required[Mapping[str, Any]]
    suffix: str | None
    seed: int | None
    depends_on: Sequence[str]
    dedup_key: str | None
    promotion: Mapping[str, Any] | None
    cluster: str


class Jobs:
    """Fine-tuning jobs."""

    def __init__(self, http: "Http", poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def create(self, **request: Unpack[TrainingRequest]) -> FineTuningJob:
        return FineTuningJob.model_validate(self._http.post("/v1/fine_tuning/jobs", request))

    def estimate(self, **request: Unpack[TrainingRequest]) -> EstimateRecord:
        """What ``create`` would make, and what it may take; nothing is made."""
        return EstimateRecord.model_validate(self._http.post("/v1/fine_tuning/jobs/estimate", request))

    def get(self, job_id: str) -> FineTuningJob:
        return FineTuningJob.model_validate(self._http.get(f"/v1/fine_tuning/jobs/{path_part(job_id)}"))

    def list(self) -> list[FineTuningJob]:
        """Every fine-tuning job of the project, newest first."""
        return [FineTuningJob.model_validate(found) for found in self._http.pages("/v1/fine_tuning/jobs", limit=100)]

    def cancel(self, job_id: str) -> FineTuningJob:
        return self._wish(job_id, "cancel")

    def pause(self, job_id: str) -> FineTuningJob:
        """Have the job write a checkpoint and let go of its worker."""
        return self._wish(job_id, "pause")

    def resume(self, job_id: str) -> FineTuningJob:
        """Queue a paused job again, to go on from its newest checkpoint."""
        return self._wish(job_id, "resume")

    def redrive(self, job_id: str) -> FineTuningJob:
        """Queue a job again that failed or was cancelled."""
        return self._wish(job_id, "redrive")

    def queue(self, job_id: str) -> QueueRecord:
        """What the job waits for."""
        return QueueRecord.model_validate(self._http.get(f"/v1/fine_tuning/jobs/{path_part(job_id)}/queue"))

    def checkpoints(self, job_id: str) -> Sequence[CheckpointRecord]:
        """The checkpoints that the job keeps, newest first."""
        found = self._http.pages(f"/v1/fine_tuning/jobs/{path_part(job_id)}/checkpoints", limit=100)
        return [CheckpointRecord.model_validate(entry) for entry in found]

    def _wish(self, job_id: str, wish: str) -> FineTuningJob:
        return FineTuningJob.model_validate(self._http.post(f"/v1/fine_tuning/jobs/{path_part(job_id)}/{wish}", {}))

    def events(self, job_id: str, *, after: str | None = None) -> Sequence[JobEvent]:
        """What happened to the job, oldest first: everything, or only what followed the event ``after``."""
        found = []
        for entry in self._http.pages(f"/v1/fine_tuning/jobs/{path_part(job_id)}/events", limit=EVENTS_PER_PAGE):
            if entry["id"] == after:
                break
            found.append(JobEvent.model_validate(entry))
        return found[::-1]

    def metrics(self, job_id: str, *, points: int) -> Sequence[SeriesRecord]:
        """A series for each metric of the job, of at most ``points`` points (4 to 2000)."""
        answer = self._http.get(f"/v1/fine_tuning/jobs/{path_part(job_id)}/metrics", points=points)
        return [SeriesRecord.model_validate(series) for series in answer["series"]]

    def follow(self, job_id: str) -> Iterator[tuple[FineTuningJob, Sequence[JobEvent]]]:
        """Yield the job with each event as it happens, until it has ended; an outage of a minute is survived."""
        last: dict[str, str] = {}
        give_up = time.monotonic() + MAX_OUTAGE_S
        while True:
            try:
                job = self.get(job_id)
                for message in self._http.messages(
                    f"/v1/fine_tuning/jobs/{path_part(job_id)}/events", stream="true", **last
                ):
                    give_up = time.monotonic() + MAX_OUTAGE_S
                    if message.event == "end":
                        yield FineTuningJob.model_validate(message.content), []
                        return
                    event = JobEvent.model_validate(message.content)
                    if event.type == "message":
                        job = self.get(job_id)  # what has a message may have a new status
                    last = {"after": event.id}
                    yield job, [event]
            except (UnavailableError, ApiError) as exc:
                may_pass = isinstance(exc, UnavailableError) or exc.status in MAY_PASS
                if not may_pass or time.monotonic() > give_up:
                    raise
            time.sleep(self._poll_s)


class Evaluations:
    """How good models are on a file, and whether a difference is real."""

    def __init__(self, http: "Http", poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def create(
        self,
        *,
        model: str,
        file: str,
        grader: Mapping[str, Any],
        compare_with: Sequence[str] = (),
        max_new_tokens: int | None = None,
        k: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> EvaluationRecord:
        """Measure a model, its base and ``compare_with``; what was measured on this suite before is not run again."""
        body: dict[str, Any] = {"model": model, "file": file, "grader": grader, "compare_with": list(compare_with)}
        settings = {"max_new_tokens": max_new_tokens, "k": k, "temperature": temperature, "seed": seed}
        body |= {name: value for name, value in settings.items() if value is not None}
        return EvaluationRecord.model_validate(self._http.post("/v1/evaluations", body))

    def get(self, evaluation_id: str) -> EvaluationRecord:
        return EvaluationRecord.model_validate(self._http.get(f"/v1/evaluations/{path_part(evaluation_id)}"))

    def list(self) -> list[EvaluationRecord]:
        """Every evaluation of the project, newest first."""
        return [EvaluationRecord.model_validate(found) for found in self._http.pages("/v1/evaluations", limit=100)]

    def rows(self, evaluation_id: str) -> Iterator[dict[str, Any]]:
        """Each row of the suite with the greedy answer to it and its reward."""
        with self._http.stream("GET", f"/v1/evaluations/{path_part(evaluation_id)}/rows") as response:
            for line in response.iter_lines():
                yield json.loads(line)

    def wait_settled(self, evaluation_id: str, *, timeout_s: float = 3600.0) -> EvaluationRecord:
        """Return the evaluation once it and the others of its suite have ended.

        Raises:
            UnavailableError: they had not within ``timeout_s``.
        """
        give_up = time.monotonic() + timeout_s
        while not (found := self.get(evaluation_id)).settled:
            wait(self._poll_s, give_up, f"{evaluation_id} had not ended within {timeout_s:g} s")
        return found


class Experts:
    """Expert versions."""

    def __init__(self, http: "Http") -> None:
        self._http = http

    def list(self) -> list[ExpertVersion]:
        """Every version of the project, newest first."""
        return [ExpertVersion.model_validate(found) for found in self._http.get("/v1/experts")["data"]]

    def get(self, name: str) -> ExpertVersion:
        """The version ``<project>.<expert>@v<number>``."""
        return ExpertVersion.model_validate(self._http.get(f"/v1/experts/{path_part(name)}"))

    def pull(self, name: str, directory: Path) -> ExpertVersion:
        """Download a version's files into a new directory, every byte checked against the version's digest.

        A directory that holds the version already is left as it is.

        Raises:
            DigestMismatchError: bytes that are not the version's; nothing is left behind.
            ConflictError: the directory holds something else.
        """
        version = self.get(name)
        if directory.is_dir() and any(directory.iterdir()):
            if _holds(directory, version.digest):
                return version
            raise ConflictError(f"{directory} is not empty. Remove it, or choose another directory.")
        unfinished = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
        unfinished.mkdir(parents=True)
        try:
            manifest_path = unfinished / MANIFEST_FILE
            digest = self._download(name, manifest_path, limit_bytes=MAX_MANIFEST_BYTES)
            _check(f"{name}/{MANIFEST_FILE}", version.digest, digest)
            for entry in _read_manifest(name, manifest_path):
                digest = self._download(name, unfinished / entry.name, limit_bytes=entry.size_bytes)
                _check(f"{name}/{entry.name}", entry.sha256, digest)
            unfinished.rename(directory)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return version

    def _download(self, name: str, path: Path, *, limit_bytes: int) -> str:
        """Write one file and return its SHA-256. Stops reading one byte past the limit: the digest is wrong by then."""
        digest = hashlib.sha256()
        left = limit_bytes
        url = f"/v1/experts/{path_part(name)}/files/{path_part(path.name)}"
        with self._http.stream("GET", url) as response, path.open("xb") as file:
            for piece in response.iter_bytes(CHUNK_BYTES):
                kept = piece[: left + 1]
                file.write(kept)
                digest.update(kept)
                left -= len(kept)
                if left < 0:
                    break
        return digest.hexdigest()


def _read_manifest(name: str, path: Path) -> list[FileEntry]:
    try:
        files = Manifest.model_validate_json(path.read_bytes()).files
    except ValidationError as exc:
        raise ArtifactError(f"{name}: this release cannot read its manifest; use a newer zhub. {exc}") from exc
    for entry in files:
        if Path(entry.name).name != entry.name or entry.name == MANIFEST_FILE:
            raise ArtifactError(f"{name}: its manifest names a file '{entry.name}', which cannot lie beside it.")
    return files


def _check(key: str, expected: str, actual: str) -> None:
    if expected != actual:
        raise DigestMismatchError(key, expected=expected, actual=actual)


def _holds(directory: Path, digest: str) -> bool:
    manifest = directory / MANIFEST_FILE
    if not manifest.is_file() or sha256_file(manifest) != digest:
        return False
    files = _read_manifest(str(directory), manifest)
    return all((path := directory / f.name).is_file() and sha256_file(path) == f.sha256 for f in files)


def _chat_body(
    model: str,
    message: str,
    mixture: Mapping[str, float] | None,
    temperature: float | None,
    max_tokens: int | None,
) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": message}],
        "experts": [{"model": name, "weight": weight} for name, weight in (mixture or {}).items()],
        "temperature": temperature,
        "max_completion_tokens": max_tokens,
    }


def _piece(answer: Mapping[str, Any], text: str) -> ChatPiece:
    return ChatPiece(
        text,
        [ChosenExpert.model_validate(chosen) for chosen in answer["experts"]],
        Routing.model_validate(answer["routing"]),
        answer["choices"][0]["finish_reason"],
    )


def _kind(path: Path) -> str:
    return "a directory" if path.is_dir() else "nothing"
