"""Experts, evaluations of them, and feedback on their answers."""

import builtins
import hashlib
import itertools
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from zhub.answering import SigningKey
from zhub.attestation import ATTESTATION_FILE
from zhub.client.transport import Http, path_part, wait
from zhub.client.wire.experts import (
    AnswerPairRecord,
    ChangeRecord,
    EvaluationRecord,
    ExpertRecord,
    ExpertVersion,
    FeedbackRecord,
    LineageRecord,
    NeedRecord,
    VerificationRecord,
    VersionComparison,
)
from zhub.client.wire.strengths import ExpertStrengths
from zhub.errors import (
    ApiError,
    ArtifactError,
    ConflictError,
    DigestMismatchError,
    InvalidRequestError,
)
from zhub.manifest import (
    ANSWERS_FILE,
    CHUNK_BYTES,
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    canonical_json,
    sha256_file,
)

MAX_MANIFEST_BYTES = 16 << 20
MAX_PAGE = 100


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
        cluster: str | None = None,
    ) -> EvaluationRecord:
        """Measure a model, its base and ``compare_with``; what was measured on this suite before is not run again.

        ``cluster``: which workers do it, where there are several kinds.
        """
        body: dict[str, Any] = {"model": model, "file": file, "grader": grader, "compare_with": list(compare_with)}
        settings = {"max_new_tokens": max_new_tokens, "k": k, "temperature": temperature, "seed": seed}
        body |= {name: value for name, value in (settings | {"cluster": cluster}).items() if value is not None}
        return EvaluationRecord.model_validate(self._http.post("/v1/evaluations", body))

    def get(self, evaluation_id: str) -> EvaluationRecord:
        return EvaluationRecord.model_validate(self._http.get(f"/v1/evaluations/{path_part(evaluation_id)}"))

    def list(
        self,
        *,
        most: int | None = None,
        status: Sequence[str] | None = None,
        model: str | None = None,
        since: int | None = None,
        search: str | None = None,
        order: str | None = None,
    ) -> list[EvaluationRecord]:
        """The project's evaluations, at most so many: newest first, unless ``order`` is ``asc``."""
        wanted = {"status": status, "model": model, "since": since, "search": search, "order": order}
        entries = self._http.pages("/v1/evaluations", limit=100, most=most, **wanted)
        return [EvaluationRecord.model_validate(entry) for entry in entries]

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
        deadline = time.monotonic() + timeout_s
        while not (evaluation := self.get(evaluation_id)).settled:
            wait(self._poll_s, deadline, f"{evaluation_id} had not ended within {timeout_s:g} s")
        return evaluation


class Experts:
    """Expert versions."""

    def __init__(self, http: "Http") -> None:
        self._http = http

    def list(
        self,
        *,
        search: str | None = None,
        base: str | None = None,
        tags: Sequence[str] = (),
        alias: str | None = None,
        archived: bool = False,
        sort: Literal["newest", "name", "score"] = "newest",
        limit: int | None = None,
    ) -> builtins.list[ExpertVersion]:
        """The project's versions: those of these, and at most ``limit``.

        ``search`` is a part of an expert's name or of a description; each of ``tags`` is a key, or ``key=value``.
        Archived versions are left out unless ``archived``.
        """
        asked = {"search": search, "base": base, "alias": alias, "tag": [*tags] or None, "archived": archived or None}
        asked["sort"] = sort if sort != "newest" else None
        # What is not asked for is not sent: a server of the release before refuses parameters that it does not know.
        params: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        entries = self._http.pages("/v1/experts", limit=min(limit or MAX_PAGE, MAX_PAGE), **params)
        return [ExpertVersion.model_validate(entry) for entry in itertools.islice(entries, limit)]

    def get(self, name: str) -> ExpertVersion:
        """The version ``<project>.<expert>@v<number>``, or the one that ``<project>.<expert>@<alias>`` points to."""
        if "@" not in name:
            raise InvalidRequestError(f"'{name}' names no version of an expert: write {name}@v1.")
        return ExpertVersion.model_validate(self._http.get(_path(name)))

    def get_expert(self, name: str) -> ExpertRecord:
        """The expert ``<project>.<expert>``."""
        return ExpertRecord.model_validate(self._http.get(_path(name)))

    def strengths(self, name: str, *, against: str | None = None) -> ExpertStrengths:
        """How much a version changes of each layer and matrix, what is like it, and how it differs from ``against``."""
        return ExpertStrengths.model_validate(self._http.get(f"{_path(name)}/z", against=against))

    def compare(self, name: str, against: str) -> VersionComparison:
        """How two versions differ: in how they were made, in what they get on suites, in what they change."""
        return VersionComparison.model_validate(self._http.get(f"{_path(name)}/comparisons/{path_part(against)}"))

    def lineage(self, subject: str) -> LineageRecord:
        """What a version, or a file by its id, comes from, and what came of it."""
        return LineageRecord.model_validate(self._http.get(f"/v1/lineage/{path_part(subject)}"))

    def verify(self, name: str) -> VerificationRecord:
        """Have the server verify a version's signature and files, and mark on it what is wrong."""
        return VerificationRecord.model_validate(self._http.post(f"{_path(name)}/verify", {}))

    def signing_keys(self) -> builtins.list[SigningKey]:
        """The organisation's public keys, the one in use first."""
        return [SigningKey.model_validate(entry) for entry in self._http.get("/v1/signing_keys")["data"]]

    def rotate_signing_key(self) -> SigningKey:
        return SigningKey.model_validate(self._http.post("/v1/signing_keys/rotate", {}))

    def answers(self, name: str) -> Iterator[AnswerPairRecord]:
        """What base and version answered to the test rows, then to the general suite; see ``has_answers``.

        Of each, what was lost comes first, then what was gained, then the rest.
        """
        with self._http.stream("GET", f"{_path(name)}/files/{ANSWERS_FILE}") as response:
            for line in response.iter_lines():
                yield AnswerPairRecord.model_validate_json(line)

    def change(self, subject: str, /, **fields: Any) -> ExpertVersion | ExpertRecord:
        """Change ``description``, ``tags`` (a tag that is None is removed), ``archived``, or an expert's ``name``."""
        answer = self._http.patch(_path(subject), fields)
        return (ExpertVersion if "@" in subject else ExpertRecord).model_validate(answer)

    def set_state(self, name: str, state: str, **said: Any) -> ExpertVersion:
        """Deprecate or yank a version, or take that back (``ready``); with ``reason``, ``successor``, ``detach``."""
        body = {"state": state} | {key: value for key, value in said.items() if value is not None}
        return ExpertVersion.model_validate(self._http.put(f"{_path(name)}/state", body))

    def needs(self, name: str, *, action: Literal["delete", "yank"] = "delete") -> builtins.list[NeedRecord]:
        """What needs a version, or an expert, and is in the way of deleting or yanking it."""
        entries = self._http.get(f"{_path(name)}/needs", action=action)["data"]
        return [NeedRecord.model_validate(entry) for entry in entries]

    def delete(self, name: str, *, detach: bool = False) -> None:
        """Delete a version, or an expert with all its versions. ``detach``: what needs it is detached first."""
        self._http.delete(_path(name), detach=detach or None)

    def changes(self, name: str) -> Iterator[ChangeRecord]:
        """Who changed what of an expert and its versions, or of one version, newest first."""
        entries = self._http.pages(f"{_path(name)}/changes", limit=MAX_PAGE)
        return (ChangeRecord.model_validate(entry) for entry in entries)

    def pull(self, name: str, directory: Path) -> ExpertVersion:
        """Download a version's files into a new directory, every byte checked against the version's digest.

        A directory that holds the version already is left as it is.

        Raises:
            DigestMismatchError: bytes that are not the version's; nothing is left behind.
            ConflictError: the directory holds something else, or is none.
            InvalidRequestError: no directory can be made there.
        """
        version = self.get(name)
        if directory.exists() and not directory.is_dir():
            raise ConflictError(f"{directory} is a file. Choose a directory that does not exist yet.")
        if directory.is_dir() and any(directory.iterdir()):
            if _holds(directory, version.digest):
                return version
            raise ConflictError(f"{directory} is not empty. Remove it, or choose another directory.")
        unfinished = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
        try:
            unfinished.mkdir(parents=True)
        except OSError as exc:
            raise InvalidRequestError(f"{directory}: no directory can be made there: {exc.strerror}.") from exc
        try:
            manifest_path = unfinished / MANIFEST_FILE
            digest = self._download(name, manifest_path, limit_bytes=MAX_MANIFEST_BYTES)
            _check(f"{name}/{MANIFEST_FILE}", version.digest, digest)
            for entry in _read_manifest(name, manifest_path):
                digest = self._download(name, unfinished / entry.name, limit_bytes=entry.size_bytes)
                _check(f"{name}/{entry.name}", entry.sha256, digest)
            self._download_attestation(name, unfinished / ATTESTATION_FILE)
            unfinished.rename(directory)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return version

    def _download_attestation(self, name: str, path: Path) -> None:
        """The signed statement beside the files, with which they are verified offline; none of one not signed yet."""
        try:
            path.write_bytes(canonical_json(self._http.get(f"{_path(name)}/attestation")))
        except ApiError as exc:
            if exc.status not in (404, 409):  # a server of the release before has no such route
                raise

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


def _path(name: str) -> str:
    return f"/v1/experts/{path_part(name)}"


class Feedback:
    """Scores of experts' answers, given by those who use them."""

    def __init__(self, http: "Http") -> None:
        self._http = http

    def create(
        self,
        *,
        model: str,
        messages: Sequence[Mapping[str, str]],
        completion: str,
        score: float,
        reference: str | None = None,
        comment: str | None = None,
    ) -> FeedbackRecord:
        """Score an answer of a version, with ``score`` in [-1, 1]. An alias means the version that it points to now."""
        body = {"model": model, "messages": list(messages), "completion": completion, "score": score}
        body |= {"reference": reference, "comment": comment}
        return FeedbackRecord.model_validate(self._http.post("/v1/feedback", body))

    def list(
        self,
        model: str | None = None,
        *,
        most: int | None = None,
        min_score: float | None = None,
        max_score: float | None = None,
        since: int | None = None,
        search: str | None = None,
        order: str | None = None,
    ) -> Iterator[FeedbackRecord]:
        """The project's feedback, fetched page by page: all, or only that on an expert or a version."""
        wanted = {"min_score": min_score, "max_score": max_score, "since": since, "search": search, "order": order}
        entries = self._http.pages("/v1/feedback", limit=100, most=most, model=model, **wanted)
        return (FeedbackRecord.model_validate(entry) for entry in entries)

    def delete(self, feedback_id: str) -> None:
        self._http.delete(f"/v1/feedback/{path_part(feedback_id)}")


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
