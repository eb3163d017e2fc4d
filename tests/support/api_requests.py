"""Requests to the API, with the unmodified client and without it, and the errors that they are answered with."""

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from suites import GRADER, sums

Client = openai.OpenAI
ROWS = sums(20)
JSON = {"content-type": "application/json"}
CREATE = "/v1/fine_tuning/jobs"


def upload(client: Client, name: str = "sums.jsonl", content: bytes = ROWS) -> Any:
    return client.files.create(file=(name, io.BytesIO(content)), purpose="fine-tune")


def refused(call: Callable[[], Any]) -> openai.APIStatusError:
    """The error that the call is answered with."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    return caught.value


def reinforcement(**parts: Any) -> dict[str, Any]:
    """A method with the grader of these tests, where ``parts`` name no other."""
    return {"type": "reinforcement", "reinforcement": {"grader": GRADER} | parts}


def raw(api_url: str, key: str | None, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request without the client: the answer as it is, whatever its status."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(timeout=20) as http:
        return http.request(
            method, api_url.removesuffix("/v1") + path, headers=headers | options.pop("headers", {}), **options
        )


def refused_with(status: int, message: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Make a call that the API must refuse with this status and a message that matches."""
    error = refused(partial(call, *args, **options))
    assert error.status_code == status, error.message
    assert re.search(message, error.message), error.message
