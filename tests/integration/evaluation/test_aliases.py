"""Aliases: they move to a version of their own expert, from where they are expected, and every move is kept."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.errors import ConflictError
from zhub.registry import aliases, versions
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]


def test_an_alias_points_to_the_version_it_was_moved_to(ask: Ask, publish_version: Ask) -> None:
    first, second = publish_version(), publish_version()
    assert ask("put", "/experts/main.summer/aliases/prod", {"version": first})["version"] == first
    assert ask("get", "/experts/main.summer@prod")["id"] == first
    assert ask("put", "/experts/main.summer/aliases/prod", {"version": second})["id"] == "main.summer@prod"
    assert ask("get", "/models/main.summer@prod")["id"] == second
    assert [one["version"] for one in ask("get", "/aliases")["data"]] == [second]


def test_every_move_of_an_alias_is_kept_with_who_and_why(ask: Ask, publish_version: Ask, caller: Caller) -> None:
    first, second = publish_version(), publish_version()
    path = "/experts/main.summer/aliases/prod"
    ask("put", path, {"version": first})
    ask("put", path, {"version": second, "reason": "better"})
    ask("put", path, {"version": second, "reason": "no move"})
    ask("put", path, {"version": first, "reason": "back"})
    moves = ask("get", path)["moves"]
    assert [(move["from"], move["to"], move["reason"]) for move in moves] == [
        (second, first, "back"),
        (first, second, "better"),
        (None, first, None),
    ]
    assert all(move["by"].startswith("key-") for move in moves)


def test_an_alias_moves_only_from_where_it_is_expected(ask: Ask, publish_version: Ask) -> None:
    first, second = publish_version(), publish_version()
    path = "/experts/main.summer/aliases/prod"
    with pytest.raises(openai.ConflictError, match="points to another version than expected"):
        ask("put", path, {"version": first, "expected": second})
    ask("put", path, {"version": first, "expected": None})
    with pytest.raises(openai.ConflictError, match="points to another version than expected"):
        ask("put", path, {"version": second, "expected": None})
    assert ask("put", path, {"version": second, "expected": first})["version"] == second


def test_of_moves_at_the_same_time_that_expect_the_same_one_happens(
    publish_version: Ask, system_engine: Engine, caller: Caller
) -> None:
    names = [publish_version() for _ in range(6)]

    def move(name: str) -> bool:
        try:
            with system_session(system_engine) as session:
                to = versions.get_version(session, caller.project_id, name)
                aliases.move(session, "prod", to, by="test", expected=aliases.Expected(None))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(move, names)) == 1


@pytest.mark.parametrize("name", ["v1", "Prod", "a b", "-a", "x" * 33, "9"])
def test_what_cannot_be_an_alias_is_refused(ask: Ask, publish_version: Ask, name: str) -> None:
    version = publish_version()
    with pytest.raises(openai.BadRequestError, match="cannot be an alias"):
        ask("put", f"/experts/main.summer/aliases/{name}", {"version": version})


def test_an_alias_is_put_on_versions_of_its_own_expert_alone(ask: Ask, publish_version: Ask) -> None:
    publish_version()
    other = publish_version("another")
    with pytest.raises(openai.BadRequestError, match="no version of"):
        ask("put", "/experts/main.summer/aliases/prod", {"version": other})
    with pytest.raises(openai.NotFoundError, match=r"main\.none"):
        ask("put", "/experts/main.none/aliases/prod", {"version": other})
