"""Chat through the API, as far as it goes without serving."""

import time
from collections.abc import Callable
from typing import Annotated

import openai
import pytest
from api_requests import refused
from fastapi import FastAPI, Header, Response
from pydantic import SecretStr

from zhub.process.config import Settings

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
    assert (error.status_code, error.code) == (404, "model_not_found")


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


def test_the_api_shows_serving_the_platforms_token(
    settings: Settings,
    serve: Callable[[Settings], str],
    run_server: Callable[[FastAPI], str],
    checked_file: str,
    make_key: Callable[..., str],
) -> None:
    seen = []
    serving = FastAPI()

    @serving.post("/generate")
    def generate(authorization: Annotated[str, Header()]) -> Response:
        seen.append(authorization)
        return Response(status_code=401)

    changed = {"serving_url": run_server(serving).removesuffix("/v1"), "serving_token": SecretStr("t" * 32)}
    url = serve(settings.model_copy(update=changed))
    with openai.OpenAI(base_url=url, api_key=make_key(), max_retries=0) as client:
        error = refused(
            lambda: client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "1"}])
        )
    assert seen == [f"Bearer {'t' * 32}"]
    assert error.status_code == 503
