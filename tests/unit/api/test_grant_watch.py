"""Answers that need a right: they go on while it is confirmed, and end when it is not."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import create_engine

from zhub.answering import SharedExpert
from zhub.errors import GrantEndedError
from zhub.tenancy.keys import Caller
from zhub_api import grant_watch
from zhub_api.grant_watch import BOUND_S, GrantWatch, Watched, while_usable

EXPERT = SharedExpert(name="acme.main.sums@v1", owner_org_id=uuid.uuid4(), version_id=uuid.uuid4(), user="globex")
CALLER = Caller(uuid.uuid4(), uuid.uuid4(), uuid.uuid4(), "main", frozenset())


def watched() -> Watched:
    return Watched(CALLER.org_id, CALLER.project_id, [EXPERT])


async def lines(left: list[str]) -> AsyncIterator[str]:
    for line in ("a", "b"):
        yield line
    left.append("no line comes")
    await asyncio.Event().wait()


def test_lines_come_as_they_are_while_the_right_lasts() -> None:
    async def first_two() -> list[str]:
        usable = while_usable(lines([]), watched())
        heard = [await anext(usable), await anext(usable)]
        await usable.aclose()
        return heard

    assert asyncio.run(first_two()) == ["a", "b"]


@pytest.mark.parametrize("how", ["ended", "unconfirmed"])
def test_an_answer_that_waits_for_its_next_line_ends_with_the_right(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grant_watch, "LOOK_S", 0.001)
    one, left, heard = watched(), list[str](), list[str]()

    async def listen() -> None:
        async for line in while_usable(lines(left), one):
            heard.append(line)
            if line == "b":
                if how == "ended":
                    one.ended = EXPERT.name
                else:
                    one.confirmed_at -= BOUND_S

    with pytest.raises(GrantEndedError, match="acme.main.sums@v1"):
        asyncio.run(listen())
    assert heard == ["a", "b"]


def test_what_the_database_does_not_answer_is_not_confirmed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(grant_watch, "tenant_session", away)
    watch = GrantWatch(create_engine("postgresql+psycopg://nowhere"))
    with watch.watching(CALLER, [EXPERT]) as one:
        one.confirmed_at = before = one.confirmed_at - BOUND_S
        watch.confirm()
        assert (one.ended, one.confirmed_at) == (None, before)
        with pytest.raises(GrantEndedError):
            one.check()
    assert "rights are not confirmed" in caplog.text
