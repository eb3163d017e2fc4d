"""Commands on releases."""

from collections.abc import Callable
from typing import Any

import api_double
import pytest

Run = Callable[..., int]
RELEASE = {
    "id": "default.support@v2",
    "object": "release.version",
    "created_at": 1_700_000_000,
    "release": "support",
    "version": 2,
    "base_model": "zhub-tiny",
    "strategy": "prompt",
    "experts": [{"model": "default.sorting@v1", "digest": "ab" * 32, "weight": 0.5, "description": "puts in order"}],
    "digest": "cd" * 32,
    "description": None,
    "by": "key-1",
    "aliases": [],
}
CANARY = {"version": "default.support@v2", "share": 0.1}
ALIAS = {
    "id": "default.support@prod",
    "object": "release.alias",
    "alias": "prod",
    "version": "default.support@v1",
    "canary": CANARY,
    "moved_at": 1_700_000_000,
}
PROD = "/v1/releases/default.support/aliases/prod"


def test_a_release_is_made_of_experts_with_weights_and_descriptions(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("POST", "/v1/releases", RELEASE)
    arguments = ("releases", "create", "support", "default.sorting@v1=0.5", "default.sums@prod", "--strategy", "prompt")
    assert zhub(*arguments, "--describe", "default.sorting@v1=puts in order") == 0
    (body,) = api.bodies("POST", "/v1/releases")
    assert body == {
        "name": "support",
        "strategy": "prompt",
        "experts": [
            {"model": "default.sorting@v1", "weight": 0.5, "description": "puts in order"},
            {"model": "default.sums@prod", "description": None},
        ],
        "description": None,
    }
    shown = capsys.readouterr()
    assert "puts in order" in shown.out and "zhub releases promote default.support@v2" in shown.err


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("default.sorting@v1=much",), "EXPERT[=WEIGHT]"),
        (("default.sorting@v1", "--describe", "default.sums@v1=adds"), "none of the experts"),
        (("default.sorting@v1", "--describe", "default.sorting@v1"), "EXPERT=TEXT"),
    ],
)
def test_what_is_no_expert_with_a_weight_or_a_description_is_refused(
    zhub: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert zhub("releases", "create", "support", *arguments) == 2
    assert message in capsys.readouterr().err


def test_releases_are_listed_with_what_they_pin(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("GET", "/v1/releases", api_double.page([RELEASE | {"aliases": ["prod"]}]))
    assert zhub("releases", "ls", "default.support", "--limit", "5") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("default.support@v2", "@prod", "prompt", "default.sorting@v1"))
    assert (api.requests[-1].url.params["release"], api.requests[-1].url.params["limit"]) == ("default.support", "5")


def test_what_a_promotion_would_change_is_shown(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"what": "default.sorting: weight", "before": 1.0, "after": None}]
    answer = {"from": "default.support@v1", "to": "default.support@v2", "differences": rows}
    api.add("GET", "/v1/releases/default.support@v2/diff", answer)
    assert zhub("releases", "diff", "default.support@v2", "--against", "default.support@v1") == 0
    assert "default.sorting: weight" in capsys.readouterr().out
    assert api.requests[-1].url.params["against"] == "default.support@v1"
    api.add("GET", "/v1/releases/default.support@v2/diff", answer | {"differences": []})
    assert zhub("releases", "diff", "default.support@v2") == 0
    assert "answers as default.support@v1 does" in capsys.readouterr().err


def test_a_share_of_the_requests_is_sent_to_a_version(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("PUT", PROD, ALIAS)
    assert zhub("releases", "promote", "default.support@v2", "--share", "0.1", "--reason", "try") == 0
    assert api.bodies("PUT", PROD) == [{"version": "default.support@v2", "reason": "try", "share": 0.1}]
    assert "sends 10% of its requests to default.support@v2" in capsys.readouterr().err


def test_every_move_is_shown_with_its_canary(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stayed = {"from": "default.support@v1", "to": "default.support@v1", "canary": CANARY}
    move = stayed | {"id": "move-1", "created_at": 1_700_000_000, "by": "key-1", "reason": "try"}
    api.add("GET", PROD, ALIAS | {"moves": [move]})
    assert zhub("releases", "moves", "default.support@prod") == 0
    assert "10% to default.support@v2" in capsys.readouterr().out


def test_a_release_version_and_an_alias_are_removed(zhub: Run, api: Any) -> None:
    api.add("DELETE", "/v1/releases/default.support@v2", {"deleted": True})
    api.add("DELETE", PROD, {"deleted": True})
    assert zhub("releases", "rm", "default.support@v2", "--yes") == 0
    assert zhub("releases", "demote", "default.support@prod") == 0
    assert [request.method for request in api.requests] == ["DELETE", "DELETE"]


def test_a_release_has_a_classifier(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"model": "default.which@v1", "digest": "ef" * 32}
    api.add("POST", "/v1/releases", RELEASE | {"strategy": "classifier", "classifier": asked})
    arguments = ("default.sorting@v1", "--strategy", "classifier", "--classifier", "default.which@v1")
    assert zhub("releases", "create", "support", *arguments) == 0
    (body,) = api.bodies("POST", "/v1/releases")
    assert (body["strategy"], body["classifier"]) == ("classifier", "default.which@v1")
    assert "default.which@v1" in capsys.readouterr().out
