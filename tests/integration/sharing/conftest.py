"""An organisation with an expert, another one, and a serving that says what a test wants it to say."""

from collections.abc import Callable

import openai
import pytest
from fastapi import FastAPI
from scripted_serving import Listener, Script, scripted
from sharing_requests import SHARED

from zhub.answering import ChosenExpert
from zhub.generation import Ended, Started, Text
from zhub.process.config import Settings
from zhub_api import grant_watch, metering
from zhub_api.app import create_app


@pytest.fixture
def script() -> Script:
    chosen = ChosenExpert(name=f"{SHARED}@v1", digest="d", weight=1.0)
    started = Started(strategy="expert", experts=[chosen], reason="by name", prompt_tokens=10)
    return [started, Text(text="a"), Ended(finish_reason="stop", completion_tokens=5)]


@pytest.fixture
def asked() -> list[bytes]:
    return []


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def settings(
    settings: Settings,
    run_server: Callable[[FastAPI], str],
    script: Script,
    asked: list[bytes],
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """The API before a scripted serving; what is used is added at once, and rights are looked at all the time."""
    monkeypatch.setattr(metering, "FLUSH_S", 0.01)
    monkeypatch.setattr(grant_watch, "POLL_S", 0.02)
    monkeypatch.setattr(grant_watch, "LOOK_S", 0.01)
    url = run_server(scripted(script, asked, listener=listener)).removesuffix("/v1")
    return settings.model_copy(update={"serving_url": url})


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The application, whose connections its server closes at its end: until then it asks for rights all the time."""
    return create_app(settings)


@pytest.fixture
def globex(open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str]) -> openai.OpenAI:
    """Another organisation."""
    return open_client(make_key("globex"))


@pytest.fixture
def version(publish_version: Callable[..., str]) -> str:
    return publish_version("summer")
