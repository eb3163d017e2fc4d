"""Readiness of the API, also while its database is away."""

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from api_requests import raw
from fastapi import FastAPI, Response
from sqlalchemy import Engine

from zhub.embedded.postgres import Urls
from zhub.process.config import Settings


def test_readiness_says_who_is_there(api_url: str, system_engine: Engine, make_agent: Callable[..., uuid.UUID]) -> None:
    make_agent()
    expected = {"status": "ok", "scheduler": False, "agents": 1, "serving": False}
    assert raw(api_url, None, "GET", "/readyz").json() == expected


@pytest.mark.parametrize("status", [200, 503])
def test_readiness_says_whether_serving_answers(
    settings: Settings, serve: Callable[..., str], run_server: Callable[[FastAPI], str], status: int
) -> None:
    serving = FastAPI()
    serving.get("/")(lambda: Response(status_code=status))
    url = serve(settings.model_copy(update={"serving_url": run_server(serving).removesuffix("/v1")}))
    answer = raw(url, None, "GET", "/readyz")
    assert (answer.status_code, answer.json()["serving"]) == (200, status == 200)


def test_readiness_fails_while_the_database_is_away(
    settings: Settings, database: Urls, proxy: Any, serve: Callable[..., str]
) -> None:
    url = serve(settings.model_copy(update={"database_url": proxy.url(database.api)}))
    proxy.cut()
    response = raw(url, None, "GET", "/readyz")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")


def test_the_api_answers_again_when_the_database_is_back(
    settings: Settings, database: Urls, proxy: Any, serve: Callable[..., str], until: Callable[..., Any]
) -> None:
    url = serve(settings.model_copy(update={"database_url": proxy.url(database.api)}))
    proxy.cut()
    assert raw(url, None, "GET", "/readyz").status_code == 503
    proxy.mend()
    until(lambda: raw(url, None, "GET", "/readyz").status_code == 200)


def test_a_serving_that_hangs_keeps_no_probe_of_readiness_waiting(
    settings: Settings, serve: Callable[..., str], run_server: Callable[[FastAPI], str], until: Callable[..., Any]
) -> None:
    serving, hangs = FastAPI(), threading.Event()

    @serving.get("/")
    def answer() -> None:
        if hangs.is_set():
            over.wait(20)

    over = threading.Event()
    url = serve(settings.model_copy(update={"serving_url": run_server(serving).removesuffix("/v1")}))
    assert raw(url, None, "GET", "/readyz").json()["serving"]
    hangs.set()
    # While the question is open, the last answer holds; then it is known that there is none.
    answers = raw(url, None, "GET", "/readyz").json()
    assert (answers["status"], answers["serving"]) == ("ok", True)
    until(lambda: not raw(url, None, "GET", "/readyz").json()["serving"])
    over.set()
