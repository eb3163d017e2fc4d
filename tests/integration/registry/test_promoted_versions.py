"""The versions that ``auto`` chooses from: what ``@prod`` of each of the project's experts points to."""

import uuid
from collections.abc import Callable
from typing import Any, get_args

import pytest
from sqlalchemy import Engine, event, text

from zhub.database.sessions import system_session
from zhub.models import BaseModel
from zhub.recipes import AdapterKind
from zhub.registry import aliases, listing, versions
from zhub.registry.resolve import resolve
from zhub.tenancy.keys import Caller

Publish = Callable[..., str]
Promote = Callable[..., None]


@pytest.fixture
def promote(system_engine: Engine, caller: Caller) -> Promote:
    """Point an alias to a version."""

    def move(name: str, *, alias: str = "prod", owner: Caller = caller) -> None:
        with system_session(system_engine) as session:
            record = versions.get_version(session, owner.project_id, name)
            aliases.move(session, alias, record, by="test")

    return move


@pytest.fixture
def candidates(system_engine: Engine, caller: Caller) -> Callable[[], list[str]]:
    """The names of the versions that ``auto`` chooses from."""

    def resolved() -> list[str]:
        with system_session(system_engine) as session:
            session.execute(text("UPDATE base_models SET is_default = true WHERE name = 'tiny'"))
            chosen_from = resolve(session, caller, "auto", []).candidates
            assert chosen_from is not None
            return [part.record.name for part in chosen_from]

    return resolved


def test_auto_chooses_from_what_prod_points_to_however_new_the_others_are(
    publish_version: Publish, promote: Promote, candidates: Callable[[], list[str]]
) -> None:
    promoted = publish_version("a")
    publish_version("a")
    other = publish_version("b")
    publish_version("experiment")
    promote(promoted)
    promote(other)
    assert candidates() == [other, promoted]


def test_without_a_promotion_auto_has_nothing_to_choose_from(
    publish_version: Publish, promote: Promote, candidates: Callable[[], list[str]]
) -> None:
    promote(publish_version("a"), alias="staging")
    publish_version("b")
    assert candidates() == []


def test_the_next_request_to_auto_follows_a_move_of_prod(
    publish_version: Publish, promote: Promote, candidates: Callable[[], list[str]]
) -> None:
    first, second = publish_version("a"), publish_version("a")
    for moved_to in (first, second, first):
        promote(moved_to)
        assert candidates() == [moved_to]


@pytest.mark.parametrize("changed", [{"basis_fingerprint": "c" * 64}, {"best_step": 0}])
def test_no_older_version_steps_in_where_serving_cannot_answer_with_the_promoted_one(
    publish_version: Publish, promote: Promote, candidates: Callable[[], list[str]], changed: dict[str, Any]
) -> None:
    publish_version("a")
    promote(publish_version("a", **changed))
    assert candidates() == []


def test_a_promoted_version_of_any_kind_is_chosen(
    publish_version: Publish, promote: Promote, candidates: Callable[[], list[str]]
) -> None:
    of_each_kind = []
    for kind in get_args(AdapterKind):
        of_each_kind.append(publish_version(kind, hyperparameters={"n_steps": 1, "adapter": kind}))
        promote(of_each_kind[-1])
    assert candidates() == of_each_kind[::-1]


def test_a_promoted_version_that_began_from_another_is_chosen_though_no_step_was_better(
    publish_version: Publish, promote: Promote, candidates: Callable[[], list[str]]
) -> None:
    continued = publish_version("a", best_step=0, parent_digest="p")
    promote(continued)
    assert candidates() == [continued]


def test_another_project_and_another_base_have_candidates_of_their_own(
    publish_version: Publish,
    promote: Promote,
    candidates: Callable[[], list[str]],
    make_caller: Callable[..., Caller],
    make_base_model: Callable[..., uuid.UUID],
    system_engine: Engine,
    caller: Caller,
) -> None:
    globex = make_caller("globex")
    promote(publish_version("a", owner=globex), owner=globex)
    assert candidates() == []
    promote(publish_version("a"))
    other = make_base_model("other")
    with system_session(system_engine) as session:
        assert versions.promoted(session, caller.project_id, session.get_one(BaseModel, other)) == []


def test_the_candidates_are_one_statement_that_returns_only_them(
    publish_version: Publish, promote: Promote, system_engine: Engine, caller: Caller
) -> None:
    for expert in ("a", "b", "c"):
        publish_version(expert)
        promote(publish_version(expert))
        publish_version(expert)
    returned = []
    with system_session(system_engine) as session:
        base = listing.list_versions(session, caller.project_id, limit=1)[0][0].base
        event.listen(session.connection(), "after_cursor_execute", lambda *of: returned.append(of[1].rowcount))
        versions.promoted(session, caller.project_id, base)
    assert returned == [3]
