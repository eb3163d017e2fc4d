"""Receivers of webhooks and what they answer, a client's endpoints for them, and what became of deliveries."""

import uuid
from collections.abc import Sequence
from typing import Any, Final

import openai
from sqlalchemy import Engine, select

from zhub.database.sessions import system_session
from zhub.models import WebhookEndpoint
from zhub.webhooks.safe_http import Outcome

Client = openai.OpenAI
SUCCEEDED: Final = "fine_tuning.job.succeeded"
OK = Outcome(204, None, 0.01)
DOWN = Outcome(503, None, 0.01)


def endpoint_of(engine: Engine, endpoint_id: uuid.UUID) -> WebhookEndpoint:
    with system_session(engine) as session:
        return session.scalars(select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id)).one()


def refusal(retry_after: str | None, status: int = 429) -> Outcome:
    """An answer that asks to be left alone for a while."""
    return Outcome(status, None, 0.01, retry_after)


class Receivers:
    """Receivers of this machine: each path answers as it is told to, or hangs."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: dict[str, int] = {}
        self.retry_after: bytes | None = None
        self.hanging: set[str] = set()
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["path"], headers, body))
        if scope["path"] in self.hanging:
            await receive()  # until the client goes away
            return
        status, asked = self.statuses.get(scope["path"], 204), self.retry_after
        given = [(b"retry-after", asked)] if asked is not None else []
        await send({"type": "http.response.start", "status": status, "headers": given})
        await send({"type": "http.response.body", "body": b""})


def add(client: Client, url: str, event_types: Sequence[str] = (SUCCEEDED,)) -> Any:
    """Add an endpoint, as its owner does."""
    return client.webhooks.create(name="test", url=url, event_types=list(event_types))  # type: ignore[arg-type]


def deliveries_of(client: Client, endpoint_id: str) -> list[dict[str, Any]]:
    answer: Any = client.get(f"/webhook_endpoints/{endpoint_id}/deliveries", cast_to=object)
    return list(answer["data"])
