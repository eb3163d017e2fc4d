"""Chat through the API, as far as it goes without serving."""

import time
from collections.abc import Callable

import openai
import pytest
from api_requests import refused

Client = openai.OpenAI


@pytest.mark.parametrize("stream", [False, True])
def test_chat_while_serving_is_away_fails_soon_and_says_so(client: Client, checked_file: str, stream: bool) -> None:
    began = time.monotonic()
    error = refused(
        lambda: client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "1 + 1 ="}], stream=stream
        )
    )
    assert error.status_code == 503 and "Serving does not answer" in error.message
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("model", ["nothing", "main.summer@v9", "other.summer@v1", "main.summer", "auto:nothing"])
def test_chat_with_a_model_that_is_not_there_is_refused(
    client: Client, publish: Callable[..., str], model: str
) -> None:
    publish()
    error = refused(lambda: client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}]))
    assert (error.status_code, error.code) == (404, "not_found")


def test_chat_accepts_fields_that_only_steer_other_servers(client: Client, checked_file: str) -> None:
    error = refused(
        lambda: client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            service_tier="auto",
            user="u",
            extra_body={"no_such_field": 1},
        )
    )
    assert error.status_code == 503  # understood; only serving is missing
