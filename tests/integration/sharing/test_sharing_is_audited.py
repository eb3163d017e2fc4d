"""What is shared, asked for and moved across organisations is in the audit logs of both."""

from typing import Any

import openai
from sharing_requests import EXPERT, SHARED, Ask, asking, give


def told(ask: Ask, *actions: str) -> list[tuple[Any, ...]]:
    """Of these actions what the caller's own log has, the oldest first: action, target, and who."""
    listed = ask("get", "/organization/audit_logs?limit=100")["data"]
    of_interest = [one for one in listed if one["type"].startswith(actions)]
    return [(one["type"], one["target"], one["actor"]["name"]) for one in reversed(of_interest)]


def test_a_grant_is_in_the_logs_of_both_sides_and_names_nobody_of_the_other(
    ask: Ask, globex: openai.OpenAI, version: str
) -> None:
    ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "granted"})
    theirs = asking(globex)
    request = theirs("post", "/access_requests", {"expert": SHARED, "permission": "use"})
    ask("post", f"/grants/{request['id']}/decision", {"approve": True})
    theirs("delete", f"/grants/{request['id']}")
    mine, yours = told(ask, "grant.", "expert.visibility"), told(theirs, "grant.", "expert.visibility")
    assert [one[:2] for one in mine] == [
        ("expert.visibility_changed", EXPERT), ("grant.requested", SHARED), ("grant.approved", SHARED),
        ("grant.ended", SHARED),
    ]  # fmt: skip
    assert [one[:2] for one in yours] == [one[:2] for one in mine[1:]]
    assert [one[2] for one in mine if one[2].startswith("somebody")] == ["somebody of globex"] * 2
    assert [one[2] for one in yours if one[2].startswith("somebody")] == ["somebody of acme"]


def test_a_move_by_a_manager_is_in_the_owners_log(ask: Ask, globex: openai.OpenAI, version: str) -> None:
    give(ask, "manage")
    asking(globex)("put", f"/experts/{SHARED}/aliases/prod", {"version": f"{SHARED}@v1"})
    ((_, target, who),) = told(ask, "alias.moved")
    assert target == f"{EXPERT}@prod" and who.endswith("of another organisation")
    assert told(asking(globex), "alias.moved") == []
