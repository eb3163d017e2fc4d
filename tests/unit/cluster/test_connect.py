"""Joining Ray on a machine where Ray takes longer to start than its own limits."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray  # noqa: TID251
from ray.exceptions import AuthenticationError  # noqa: TID251

from zhub.errors import UnavailableError
from zhub_workers.cluster import ray_cluster


@pytest.fixture
def tries() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch, tries: list[str]) -> Iterator[None]:
    for name in ("FIRST_PAUSE_S", "MAX_PAUSE_S"):
        monkeypatch.setattr(ray_cluster, name, 0.001)
    monkeypatch.setattr(ray, "shutdown", lambda: tries.append("shutdown"))
    yield


def fail(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
    """Have Ray fail with these errors, one a try, and then start."""
    left = list(errors)

    def init(**_options: Any) -> None:
        if left:
            raise left.pop(0)

    monkeypatch.setattr(ray, "init", init)


def test_what_ray_could_not_do_in_its_time_is_tried_again_and_spoken_of(
    monkeypatch: pytest.MonkeyPatch, tries: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    # The three that Ray raises: no head, a head that does not know its node, and a node that took half a minute.
    fail(monkeypatch, ConnectionError("no head"), RuntimeError("no node"), Exception("timed out during startup"))
    ray_cluster.connect("127.0.0.1:1", trying=lambda: tries.append("try"))
    assert tries == ["try", "shutdown"] * 3 + ["try"]
    assert "Ray at 127.0.0.1:1 does not answer yet: no node; trying again in" in caplog.text


@pytest.mark.parametrize("error", [ValueError("no such address"), AuthenticationError("another token")])
def test_what_no_patience_mends_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail(monkeypatch, error)
    with pytest.raises(type(error)):
        ray_cluster.connect("127.0.0.1:1")


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "CONNECT_WITHIN_S", 0.0)
    fail(monkeypatch, ConnectionError("no head"))
    with pytest.raises(UnavailableError, match="Ray did not answer within 0 s: no head"):
        ray_cluster.connect(None)
