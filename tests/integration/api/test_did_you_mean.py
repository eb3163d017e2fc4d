"""A name that is not there is answered with the one that may have been meant, and never with another tenant's."""

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused, upload
from suites import GRADER, METHOD

from zhub.client import Client as ZhubClient
from zhub.errors import NotFoundError

Ask = Callable[..., Any]
SUITE = {"grader": GRADER}
TRAINING = {"model": "tiny", "method": METHOD, "suffix": "other"}


@pytest.fixture
def known(ask: Ask, client: openai.OpenAI, publish: Callable[..., str], checked_file: str) -> str:
    """An expert, an alias of it, a base model, a dataset and a schedule; the id of the dataset's file."""
    publish("sorting")
    version = publish("sorting")
    ask("put", "/experts/main.sorting/aliases/prod", {"version": version})
    ask("post", "/schedules", {"name": "weekly", "dataset": "sums", "training": TRAINING, "cron": "0 3 * * 1"})
    return checked_file


def chat(model: str) -> tuple[str, str, Any]:
    return "post", "/chat/completions", {"model": model, "messages": [{"role": "user", "content": "x"}]}


NEAREST = [
    (chat("main.sortin@v2"), "main.sorting@v2"),
    (chat("sorting@v2"), "main.sorting@v2"),
    (chat("main.sorting@v3"), "main.sorting@v2"),
    (chat("main.sorting@prd"), "main.sorting@prod"),
    (chat("main.sorting"), "main.sorting@v2"),
    (chat("tinny"), "tiny"),
    (chat("autoo"), "auto"),
    (chat("auto:tinny"), "tiny"),
    (("get", "/models/main.sroting@v1", None), "main.sorting@v1"),
    (("get", "/experts/main.sortng@v1", None), "main.sorting@v1"),
    (("get", "/experts/main.sortng", None), "main.sorting"),
    (("get", "/experts/main.sorting/aliases/prdo", None), "prod"),
    (("get", "/base_models/tiiny", None), "tiny"),
    (("delete", "/models/main.sortin@v1", None), "main.sorting@v1"),
    (("post", "/promotions", {"model": "main.sortin@v1", "suites": [{"file": "f", **SUITE}]}), "main.sorting@v1"),
    (("post", "/evaluations", {"model": "tniy", "file": "FILE", **SUITE}), "tiny"),
    (("post", "/fine_tuning/jobs", {"model": "tinny", "training_file": "FILE", "method": METHOD}), "tiny"),
    (("post", "/fine_tuning/jobs", {"model": "main.sort@v1", "training_file": "FILE", "method": METHOD}),
     "main.sorting@v1"),
    (("post", "/schedules", {"name": "w", "dataset": "sum", "training": TRAINING, "cron": "0 3 * * 1"}), "sums"),
    (("post", "/fine_tuning/alpha/graders/validate", {"grader": GRADER | {"type": "string_chek"}}), "string_check"),
]  # fmt: skip


def test_the_nearest_name_is_suggested(ask: Ask, known: str, subtests: pytest.Subtests) -> None:
    for (method, path, body), meant in NEAREST:
        with subtests.test(method=method, path=path, body=body):
            if body is not None:
                body = {name: known if value == "FILE" else value for name, value in body.items()}
            assert f"Did you mean '{meant}'?" in str(refused(partial(ask, method, path, body)))


def test_nothing_is_suggested_where_nothing_is_near(ask: Ask, known: str) -> None:
    assert "Did you mean" not in str(refused(lambda: ask(*chat("gpt-4o-mini-2024"))))


def test_no_name_of_another_tenant_or_project_is_suggested(
    known: str,
    open_client: Callable[..., openai.OpenAI],
    make_key: Callable[..., str],
    make_base_model: Callable[..., uuid.UUID],
    system_engine: Any,
) -> None:
    for organization, project in (("globex", "main"), ("acme", "elsewhere")):
        stranger = open_client(make_key(organization, project))
        upload(stranger, "other.jsonl")
        for path in ("/models/main.sortin@v1", "/experts/main.sortin", "/experts/main.sorting/aliases/prdo"):
            error = str(refused(partial(stranger.get, path, cast_to=object)))
            assert "Did you mean" not in error and "@prod" not in error
        body = {"name": "w", "dataset": "sum", "training": TRAINING, "cron": "0 3 * * 1"}
        error = str(refused(partial(stranger.post, "/schedules", cast_to=object, body=body)))
        assert "Did you mean" not in error


def test_a_private_base_model_of_another_tenant_is_not_suggested(
    known: str, open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str]
) -> None:
    open_client(make_key("globex")).post("/base_models", cast_to=object, body={"name": "secret", "private": True})
    error = str(refused(lambda: open_client(make_key()).models.retrieve("secrett")))
    assert "Did you mean" not in error and "secret'" not in error.replace("'secrett'", "")


def test_a_schedule_is_suggested_by_zhubs_own_client(known: str, api_url: str, make_key: Callable[..., str]) -> None:
    with ZhubClient(api_url.removesuffix("/v1"), make_key()) as client:
        assert client.schedules.find("weekly").name == "weekly"
        with pytest.raises(NotFoundError, match=r"'weakly'\. Did you mean 'weekly'\? There are weekly\."):
            client.schedules.find("weakly")
