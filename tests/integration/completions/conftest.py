"""A project that stores completions, in front of a serving that says what a test wants it to say."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from scripted_serving import Listener, scripted
from storing import Storing

from zhub.generation import Line
from zhub.process.config import Settings

Ask = Callable[..., Any]


@pytest.fixture
def script() -> list[Line | str]:
    """What serving answers with."""
    return []


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def settings(
    settings: Settings, run_server: Callable[[FastAPI], str], script: list[Line | str], listener: Listener
) -> Settings:
    serving = scripted(script, [], listener=listener)
    return settings.model_copy(update={"serving_url": run_server(serving).removesuffix("/v1")})


@pytest.fixture
def change_settings(ask: Ask) -> Ask:
    """POST /v1/stored_completions/settings."""
    return lambda **changes: ask("post", "/stored_completions/settings", changes)


@pytest.fixture
def storing(
    client: openai.OpenAI,
    script: list[Line | str],
    until: Callable[..., Any],
    change_settings: Ask,
    make_base_model: Ask,
) -> Storing:
    make_base_model()
    change_settings(enabled=True)
    return Storing(client, script, until)
