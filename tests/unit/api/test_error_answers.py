"""Errors whose messages quote what no answer can hold, and failures in the middle of an answer."""

import json
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from zhub.errors import ConflictError
from zhub_api import errors, observed


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    errors.install(app)
    app.add_middleware(observed.Observed)

    @app.get("/conflict")
    def conflict() -> None:
        raise ConflictError("The name '\ud800' is taken.")

    @app.get("/bug")
    def bug() -> None:
        raise RuntimeError("\ud800")

    @app.get("/middle")
    def middle() -> StreamingResponse:
        def pieces() -> Iterator[str]:
            yield "whole? "
            raise RuntimeError

        return StreamingResponse(pieces())

    with TestClient(app) as made:
        yield made


def test_an_error_that_quotes_half_of_a_surrogate_pair_is_answered(client: TestClient) -> None:
    answer = client.get("/conflict")
    assert answer.status_code == 409
    assert json.loads(answer.content)["error"]["message"] == "The name '\ud800' is taken."


def test_an_unexpected_failure_is_answered_within_the_application(client: TestClient) -> None:
    # The test client raises what leaves the application; a server closes the connection on it.
    answer = client.get("/bug")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"]


def test_a_failure_in_the_middle_of_an_answer_leaves_the_application(client: TestClient) -> None:
    with pytest.raises(RuntimeError):
        client.get("/middle")
