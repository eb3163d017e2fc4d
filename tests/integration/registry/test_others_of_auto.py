"""The experts that ``auto`` compares a prompt with though they may not answer."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session
from zhub.registry import aliases, resolve, versions
from zhub.tenancy.keys import Caller

Publish = Callable[..., str]


def others(engine: Engine, caller: Caller) -> list[str]:
    with system_session(engine) as session:
        session.execute(text("UPDATE base_models SET is_default = true"))
        return [record.name for record in resolve.resolve(session, caller, "auto", []).others]


def promote(engine: Engine, caller: Caller, name: str) -> None:
    with system_session(engine) as session:
        aliases.move(session, "prod", versions.get_version(session, caller.project_id, name), by="test")


def test_they_are_the_projects_other_experts_at_their_newest_versions(
    publish_version: Publish, system_engine: Engine, caller: Caller, make_caller: Callable[..., Caller]
) -> None:
    promoted, _, _ = publish_version("a"), publish_version("a"), publish_version("b")
    newest, _ = publish_version("b"), publish_version("c", owner=make_caller("globex"))
    assert others(system_engine, caller) == []  # nothing can be chosen, so there is nothing to tell apart
    promote(system_engine, caller, promoted)
    assert others(system_engine, caller) == [newest]
    promote(system_engine, caller, newest)
    assert others(system_engine, caller) == []


def test_they_are_so_many_at_most(
    publish_version: Publish, system_engine: Engine, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "MAX_OTHERS", 2)
    names = [publish_version(expert) for expert in "abcd"]
    promote(system_engine, caller, names[1])
    assert others(system_engine, caller) == [names[3], names[2]]
