"""Every parameter that the dialect's client can send is done, harmless, or refused by its name."""

import inspect
import io
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import raw, refused
from fastapi import FastAPI
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions
from openai.resources.embeddings import Embeddings
from openai.resources.files import Files
from openai.resources.fine_tuning.jobs import Jobs
from pydantic import BaseModel as Schema
from suites import METHOD

from zhub_api.chat_parameters import CHAT, COMPLETIONS, EMBEDDINGS, Parameters
from zhub_api.routes.chat import ChatRequest
from zhub_api.routes.completions import CompletionRequest
from zhub_api.routes.embeddings import EmbeddingsRequest

Client = openai.OpenAI
OF_THE_CLIENT_ITSELF = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
MESSAGES: Any = [{"role": "user", "content": "x"}]
CALLS: dict[str, tuple[Parameters, Callable[..., Any], type[Schema], dict[str, Any]]] = {
    "chat/completions": (CHAT, ChatCompletions.create, ChatRequest, {"messages": MESSAGES}),
    "completions": (COMPLETIONS, Completions.create, CompletionRequest, {"prompt": "x"}),
    "embeddings": (EMBEDDINGS, Embeddings.create, EmbeddingsRequest, {"input": "x"}),
}
VALUES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 3,
    "dimensions": 64,
    "echo": True,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "suffix": "end",
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
}


def parameters(call: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(call).parameters) - OF_THE_CLIENT_ITSELF


def chat(client: Client, **options: Any) -> openai.APIStatusError:
    """The error of a request for chat: without serving, 503 says that it was understood."""
    return refused(lambda: client.chat.completions.create(model="tiny", messages=MESSAGES, **options))


def post(api_url: str, key: str, path: str, **more: Any) -> tuple[int, str | None, str]:
    """Status, ``param`` and ``code`` of a request: without serving, 503 says that it was understood."""
    answer = raw(api_url, key, "POST", f"/v1/{path}", json={"model": "tiny", **CALLS[path][3], **more})
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


@pytest.mark.parametrize("path", CALLS)
def test_the_table_has_every_parameter_of_the_call_and_each_once(path: str) -> None:
    of, call, request, _ = CALLS[path]
    table = [*of.done, *of.harmless, *of.refused]
    assert len(table) == len(set(table)) and set(table) == parameters(call)
    assert set(of.done) <= set(request.model_fields)


@pytest.mark.parametrize("path", CALLS)
def test_every_parameter_is_done_harmless_or_refused_by_its_name(
    path: str, checked_file: str, api_url: str, make_key: Callable[..., str], subtests: pytest.Subtests
) -> None:
    key, of = make_key(), CALLS[path][0]
    for name in (*of.harmless, *of.refused):
        with subtests.test(parameter=name):
            answer = post(api_url, key, path, **{name: VALUES[name]})
            if name in of.harmless:
                assert answer[0] == 503
            else:
                assert answer == (400, name, "unsupported_parameter")


@pytest.mark.parametrize("path", CALLS)
def test_values_that_ask_for_what_is_done_anyway_are_accepted(
    path: str, checked_file: str, api_url: str, make_key: Callable[..., str], subtests: pytest.Subtests
) -> None:
    key = make_key()
    for name, neutral in CALLS[path][0].refused.items():
        for value in (None, *neutral):
            with subtests.test(parameter=name, value=value):
                assert post(api_url, key, path, **{name: value})[0] == 503


@pytest.mark.parametrize("body", [{"guided_json": {}}, {"top_k": 5}])
def test_what_changes_an_answer_elsewhere_is_refused_too(client: Client, body: dict[str, Any]) -> None:
    assert chat(client, extra_body=body).code == "unsupported_parameter"


@pytest.mark.parametrize("body", [{"frequency_penalty": False}, {"logprobs": 0}])
def test_a_switch_is_no_number_and_a_number_no_switch(client: Client, body: dict[str, Any]) -> None:
    error = chat(client, extra_body=body)
    assert (error.status_code, error.param) == (400, next(iter(body)))


@pytest.mark.parametrize("field", ["tool_calls", "name", "audio", "refusal"])
def test_a_field_of_a_message_that_would_be_lost_is_refused(client: Client, field: str) -> None:
    messages: Any = [*MESSAGES, {"role": "assistant", "content": "y", field: "z"}, *MESSAGES]
    error = refused(lambda: client.chat.completions.create(model="tiny", messages=messages))
    assert (error.status_code, error.param) == (400, f"messages.1.{field}")


def test_every_parameter_of_a_job_is_done_or_refused_by_its_name(client: Client, train: Callable[..., Any]) -> None:
    done = {"model": "tiny", "metadata": {"team": "a"}, "method": METHOD, "seed": 3, "suffix": "winter"}
    files = {"training_file", "validation_file"}
    refused_ones = {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}], "hyperparameters": {"n_epochs": 1}}
    assert {*done, *files, *refused_ones} == parameters(Jobs.create)
    for name, value in refused_ones.items():  # hyper-parameters stand within the method
        error = refused(lambda name=name, value=value: train(**{name: value}))  # type: ignore[misc]
        assert (error.status_code, error.param) == (400, name)
    job = train(**done)
    suffix: Any = job.model_dump()["suffix"]
    assert (job.metadata, job.seed, suffix) == ({"team": "a"}, 3, "winter")
    assert refused(lambda: train(extra_body={"no_such": 1})).param == "no_such"


def test_every_parameter_of_a_list_of_jobs_is_done(client: Client, train: Callable[..., Any]) -> None:
    assert parameters(Jobs.list) == {"after", "limit", "metadata"}
    jobs = [train(suffix=f"e{n}", **({"metadata": {"team": "a", "n": str(n)}} if n else {})) for n in range(3)]

    def ids(**options: Any) -> list[str]:
        return [job.id for job in client.fine_tuning.jobs.list(**options)]

    assert ids(metadata={"team": "a"}) == [jobs[2].id, jobs[1].id]
    assert ids(metadata={"team": "a", "n": "1"}) == [jobs[1].id]
    assert ids(metadata={"team": "b"}) == []
    assert ids(extra_query={"metadata": "null"}) == [jobs[0].id]
    assert ids(after=jobs[1].id) == [jobs[0].id]
    assert len(client.fine_tuning.jobs.list(limit=2).data) == 2


def test_every_parameter_of_a_file_is_done_or_refused_by_its_name(client: Client) -> None:
    assert parameters(Files.create) == {"file", "purpose", "expires_after"}
    file = ("rows.jsonl", io.BytesIO(b"{}"))
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    error = refused(lambda: client.files.create(file=file, purpose="fine-tune", expires_after=expires))
    assert (error.status_code, error.code) == (400, "unknown_parameter")
    assert error.param is not None and error.param.startswith("expires_after")
    assert client.files.list().data == []


def test_no_route_ignores_a_query_parameter_that_it_does_not_have(
    app: FastAPI, api_url: str, make_key: Callable[..., str], subtests: pytest.Subtests
) -> None:
    key = make_key()
    routes = [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]
    for method, path in routes:
        if path.startswith("/v1/"):
            with subtests.test(route=f"{method} {path}"):
                answer = raw(api_url, key, method, path.replace("{", "").replace("}", "") + "?no_such=1")
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "no_such")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/models", "/v1/experts", "/v1/base_models"])
def test_a_filter_that_a_list_does_not_have_is_refused(api_url: str, make_key: Callable[..., str], path: str) -> None:
    answer = raw(api_url, make_key(), "GET", f"{path}?status=failed")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "status", "unknown_parameter")


def test_without_a_key_nothing_is_told_of_parameters(api_url: str) -> None:
    assert raw(api_url, None, "GET", "/v1/files?status=failed").status_code == 401
