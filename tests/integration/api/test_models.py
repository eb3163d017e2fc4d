"""Models through the API."""

from collections.abc import Callable

import openai

Client = openai.OpenAI


def test_models_lists_experts_newest_first_then_bases_then_the_router(
    client: Client, publish: Callable[..., str]
) -> None:
    made = [publish("a"), publish("b"), publish("a")]
    assert made[2] == "main.a@v2"
    assert [model.id for model in client.models.list()] == [*made[::-1], "tiny", "auto"]
