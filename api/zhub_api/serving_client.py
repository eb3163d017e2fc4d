"""The API's side of serving: from a model's name to a request that a replica can compute, and the lines it answers."""

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
from pydantic import ValidationError

from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError, UnavailableError
from zhub.generation import (
    EMBEDDED,
    LINE,
    Classifier,
    EmbeddingRequest,
    Embeddings,
    Ended,
    ExpertReference,
    Failed,
    GenerationRequest,
    Label,
    Started,
    Strategy,
    Text,
    ToolCall,
)
from zhub.manifest import ROUTING_FILE, Z_FILE, Manifest
from zhub.registry import base_models, versions
from zhub.registry import resolve as version_resolve
from zhub.specs import BaseModelSource
from zhub.tenancy.keys import Caller
from zhub_api.context import Context
from zhub_api.observed import CHAT_FIRST_TOKEN_SECONDS, CHAT_REQUESTS, CHAT_TOKEN_SECONDS, CHAT_TOKENS

# What a replica may refuse because of the request itself; anything else is the platform's fault.
CALLERS_FAULT = ("invalid_request", "context_length_exceeded", "non_finite_logits", "unsupported_parameter")
# Until the first token: a replica may first have to fetch and load the base model.
FIRST_LINE_TIMEOUT_S = 300.0

AnswerLine = Started | Text | ToolCall | Ended


def resolve(
    context: Context,
    caller: Caller,
    model: str,
    mixture: Sequence[version_resolve.MixturePart] = (),
    *,
    strategy: Strategy | None = None,
    requester: str | None = None,
    **asked: Any,
) -> GenerationRequest:
    """What serving is asked, once the caller's model (``mixture``: experts and their weights) has been looked up.

    ``strategy`` and ``requester``: see ``zhub.registry.resolve``. ``asked`` are the other fields of the request; one
    that is None is as serving has it by itself.

    Raises:
        InvalidRequestError: the names do not go together.
        NotFoundError, NotReadyError, ConflictError: a model is missing or not usable yet.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        resolved = version_resolve.resolve(session, caller, model, mixture, strategy=strategy, requester=requester)
        basis = (base_models.require_ready if resolved.experts else base_models.basis_of)(resolved.base)
        base = BaseModelSource.model_validate(resolved.base.source)
        experts = [_part(part) for part in resolved.experts]
        candidates = None if resolved.candidates is None else [_part(part) for part in resolved.candidates]
        others = [_reference(record, 1.0) for record in resolved.others]
        classifier = None if resolved.classifier is None else _classifier(resolved.classifier, resolved.candidates)
    return GenerationRequest(
        base=base,
        basis=basis,
        org_id=str(caller.org_id),
        experts=experts,
        candidates=candidates,
        others=others,
        router=resolved.router,
        classifier=classifier,
        release=resolved.release.name if resolved.release else None,
        **{name: value for name, value in asked.items() if value is not None},
    )


def resolve_base(context: Context, caller: Caller, model: str) -> BaseModelSource:
    """The base model of this name.

    Raises:
        InvalidRequestError: the name is that of something else.
        NotFoundError, NotReadyError, ConflictError: it is missing or not usable yet.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        resolved = version_resolve.resolve(session, caller, model, ())
        base_models.basis_of(resolved.base)
        if resolved.experts or resolved.candidates is not None:
            raise InvalidRequestError(
                f"Embeddings are those of a base model, and '{model}' is none: give '{resolved.base.name}', its own.",
                param="model",
            )
        return BaseModelSource.model_validate(resolved.base.source)


async def generate(serving: httpx.AsyncClient, asked: GenerationRequest) -> AsyncGenerator[AnswerLine]:
    """The Serve app's lines: Started first, and Ended for each of the answers that are asked for.

    Raises:
        InvalidRequestError: the replica refuses the request.
        UnavailableError: serving is away, or failed, or the answer broke off.
    """
    answers_left = asked.n
    pace = _Pace()
    began = False
    try:
        async with serving.stream(
            "POST", "/generate", content=asked.model_dump_json(), timeout=httpx.Timeout(FIRST_LINE_TIMEOUT_S, connect=5)
        ) as response:
            if response.status_code != 200:
                await response.aread()
                raise UnavailableError(f"Serving answered {response.status_code}: {response.text[:200]}")
            async for text in response.aiter_lines():
                line = LINE.validate_json(text)
                if isinstance(line, Failed):
                    raise _as_error(line)
                pace.note(line)
                began = True
                yield line
                if isinstance(line, Ended):
                    answers_left -= 1
                    if not answers_left:
                        return
    except httpx.HTTPError as exc:
        if began:
            raise UnavailableError(
                f"Serving does not answer any more ({type(exc).__name__}): the model's replica went away in the middle "
                "of the answer; try again."
            ) from exc
        raise _away(serving, exc) from exc
    except ValidationError as exc:
        raise UnavailableError("Serving answered with something that is no line of an answer; try again.") from exc
    raise UnavailableError("The model's replica went away in the middle of the answer; try again.")


class _Pace:
    """Tells the metrics how a request is answered."""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._first_at: float | None = None
        self._cached_tokens = 0

    def note(self, line: AnswerLine) -> None:
        now = time.monotonic()
        if isinstance(line, Started):
            CHAT_REQUESTS.labels(line.strategy).inc()
            CHAT_TOKENS.labels("prompt").inc(line.prompt_tokens)
            return
        if self._first_at is None:
            self._first_at = now
            CHAT_FIRST_TOKEN_SECONDS.observe(now - self._asked_at)
        if isinstance(line, Ended):
            CHAT_TOKENS.labels("completion").inc(line.completion_tokens)
            # Of several answers the first may read what the others find.
            CHAT_TOKENS.labels("cached").inc(max(0, line.cached_tokens - self._cached_tokens))
            self._cached_tokens = max(self._cached_tokens, line.cached_tokens)
            if line.completion_tokens > 1:
                CHAT_TOKEN_SECONDS.observe((now - self._first_at) / (line.completion_tokens - 1))


async def embed(serving: httpx.AsyncClient, asked: EmbeddingRequest) -> Embeddings:
    """The embeddings of texts, by the Serve app.

    Raises:
        InvalidRequestError: the replica refuses the request.
        UnavailableError: serving is away, or failed.
    """
    timeout = httpx.Timeout(FIRST_LINE_TIMEOUT_S, connect=5)
    try:
        response = await serving.post("/embed", content=asked.model_dump_json(), timeout=timeout)
        if response.status_code != 200:
            raise UnavailableError(f"Serving answered {response.status_code}: {response.text[:200]}")
        embedded = EMBEDDED.validate_json(response.content)
    except httpx.HTTPError as exc:
        raise _away(serving, exc) from exc
    except ValidationError as exc:
        raise UnavailableError("Serving answered with something that is no embedding; try again.") from exc
    if isinstance(embedded, Failed):
        raise _as_error(embedded)
    CHAT_TOKENS.labels("prompt").inc(embedded.prompt_tokens)
    return embedded


def _away(serving: httpx.AsyncClient, exc: httpx.HTTPError) -> UnavailableError:
    return UnavailableError(
        f"Serving does not answer at {serving.base_url} ({type(exc).__name__}). It may still be starting; try again."
    )


def _as_error(failed: Failed) -> Exception:
    if failed.code in CALLERS_FAULT:
        return InvalidRequestError(failed.message, code=failed.code, param=failed.param)
    return UnavailableError(failed.message)


def _part(part: version_resolve.WeightedVersion) -> ExpertReference:
    layers = None if part.layers is None else list(part.layers)
    more = {"layers": layers, "description": part.description}
    return _reference(part.record, part.weight).model_copy(update=more)


def _classifier(
    classifier: version_resolve.ResolvedClassifier, candidates: Sequence[version_resolve.WeightedVersion] | None
) -> Classifier:
    """A label stands for an expert: it is answered by the version of it that the release pins, whichever that is."""
    pinned = {part.record.expert.id: part.record.name for part in candidates or ()}
    labels = [Label(label=known.label, candidate=pinned.get(known.expert_id)) for known in classifier.labels]
    return Classifier(expert=_reference(classifier.record, 1.0), labels=labels)


def _reference(record: versions.VersionRecord | versions.CheckpointRecord, weight: float) -> ExpertReference:
    if isinstance(record, versions.CheckpointRecord):
        checkpoint = record.checkpoint
        return ExpertReference(
            name=record.name,
            digest=checkpoint.digest,
            z_key=f"{checkpoint.key_prefix}/{checkpoint.z['name']}",
            z_sha256=checkpoint.z["sha256"],
            # Never read: only what may be routed to has prompts of its own, and a checkpoint may not.
            routing_key="",
            routing_sha256="",
            weight=weight,
        )
    version = record.version
    manifest = Manifest.model_validate(version.manifest)
    return ExpertReference(
        name=record.name,
        digest=version.digest,
        z_key=f"{version.key_prefix}/{Z_FILE}",
        z_sha256=manifest.file(Z_FILE).sha256,
        # Never read where there is none: such a version is no candidate.
        routing_key=f"{version.key_prefix}/{ROUTING_FILE}" if manifest.routing else "",
        routing_sha256=manifest.routing.sha256 if manifest.routing else "",
        weight=weight,
    )
