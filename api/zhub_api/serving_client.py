"""The API's side of serving: from a model's name to a request that a replica can compute, and the lines it answers."""

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import ValidationError
from sqlalchemy.orm import Session

from zhub.answering import SharedExpert, Strategy
from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError, TooManyAtOnceError, UnavailableError, ZhubError
from zhub.generation import (
    AFFINITY_HEADER,
    EMBEDDED,
    LINE,
    MAX_UNANSWERED,
    EmbeddingRequest,
    Embeddings,
    Ended,
    Failed,
    GenerationRequest,
    Started,
    Text,
    ToolCall,
)
from zhub.process.shares import Shares
from zhub.registry import base_models, shadows, sharing
from zhub.registry import resolve as version_resolve
from zhub.registry.references import answering
from zhub.registry.versions import VersionRecord
from zhub.specs import BaseModelSource
from zhub.tenancy.keys import Caller
from zhub.tenancy.token_usage import Tokens
from zhub_api.context import Context
from zhub_api.grant_watch import GrantWatch, while_usable
from zhub_api.metering import Meter
from zhub_api.observed import CHAT_FIRST_TOKEN_SECONDS, CHAT_REQUESTS, CHAT_TOKEN_SECONDS, CHAT_TOKENS
from zhub_api.shadowing import Shadow

# What a replica may refuse because of the request itself; anything else is the platform's fault.
CALLERS_FAULT = ("invalid_request", "context_length_exceeded", "non_finite_logits", "unsupported_parameter")
# Until the first token: a replica may first have to fetch and load the base model.
FIRST_LINE_TIMEOUT_S = 300.0
TIMEOUT = httpx.Timeout(FIRST_LINE_TIMEOUT_S, connect=5)

AnswerLine = Started | Text | ToolCall | Ended


def resolve(
    context: Context,
    caller: Caller,
    model: str,
    mixture: Sequence[version_resolve.MixturePart] = (),
    *,
    strategy: Strategy | None = None,
    requester: str | None = None,
    request_id: str | None = None,
    **asked: Any,
) -> tuple[GenerationRequest, Shadow | None]:
    """What serving is asked, once the caller's model (``mixture``: experts and their weights) has been looked up; and
    what a shadow is, if one gets the request ``request_id``.

    ``strategy`` and ``requester``: see ``zhub.registry.resolve``. ``asked`` are the other fields of the request; one
    that is None is as serving has it by itself.

    Raises:
        InvalidRequestError: the names do not go together.
        NotFoundError, NotReadyError, ConflictError: a model is missing or not usable yet.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        resolved = version_resolve.resolve(session, caller, model, mixture, strategy=strategy, requester=requester)
        request = _request(caller, resolved, asked | {"shared": _shared(session, caller, resolved)})
        if request_id is None or resolved.alias is None or resolved.release is None:
            return request, None
        drawn = shadows.drawn(session, caller.project_id, resolved.alias, resolved.release, request_id)
        if drawn is None:
            return request, None
        trial_id, record = drawn
        try:
            tried = _request(caller, version_resolve.resolve(session, caller, record.name, ()), asked)
        except ZhubError:
            # The live request knows nothing of it: its base may just be decomposed, or may have failed to be.
            shadows.record(session, trial_id, [], failed=1, left_out=0)
            return request, None
        return request, Shadow(trial_id, caller.org_id, tried)


def _request(caller: Caller, resolved: version_resolve.ResolvedModel, asked: Mapping[str, Any]) -> GenerationRequest:
    basis = (base_models.require_ready if resolved.experts else base_models.basis_of)(resolved.base)
    return GenerationRequest(
        base=BaseModelSource.model_validate(resolved.base.source),
        basis=basis,
        org_id=str(caller.org_id),
        **dict(answering(resolved)),
        **{name: value for name, value in asked.items() if value is not None},
    )


def _shared(session: Session, caller: Caller, resolved: version_resolve.ResolvedModel) -> list[SharedExpert] | None:
    """Those who answer that are of another organisation; None where there are none."""
    records = [part.record for part in resolved.experts if isinstance(part.record, VersionRecord)]
    foreign = [record for record in records if record.organization is not None]
    if not foreign:
        return None
    user = sharing.organization_name(session, caller)
    return [
        SharedExpert(name=record.name, owner_org_id=record.expert.org_id, version_id=record.version.id, user=user)
        for record in foreign
    ]


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


@dataclass(frozen=True)
class Serving:
    """The Serve app, as the API reaches it.

    Attributes:
        places: how many unanswered requests an organisation has here.
        meter: told of the tokens of every answer.
        watch: told of every answer by an expert of another organisation.
    """

    client: httpx.AsyncClient
    places: Shares
    meter: Meter
    watch: GrantWatch


async def generate(serving: Serving, caller: Caller, asked: GenerationRequest) -> AsyncGenerator[AnswerLine]:
    """The Serve app's lines: Started first, and Ended for each of the answers that are asked for.

    Until then the caller's organisation has one place less; what it has come to by then is metered.

    Raises:
        InvalidRequestError: the replica refuses the request.
        GrantEndedError: the right to an expert of another organisation ended meanwhile.
        TooManyAtOnceError: the organisation has as many unanswered requests here, or at the replica, as it may.
        UnavailableError: serving is away, or failed, or the answer broke off.
    """
    answers_left = asked.n
    pace = _Pace()
    began = False
    try:
        async with _answering(serving, caller, asked) as lines:
            async for text in lines:
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
    finally:
        if pace.started is not None:
            experts = [expert.name for expert in pace.started.experts]
            serving.meter.note(caller, asked.base.name, experts, pace.tokens(), asked.shared)
    raise UnavailableError("The model's replica went away in the middle of the answer; try again.")


@asynccontextmanager
async def _answering(serving: Serving, caller: Caller, asked: GenerationRequest) -> AsyncGenerator[AsyncIterator[str]]:
    """The lines of a replica's answer under way, and a place for as long as it is."""
    with serving.places.place(caller.org_id):
        async with serving.client.stream("POST", "/generate", **_sent(asked)) as response:
            if response.status_code != 200:
                await response.aread()
                raise _refused(response)
            if not asked.shared:
                yield response.aiter_lines()
                return
            with serving.watch.watching(caller, asked.shared) as watched:
                async with aclosing(while_usable(response.aiter_lines(), watched)) as usable:
                    yield usable


class _Pace:
    """Tells the metrics how a request is answered, and how many tokens it came to."""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._first_at: float | None = None
        self._cached_tokens = 0
        self._completion: Counter[int] = Counter()  # by answer; of one under way, what is known of it
        self.started: Started | None = None

    def note(self, line: AnswerLine) -> None:
        now = time.monotonic()
        if isinstance(line, Started):
            self.started = line
            CHAT_REQUESTS.labels(line.strategy).inc()
            CHAT_TOKENS.labels("prompt").inc(line.prompt_tokens)
            return
        if self._first_at is None:
            self._first_at = now
            CHAT_FIRST_TOKEN_SECONDS.observe(now - self._asked_at)
        self._completion[line.index] += line.count if isinstance(line, Text) else 1  # a call has a token at least
        if isinstance(line, Ended):
            self._completion[line.index] = line.completion_tokens
            CHAT_TOKENS.labels("completion").inc(line.completion_tokens)
            # Of several answers the first may read what the others find.
            CHAT_TOKENS.labels("cached").inc(max(0, line.cached_tokens - self._cached_tokens))
            self._cached_tokens = max(self._cached_tokens, line.cached_tokens)
            if line.completion_tokens > 1:
                CHAT_TOKEN_SECONDS.observe((now - self._first_at) / (line.completion_tokens - 1))

    def tokens(self) -> Tokens:
        """What the request has come to."""
        prompt = 0 if self.started is None else self.started.prompt_tokens
        return Tokens(1, prompt, self._cached_tokens, self._completion.total())


async def embed(serving: Serving, caller: Caller, asked: EmbeddingRequest) -> Embeddings:
    """The embeddings of texts, by the Serve app.

    Raises:
        InvalidRequestError: the replica refuses the request.
        TooManyAtOnceError, UnavailableError: as ``generate``.
    """
    try:
        with serving.places.place(caller.org_id):
            response = await serving.client.post("/embed", **_sent(asked))
        if response.status_code != 200:
            raise _refused(response)
        embedded = EMBEDDED.validate_json(response.content)
    except httpx.HTTPError as exc:
        raise _away(serving, exc) from exc
    except ValidationError as exc:
        raise UnavailableError("Serving answered with something that is no embedding; try again.") from exc
    if isinstance(embedded, Failed):
        raise _as_error(embedded)
    CHAT_TOKENS.labels("prompt").inc(embedded.prompt_tokens)
    serving.meter.note(caller, asked.base.name, [], Tokens(requests=1, prompt=embedded.prompt_tokens))
    return embedded


def _sent(asked: GenerationRequest | EmbeddingRequest) -> dict[str, Any]:
    return {
        "content": asked.model_dump_json(),
        "headers": {AFFINITY_HEADER: asked.affinity},
        "timeout": TIMEOUT,
    }


def _refused(response: httpx.Response) -> Exception:
    if response.status_code == 429:
        return TooManyAtOnceError("unanswered requests", MAX_UNANSWERED)
    return UnavailableError(f"Serving answered {response.status_code}: {response.text[:200]}")


def _away(serving: Serving, exc: httpx.HTTPError) -> UnavailableError:
    at = serving.client.base_url
    return UnavailableError(
        f"Serving does not answer at {at} ({type(exc).__name__}). It may still be starting; try again."
    )


def _as_error(failed: Failed) -> Exception:
    if failed.code in CALLERS_FAULT:
        return InvalidRequestError(failed.message, code=failed.code, param=failed.param)
    return UnavailableError(failed.message)
