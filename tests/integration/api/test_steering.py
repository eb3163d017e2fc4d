"""``experts`` in the body of a chat request: weights and layers, what is refused, and what serving is asked for."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused
from fastapi import FastAPI
from scripted_serving import scripted

from zhub.generation import Ended, GenerationRequest, Started
from zhub.process.config import Settings

Client = openai.OpenAI


@pytest.fixture
def asked() -> list[bytes]:
    """What serving was asked."""
    return []


@pytest.fixture
def settings(settings: Settings, run_server: Callable[[FastAPI], str], asked: list[bytes]) -> Settings:
    started = Started(strategy="mixture", experts=[], reason="", prompt_tokens=1)
    serving = scripted([started, Ended(finish_reason="stop", completion_tokens=0)], asked)
    return settings.model_copy(update={"serving_url": run_server(serving).removesuffix("/v1")})


def ask(client: Client, *experts: dict[str, Any]) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    client.chat.completions.create(model="tiny", messages=messages, extra_body={"experts": list(experts)})


def test_serving_is_asked_for_the_weights_and_layers_of_each_part(
    client: Client, publish: Callable[..., str], asked: list[bytes]
) -> None:
    publish()
    name = "main.summer@v1"
    ask(
        client,
        {"model": name, "weight": -4, "layers": [3, "0-1", 3]},
        {"model": name, "weight": 0.5, "layers": ["2"]},
        {"model": name},
    )
    experts = GenerationRequest.model_validate_json(asked[0]).experts
    assert [(part.weight, part.layers) for part in experts] == [(-4, [0, 1, 3]), (0.5, [2]), (1, None)]


@pytest.mark.parametrize("weight", [4.5, -5, 1e300])
def test_a_weight_out_of_bounds_is_refused_with_the_reason(client: Client, checked_file: str, weight: float) -> None:
    error = refused(lambda: ask(client, {"model": "main.summer@v1"}, {"model": "main.summer@v1", "weight": weight}))
    assert (error.status_code, error.param) == (400, "experts.1.weight")
    assert "give -4 to 4" in error.message and "outgrows the base" in error.message


@pytest.mark.parametrize("layers", [["7-3"], [-1], ["0-"], ["all"], ["0-10000"], [99999], [""], ["1,2"]])
def test_layers_that_are_none_are_refused_by_name(client: Client, checked_file: str, layers: list[Any]) -> None:
    error = refused(lambda: ask(client, {"model": "main.summer@v1", "layers": layers}))
    assert (error.status_code, error.param) == (400, "experts.0.layers")
    assert f"'{layers[0]}' names no layers" in error.message


def test_no_layers_at_all_are_refused_with_what_to_give_instead(client: Client, checked_file: str) -> None:
    error = refused(lambda: ask(client, {"model": "main.summer@v1", "layers": []}))
    assert (error.status_code, error.param) == (400, "experts.0.layers")
    assert "give the weight 0" in error.message
