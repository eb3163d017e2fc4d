"""``zhub grants``: what is asked of the API, and what is shown."""

from collections.abc import Callable
from typing import Any

import api_double
import pytest

Run = Callable[..., int]
GRANT = {
    "id": "grant-1",
    "object": "grant",
    "direction": "given",
    "created_at": 1_700_000_000,
    "expert": "acme.main.sorting",
    "grantee": "globex",
    "permission": "use",
    "status": "active",
    "message": "For words.",
    "expires_at": 1_800_000_000,
    "decided_at": None,
    "ended_at": None,
}
DECISION = "/v1/grants/grant-1/decision"


@pytest.fixture(autouse=True)
def grants(api: Any) -> None:
    for method, path in (
        ("POST", "/v1/grants"), ("POST", "/v1/access_requests"), ("POST", DECISION), ("DELETE", "/v1/grants/grant-1"),
    ):  # fmt: skip
        api.add(method, path, GRANT)
    api.add("GET", "/v1/grants", api_double.page([GRANT]))


SENT: list[tuple[tuple[str, ...], str, dict[str, Any]]] = [
    (
        ("give", "main.sorting", "globex", "-p", "fork", "--expires", "2027-01-15"),
        "/v1/grants",
        {
            "expert": "main.sorting",
            "organization": "globex",
            "permission": "fork",
            "project": None,
            "expires_at": 1_799_971_200,
        },
    ),
    (
        ("ask", "acme.main.sorting", "-m", "For words.", "--for-project"),
        "/v1/access_requests",
        {"expert": "acme.main.sorting", "permission": "use", "message": "For words.", "for_project": True},
    ),
    (("approve", "grant-1"), DECISION, {"approve": True, "permission": None, "expires_at": None}),
    (("deny", "grant-1"), DECISION, {"approve": False, "permission": None, "expires_at": None}),
]


@pytest.mark.parametrize(("arguments", "path", "body"), SENT, ids=[arguments[0] for arguments, _, _ in SENT])
def test_a_command_sends_what_it_says(
    api: Any, zhub: Run, arguments: tuple[str, ...], path: str, body: dict[str, Any]
) -> None:
    assert zhub("grants", *arguments) == 0
    assert api.bodies("POST", path) == [body]


def test_what_was_done_is_said_and_the_id_is_printed_alone(api: Any, zhub: Run, capsys: Any) -> None:
    assert zhub("grants", "rm", "grant-1") == 0
    captured = capsys.readouterr()
    assert captured.out == "grant-1\n" and "grant-1 is active until 2027-01-15" in captured.err


def test_a_list_says_who_may_do_what_until_when_and_why(api: Any, zhub: Run, capsys: Any) -> None:
    assert zhub("grants", "ls", "--received", "--status", "active") == 0
    asked = dict(api.requests[-1].url.params)
    assert (asked["direction"], asked["status"]) == ("received", "active")
    shown = capsys.readouterr().out
    for part in ("grant-1", "acme.main.sorting", "globex", "use", "active", "2027-01-15", "For words."):
        assert part in shown


def test_visibility_is_set_and_said(api: Any, zhub: Run, capsys: Any) -> None:
    api.add("PUT", "/v1/experts/main.sorting/visibility", {"id": "main.sorting", "visibility": "public"})
    assert zhub("grants", "visibility", "main.sorting", "public") == 0
    assert api.bodies("PUT", "/v1/experts/main.sorting/visibility") == [{"visibility": "public"}]
    assert "main.sorting is public." in capsys.readouterr().err


def test_use_by_others_is_shown(api: Any, zhub: Run, capsys: Any) -> None:
    used = {"model": "main.sorting@v1", "organization": "globex", "requests": 3, "prompt_tokens": 1000}
    api.add("GET", "/v1/shared_usage", {"data": [used | {"completion_tokens": 5}]})
    assert zhub("grants", "usage") == 0
    shown = capsys.readouterr().out
    assert "globex" in shown and "1,000" in shown


def test_neighbours_are_shown_with_the_reason(api: Any, zhub: Run, capsys: Any) -> None:
    near = {"model": "acme.main.words@v1", "owner": "acme", "visibility": "public"}
    answer = {"model": "main.sorting@v1", "alike": [near | {"cosine": 0.5}], "same_dataset": [near]}
    api.add("GET", "/v1/experts/main.sorting/neighbours", answer)
    assert zhub("experts", "neighbours", "main.sorting") == 0
    shown = capsys.readouterr().out
    assert "+0.500" in shown and "same data" in shown
