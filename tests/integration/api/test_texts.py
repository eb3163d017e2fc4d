"""Texts that are no Unicode and names of more than one line, in every field of every request."""

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from api_requests import JSON
from fastapi import FastAPI
from request_texts import filled, parameters, text_fields
from sqlalchemy import Engine, text

from zhub_api.text import NAMES, OPEN_OBJECTS


@pytest.fixture
def http_client(api_url: str, make_key: Callable[..., str]) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {make_key()}"}
    with httpx.Client(base_url=api_url.removesuffix("/v1"), headers=headers, timeout=20) as client:
        yield client


def test_half_of_a_surrogate_pair_is_refused_in_every_field(app: FastAPI, http_client: httpx.Client) -> None:
    fields = text_fields(app.openapi())
    assert len(fields) > 70
    for field in fields:
        for half in ("\ud800", "a\udfffb", "\udc00\ud800"):
            body = json.dumps(field.body(half))
            answer = http_client.request(field.method, filled(field.route), content=body, headers=JSON)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, ".".join(map(str, field.path))), field
            assert "surrogate" in error["message"]


def test_a_key_of_an_object_is_a_text_too(http_client: httpx.Client) -> None:
    body = json.dumps({"metadata": {"\ud800": "x"}})
    answer = http_client.post("/v1/fine_tuning/jobs", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")


def test_a_whole_pair_is_a_character(http_client: httpx.Client) -> None:
    body = json.dumps({"model": "\U0001f600", "messages": [{"role": "user", "content": "\U0001f600"}]})
    answer = http_client.post("/v1/chat/completions", content=body, headers=JSON)
    assert answer.status_code == 404 and "\U0001f600" in answer.json()["error"]["message"]


def test_no_bytes_in_a_path_or_a_query_break_a_route(app: FastAPI, http_client: httpx.Client) -> None:
    for method, route, where, name in parameters(app.openapi()):
        for value in ("%ED%A0%80", "%FF", "%00", "%0D%0A", "%E2%80%A8"):
            path = filled(route, **{name: value}) if where == "path" else f"{filled(route)}?{name}={value}"
            answer = http_client.request(method, path)
            assert answer.status_code < 500, (method, path, answer.text)


@pytest.mark.parametrize("control", ["\r\n", "\n", "\x00", "\x1b[2J", "\x85", "\u2028"])
def test_a_name_of_more_than_one_line_is_refused(app: FastAPI, http_client: httpx.Client, control: str) -> None:
    fields = [
        field
        for field in text_fields(app.openapi())
        if [part for part in field.path if part != 0][-1] in NAMES and OPEN_OBJECTS.isdisjoint(map(str, field.path))
    ]
    assert len(fields) > 30
    for field in fields:
        body = json.dumps(field.body(f"a{control}b"))
        answer = http_client.request(field.method, filled(field.route), content=body, headers=JSON)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, ".".join(map(str, field.path))), field
        assert "control characters" in error["message"] and control not in error["message"]


@pytest.mark.parametrize("path", ["/v1/base_models/new/files/a%0D%0Ab.json", "/v1/base_models/a%0Ab/files/config.json"])
def test_a_file_of_a_base_model_has_a_name_of_one_line(http_client: httpx.Client, path: str) -> None:
    answer = http_client.put(path, content=b"{}")
    assert answer.status_code == 400 and "control characters" in answer.json()["error"]["message"]


def test_an_uploaded_file_has_a_name_of_one_line(http_client: httpx.Client) -> None:
    body = (
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="a\x0bb.jsonl"\r\n\r\n{}\r\n--x--\r\n'
    )
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = http_client.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 400, answer.text


def test_texts_that_are_no_names_may_have_lines(http_client: httpx.Client) -> None:
    grader: Any = {"type": "string_check", "name": "s", "operation": "eq", "input": "{{sample.output_text}}"}
    body = {"grader": grader | {"reference": "a\nb"}, "model_sample": "a\nb", "item": {"name": "a\r\nb"}}
    answer = http_client.post("/v1/fine_tuning/alpha/graders/run", json=body)
    assert answer.status_code == 200 and answer.json()["reward"] == 1


def test_a_connection_goes_on_after_an_unexpected_failure(
    api_url: str, make_key: Callable[..., str], owner_engine: Engine
) -> None:
    with owner_engine.begin() as connection:
        connection.execute(text("ALTER TABLE dataset_versions RENAME TO gone"))
    headers = {"authorization": f"Bearer {make_key()}"}
    link = http.client.HTTPConnection(httpx.URL(api_url).host, httpx.URL(api_url).port, timeout=20)
    try:
        for path, status in [("/v1/files", 500), ("/v1/models", 200), ("/v1/files", 500), ("/healthz", 200)]:
            link.request("GET", path, headers=headers)
            answer = link.getresponse()
            content = answer.read()
            assert answer.status == status, content
            assert answer.getheader("x-request-id")
    finally:
        link.close()
