"""Models, experts and base models through the API: the lists, page by page."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from zhub.client import Client as ZhubClient

Client = openai.OpenAI
Publish = Callable[..., str]


class TwoByTwo(httpx.HTTPTransport):
    """Asks for pages of two, whatever its client asks for."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_set_param("limit", "2")
        return super().handle_request(request)


def pages(client: Client, path: str) -> Iterator[list[str]]:
    """The ids on each page of two."""
    after = ""
    while True:
        page: Any = client.get(f"{path}?limit=2{after}", cast_to=object)
        yield [entry["id"] for entry in page["data"]]
        if not page["has_more"]:
            return
        after = f"&after={page['last_id']}"


def test_models_lists_experts_newest_first_then_bases_then_the_router(client: Client, publish: Publish) -> None:
    made = [publish("a"), publish("b"), publish("a")]
    assert made[2] == "main.a@v2"
    assert [model.id for model in client.models.list()] == [*made[::-1], "tiny", "auto"]


def test_the_first_page_of_models_has_the_bases_and_the_router_and_the_next_the_older_versions(
    client: Client, publish: Publish
) -> None:
    made = [publish("a") for _ in range(3)][::-1]
    assert list(pages(client, "/models")) == [[*made[:2], "tiny", "auto"], made[2:]]


def test_experts_are_listed_newest_first_page_by_page(client: Client, publish: Publish) -> None:
    made = [publish(expert) for expert in ("a", "b", "a", "b", "a")][::-1]
    assert list(pages(client, "/experts")) == [made[:2], made[2:4], made[4:]]


def test_base_models_are_listed_by_name_page_by_page(client: Client, make_base_model: Callable[..., uuid.UUID]) -> None:
    for name in ("c", "a", "b"):
        make_base_model(name)
    assert list(pages(client, "/base_models")) == [["a", "b"], ["c"]]


@pytest.mark.parametrize("path", ["/experts", "/models"])
def test_a_page_after_a_version_that_is_not_there_is_refused(client: Client, path: str) -> None:
    with pytest.raises(openai.NotFoundError, match="main.none@v1"):
        client.get(f"{path}?after=main.none@v1", cast_to=object)


def test_zhubs_own_client_follows_the_pages(
    api_url: str, make_key: Callable[..., str], make_base_model: Callable[..., uuid.UUID], publish: Publish
) -> None:
    made = [publish("a") for _ in range(3)][::-1]
    for name in ("x", "y"):
        make_base_model(name)
    with ZhubClient(api_url.removesuffix("/v1"), make_key(), transport=TwoByTwo()) as client:
        assert [version.id for version in client.experts.list()] == made
        assert [base.id for base in client.base_models.list()] == ["tiny", "x", "y"]
        assert [model.id for model in client.models()] == [*made[:2], "tiny", "x", "y", "auto", made[2]]
