"""An organisation has so many answers under way at a time; the next is refused, and told when to come again."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from scripted_serving import WAITING, Listener, scripted

from zhub.generation import MAX_UNANSWERED, Embeddings, Started
from zhub.process.config import Settings

STARTED = Started(strategy="base", experts=[], reason="by name", prompt_tokens=3)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
ROUTES = {
    "chat/completions": CHAT,
    "completions": {"model": "tiny", "prompt": "x"},
    "embeddings": {"model": "tiny", "input": "x"},
}


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def clients_of(
    serve: Callable[[Settings], str],
    settings: Settings,
    run_server: Callable[[FastAPI], str],
    make_key: Callable[..., str],
    checked_file: str,
) -> Iterator[Callable[[FastAPI], dict[str, httpx.Client]]]:
    """Run the API before a serving, with room for one answer of each organisation; return a client of each."""
    keys = {name: make_key(name) for name in ("acme", "umbrella")}
    with ExitStack() as stack:

        def run(serving: FastAPI) -> dict[str, httpx.Client]:
            url = run_server(serving).removesuffix("/v1")
            api = serve(settings.model_copy(update={"serving_url": url, "answers_per_org": 1}))
            return {name: stack.enter_context(client(api, key)) for name, key in keys.items()}

        yield run


def client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def is_refused_for_a_while(answer: httpx.Response) -> bool:
    error = answer.json()["error"]
    return (answer.status_code, error["code"], answer.headers["retry-after"]) == (429, "too_many_at_once", "1")


def test_beyond_its_share_of_answers_an_organisation_is_told_to_come_again_and_others_are_answered(
    clients_of: Callable[[FastAPI], dict[str, httpx.Client]], listener: Listener
) -> None:
    embedded = [Embeddings(vectors=[[1.0]], prompt_tokens=1)]
    clients = clients_of(scripted([STARTED, WAITING], [], embedded, listener))
    with clients["acme"].stream("POST", "chat/completions", json=CHAT | {"stream": True}) as held:
        assert held.status_code == 200
        for path, body in ROUTES.items():
            assert is_refused_for_a_while(clients["acme"].post(path, json=body)), path
        assert clients["umbrella"].post("embeddings", json=ROUTES["embeddings"]).status_code == 200
        assert "zhub_chat_unanswered_requests 1.0" in clients["acme"].get("../metrics").text
    assert listener.left.wait(30)


@pytest.mark.parametrize("path", ROUTES)
def test_what_a_replica_refuses_for_its_organisation_is_refused_for_a_while(
    clients_of: Callable[[FastAPI], dict[str, httpx.Client]], path: str
) -> None:
    serving = FastAPI()
    for route in ("/generate", "/embed"):
        serving.add_api_route(route, lambda: PlainTextResponse("too many", 429), methods=["POST"])
    refused = clients_of(serving)["acme"].post(path, json=ROUTES[path])
    assert is_refused_for_a_while(refused)
    assert f"has {MAX_UNANSWERED} unanswered requests" in refused.json()["error"]["message"]
