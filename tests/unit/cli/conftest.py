"""An API of this machine, and the command line that asks it."""

from collections.abc import Callable, Iterator
from typing import Any

import api_double
import api_examples
import pytest

from zhub.cli import main

Run = Callable[..., int]
JOB_EVENTS = "/v1/fine_tuning/jobs/ftjob-1/events"


@pytest.fixture
def api() -> Any:
    api = api_double.Api()
    api.add(
        "GET",
        JOB_EVENTS,
        api_double.events_of([api_double.event(1), api_double.event(2, step=1, train_reward_mean=0.5)]),
    )
    return api


@pytest.fixture
def url(api: Any) -> Iterator[str]:
    with api_double.served(api) as address:
        yield address


@pytest.fixture
def zhub(url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command against the API; its exit code."""
    for name in ("ZHUB_DEBUG", "ZHUB_DATA_DIR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZHUB_API_URL", url)
    monkeypatch.setenv("ZHUB_API_KEY", api_examples.KEY)
    monkeypatch.setenv("ZHUB_CONFIG_DIR", "/nonexistent/zhub")

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert isinstance(ended.value.code, int | None)
        return ended.value.code or 0

    return run
