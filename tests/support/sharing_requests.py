"""Requests of two organisations, of which one shares its expert ``main.summer`` with the other."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import openai

Ask = Callable[..., Any]
EXPERT, SHARED = "main.summer", "acme.main.summer"
MESSAGES: Any = [{"role": "user", "content": "x"}]


def asking(client: openai.OpenAI) -> Ask:
    def send(method: str, path: str, body: Any = None) -> Any:
        return getattr(client, method)(path, cast_to=object, **({"body": body} if body is not None else {}))

    return send


def give(ask: Ask, permission: str = "use", expert: str = EXPERT, **more: Any) -> str:
    body = {"expert": expert, "organization": "globex", "permission": permission, **more}
    return str(ask("post", "/grants", body)["id"])


def searched(ask: Ask, q: str = "") -> list[str]:
    return [entry["id"] for entry in ask("get", f"/catalogue?{urlencode({'q': q})}")["data"]]


def chat(client: openai.OpenAI, model: str = f"{SHARED}@v1", **options: Any) -> Any:
    return client.chat.completions.create(model=model, messages=MESSAGES, **options)
