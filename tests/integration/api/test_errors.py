"""The envelope of every error."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import CREATE, JSON, raw, refused
from sqlalchemy import Engine, text

Client = openai.OpenAI
MakeKey = Callable[..., str]


def with_seed(seed: str) -> bytes:
    return b'{"model": "tiny", "training_file": "file-0", "seed": %s}' % seed.encode()


def with_method(inside: str) -> bytes:
    return b'{"model": "tiny", "training_file": "file-0", "method": {"type": "x", "x": %s}}' % inside.encode()


def with_answer(text: str) -> bytes:
    asked = '"messages": [{"role": "user", "content": "x"}], "score": 1'
    return f'{{"model": "main.summer@v1", {asked}, "completion": "{text}"}}'.encode()


BAD_REQUESTS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "unknown route": (404, "GET", "/v1/nothing", {}),
    "wrong method": (405, "DELETE", "/v1/models", {}),
    "no body": (400, "POST", CREATE, {}),
    "not JSON": (400, "POST", CREATE, {"content": b"{", "headers": JSON}),
    "not UTF-8": (400, "POST", CREATE, {"content": b'{"model": "\xff"}', "headers": JSON}),
    "a list": (400, "POST", CREATE, {"content": b"[]", "headers": JSON}),
    "deeply nested": (400, "POST", CREATE, {"content": b"[" * 100_000, "headers": JSON}),
    "deeply nested value": (400, "POST", CREATE, {"content": with_method("[" * 400 + "]" * 400), "headers": JSON}),
    "huge number": (400, "POST", CREATE, {"content": with_seed("1" * 5000), "headers": JSON}),
    "half a character": (400, "POST", CREATE, {"content": with_method('{"a": "\\ud800"}'), "headers": JSON}),
    "half a character in feedback": (400, "POST", "/v1/feedback", {"content": with_answer("\\ud800"), "headers": JSON}),
    "form instead of JSON": (400, "POST", CREATE, {"data": {"model": "tiny"}}),
    "no file": (400, "POST", "/v1/files", {"data": {"purpose": "fine-tune"}}),
    "file that is text": (400, "POST", "/v1/files", {"data": {"purpose": "fine-tune", "file": "x"}}),
    "unknown purpose": (400, "POST", "/v1/files", {"data": {"purpose": "batch"}, "files": {"file": b"x"}}),
    "broken multipart": (
        400,
        "POST",
        "/v1/files",
        {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=y"}},
    ),
    "NUL in a name of a model": (400, "GET", "/v1/models/%00", {}),
    "NUL in a name of a base model": (400, "GET", "/v1/base_models/%00", {}),
    "NUL in an expert": (404, "GET", "/v1/experts/%00", {}),
    "NUL in a file id": (404, "GET", "/v1/files/file-%00", {}),
    "NUL in a purpose": (400, "GET", "/v1/files?purpose=%00", {}),
    "not UTF-8 in a path": (404, "GET", "/v1/models/%ff", {}),
    "limit of nothing": (400, "GET", "/v1/files?limit=0", {}),
    "limit in words": (400, "GET", "/v1/files?limit=ten", {}),
    "limit too high": (400, "GET", "/v1/fine_tuning/jobs?limit=101", {}),
    "unknown order": (400, "GET", "/v1/files?order=random", {}),
    "after nothing known": (404, "GET", "/v1/files?after=file-1", {}),
    "after another kind": (404, "GET", f"/v1/files?after=ftjob-{'0' * 32}", {}),
    "chat without messages": (400, "POST", "/v1/chat/completions", {"json": {"model": "tiny", "messages": []}}),
    "chat with a NUL": (
        400,
        "POST",
        "/v1/chat/completions",
        {"json": {"model": "\0", "messages": [{"role": "user", "content": "x"}]}},
    ),
    "pickled weights": (400, "PUT", "/v1/base_models/new/files/pytorch_model.bin", {"content": b"x"}),
    "file of no base model": (404, "PUT", "/v1/base_models/new/files/config.json", {"content": b"{}"}),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_every_bad_request_is_answered_in_the_dialects_envelope(api_url: str, make_key: MakeKey, what: str) -> None:
    status, method, path, options = BAD_REQUESTS[what]
    response = raw(api_url, make_key(), method, path, **options)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert error["message"] and error["type"] and error["code"]
    assert response.headers["x-request-id"]


def test_a_body_that_is_no_json_is_nobodys_parameter(api_url: str, make_key: MakeKey) -> None:
    response = raw(api_url, make_key(), "POST", CREATE, content=b'{"a": nonsense}', headers=JSON)
    assert response.json()["error"]["param"] is None


def test_an_error_carries_its_request_id_into_the_client(client: Client) -> None:
    error = refused(lambda: client.files.retrieve("file-1"))
    assert error.request_id and error.request_id.startswith("req_")


def test_a_request_id_of_the_callers_is_kept(api_url: str, make_key: MakeKey) -> None:
    response = raw(api_url, make_key(), "GET", "/v1/models", headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"


@pytest.fixture
def broken_database(owner_engine: Engine) -> None:
    with owner_engine.begin() as connection:
        connection.execute(text("ALTER TABLE datasets RENAME TO gone"))
        connection.execute(text("ALTER TABLE dataset_versions RENAME TO gone_too"))


def test_an_unexpected_failure_tells_its_user_nothing_of_its_inside(client: Client, broken_database: None) -> None:
    error = refused(lambda: client.files.list())
    assert (error.status_code, error.code) == (500, "internal_error")
    assert "dataset" not in error.message and "SELECT" not in error.message


def test_an_unexpected_failure_has_a_request_id(client: Client, broken_database: None) -> None:
    assert refused(lambda: client.files.list()).request_id
