"""The API's side of serving: from a model's name to a request that a replica can compute, and the lines it answers."""

from collections.abc import AsyncGenerator, Sequence

import httpx
from pydantic import ValidationError

from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError, UnavailableError
from zhub.generation import LINE, Ended, ExpertReference, Failed, GenerationRequest, Started, Text
from zhub.manifest import ROUTING_FILE, Z_FILE, Manifest
from zhub.registry import base_models, versions
from zhub.registry import resolve as version_resolve
from zhub.specs import BaseModelSource
from zhub.tenancy.keys import Caller
from zhub_api.context import Context
from zhub_api.observed import CHAT_TOKENS

# What a replica may refuse because of the request itself; anything else is the platform's fault.
CALLERS_FAULT = ("invalid_request", "context_length_exceeded", "non_finite_logits")
# Until the first token: a replica may first have to fetch and load the base model.
FIRST_LINE_TIMEOUT_S = 300.0


def resolve(
    context: Context,
    caller: Caller,
    model: str,
    messages: list[dict[str, str]],
    *,
    mixture: Sequence[version_resolve.MixturePart] = (),
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: Sequence[str] = (),
) -> GenerationRequest:
    """What serving is asked, once the caller's model (``mixture``: experts and their weights) has been looked up.

    Raises:
        InvalidRequestError: the names do not go together.
        NotFoundError, NotReadyError, ConflictError: a model is missing or not usable yet.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        resolved = version_resolve.resolve(session, caller, model, mixture)
        basis = (base_models.require_ready if resolved.experts else base_models.basis_of)(resolved.base)
        base = BaseModelSource.model_validate(resolved.base.source)
        experts = [
            _reference(part.record, part.weight).model_copy(update={"layers": part.layers and list(part.layers)})
            for part in resolved.experts
        ]
        candidates = (
            None if resolved.candidates is None else [_reference(record, 1.0) for record in resolved.candidates]
        )
        others = [_reference(record, 1.0) for record in resolved.others]
    return GenerationRequest(
        base=base,
        basis=basis,
        messages=messages,
        experts=experts,
        candidates=candidates,
        others=others,
        max_new_tokens=max_new_tokens,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
        stop=list(stop),
    )


async def generate(serving: httpx.AsyncClient, asked: GenerationRequest) -> AsyncGenerator[Started | Text | Ended]:
    """The Serve app's lines, of which the last is Ended.

    Raises:
        InvalidRequestError: the replica refuses the request.
        UnavailableError: serving is away, or failed, or the answer broke off.
    """
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
                if isinstance(line, Ended):
                    CHAT_TOKENS.labels("completion").inc(line.completion_tokens)
                    yield line
                    return
                if isinstance(line, Started):
                    CHAT_TOKENS.labels("prompt").inc(line.prompt_tokens)
                yield line
    except httpx.HTTPError as exc:
        raise UnavailableError(
            f"Serving does not answer at {serving.base_url} ({type(exc).__name__}). "
            "It may still be starting; try again."
        ) from exc
    except ValidationError as exc:
        raise UnavailableError("Serving answered with something that is no line of an answer; try again.") from exc
    raise UnavailableError("The model's replica went away in the middle of the answer; try again.")


def _as_error(failed: Failed) -> Exception:
    if failed.code in CALLERS_FAULT:
        return InvalidRequestError(failed.message, code=failed.code)
    return UnavailableError(failed.message)


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
