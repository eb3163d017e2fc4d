"""Promotions: an alias moves to what passed its gate, and to nothing else."""

import dataclasses
from collections.abc import Callable
from typing import Any

import openai
import pytest
from claims import admit_queued, claim_one
from promoting import advance, clusters_of_evaluations, points_to, z
from sqlalchemy import Engine, select, text
from suites import GRADER, right_in, run

from zhub.database.sessions import system_session
from zhub.evaluation import promotions
from zhub.evaluation.gates import Finding
from zhub.models import JobEvent
from zhub.queue import attempts
from zhub.queue.attempts import Failure
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]


def test_the_first_version_is_measured_against_its_base(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask
) -> None:
    name = publish_version(**z("aa"))
    made = promote(name)
    assert (made["status"], made["promoted"], made["model"]) == ("waiting", None, name)
    work(aa=30)
    found = ask("get", f"/promotions/{made['id']}")
    assert (found["status"], found["promoted"]) == ("succeeded", True)
    (finding,) = found["findings"]
    assert finding["passed"] and f"{name} is better than tiny" in finding["sentences"][0]
    assert points_to(ask) == name
    (move,) = ask("get", "/experts/main.summer/aliases/prod")["moves"]
    assert (move["by"], move["reason"]) == (made["id"], "passed its gate")


def test_a_gate_that_moves_an_alias_is_in_the_audit_log(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask
) -> None:
    old, new = publish_version(**z("aa")), publish_version(**z("bb"))
    ask("put", "/experts/main.summer/aliases/prod", {"version": old})
    ask("put", "/experts/main.summer/aliases/prod", {"version": old})
    made = promote(new)
    work(aa=20, bb=39)
    events = ask("get", "/organization/audit_logs?event_types=alias.moved")["data"]
    assert [(event["before"]["version"], event["after"]["version"]) for event in events] == [(old, new), (None, old)]
    assert (events[0]["actor"]["name"], events[0]["target"]) == (f"gate {made['id']}", "main.summer@prod")


def test_a_version_that_is_worse_than_the_one_that_the_alias_points_to_is_not_promoted(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask
) -> None:
    good = publish_version(**z("aa"))
    ask("put", "/experts/main.summer/aliases/prod", {"version": good})
    made = promote(publish_version(**z("bb")))
    work(aa=38, bb=12)
    found = ask("get", f"/promotions/{made['id']}")
    assert (found["status"], found["promoted"]) == ("succeeded", False)
    assert "is worse than" in found["findings"][0]["sentences"][0]
    assert points_to(ask) == good


@pytest.mark.parametrize(("rule", "passed"), [("not_worse", True), ("better", False)])
def test_a_version_inside_the_noise_passes_only_where_not_being_worse_is_enough(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask, rule: str, passed: bool
) -> None:
    old = publish_version(**z("aa"))
    ask("put", "/experts/main.summer/aliases/prod", {"version": old})
    new = publish_version(**z("bb"))
    promote(new, rule=rule)
    work(aa=30, bb=31)
    assert points_to(ask) == (new if passed else old)


def test_every_suite_must_be_passed(
    ask: Ask, suite_file: str, make_file: Ask, caller: Caller, publish_version: Ask, work: Ask
) -> None:
    name = publish_version(**z("aa"))
    suites = [{"file": suite_file, "grader": GRADER}, {"file": suite_file, "grader": GRADER, "min_mean": 0.9}]
    made = ask("post", "/promotions", {"model": name, "suites": suites})
    work(aa=30)
    found = ask("get", f"/promotions/{made['id']}")
    assert [one["passed"] for one in found["findings"]] == [True, False]
    assert found["promoted"] is False
    assert "the gate asks for 0.900" in found["findings"][1]["sentences"][-1]


def test_an_alias_that_moves_meanwhile_is_compared_with_anew(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask, system_engine: Engine
) -> None:
    old, best, new = (publish_version(**z(letters)) for letters in ("aa", "cc", "bb"))
    ask("put", "/experts/main.summer/aliases/prod", {"version": old})
    made = promote(new)
    advance(system_engine)  # the evaluations against the old one are enqueued
    ask("put", "/experts/main.summer/aliases/prod", {"version": best})
    work(aa=12, bb=20, cc=39)
    found = ask("get", f"/promotions/{made['id']}")
    assert (found["promoted"], points_to(ask)) == (False, best)
    assert f"worse than {best}" in found["findings"][0]["sentences"][0]


def test_a_gate_whose_evaluation_failed_says_so_and_promotes_nothing(
    ask: Ask, promote: Ask, publish_version: Ask, system_engine: Engine
) -> None:
    made = promote(publish_version())
    advance(system_engine)
    with system_session(system_engine) as session:
        admit_queued(session)
        while claim := claim_one(session, "evaluate"):
            attempts.fail(session, claim.job_id, claim.fence, Failure("x", "It broke."), outcome="failed_user")
    advance(system_engine)
    found = ask("get", f"/promotions/{made['id']}")
    assert (found["status"], found["error"]["code"]) == ("failed", "dependency_failed")
    assert "It broke." in found["error"]["message"]
    with pytest.raises(openai.NotFoundError, match="no alias 'prod'"):
        points_to(ask)


def test_a_cancelled_promotion_moves_nothing(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask, system_engine: Engine
) -> None:
    made = promote(publish_version(**z("aa")))
    advance(system_engine)
    assert ask("post", f"/promotions/{made['id']}/cancel")["status"] == "cancelled"
    work(aa=30)
    assert ask("get", f"/promotions/{made['id']}")["promoted"] is None
    with pytest.raises(openai.NotFoundError):
        points_to(ask)
    with pytest.raises(openai.ConflictError, match="already succeeded"):
        ask("post", f"/promotions/{_ended(promote, work)}/cancel")


def _ended(promote: Ask, work: Ask) -> str:
    made = promote("main.summer@v1")
    work(aa=30)
    return str(made["id"])


def test_two_schedulers_decide_a_gate_once(
    promote: Ask, publish_version: Ask, work: Ask, system_engine: Engine
) -> None:
    promote(publish_version(**z("aa")))
    with system_session(system_engine) as one, system_session(system_engine) as other:
        assert promotions.advance(one) is True
        assert promotions.advance(other) is False


@pytest.fixture
def measured(
    ask: Ask, promote: Ask, publish_version: Ask, system_engine: Engine, store: DirectoryStore
) -> promotions.Measured:
    """A gate that can be decided: v2 has 30 of 40 right, v1, to which the alias points, 12."""
    ask("put", "/experts/main.summer/aliases/prod", {"version": publish_version(**z("aa"))})
    promote(publish_version(**z("bb")))
    advance(system_engine)
    right = {"aa": 12, "bb": 30}
    run(system_engine, store, lambda spec: right_in(10 if spec.z is None else right[spec.z.sha256[:2]]))
    with system_session(system_engine) as session:
        step = promotions.advance(session)
    assert isinstance(step, promotions.Measured)
    return step


def record_decision(engine: Engine, measured: promotions.Measured, *, passed: bool) -> None:
    with system_session(engine) as session:
        promotions.record_decision(session, measured, [Finding("suite.jsonl", passed, ["It was compared."])])


def decision(ask: Ask) -> tuple[str, bool | None, str]:
    (promotion,) = ask("get", "/promotions")["data"]
    return promotion["status"], promotion["promoted"], points_to(ask)


def test_a_gate_that_two_schedulers_have_compared_is_decided_by_the_first(
    ask: Ask, measured: promotions.Measured, system_engine: Engine
) -> None:
    record_decision(system_engine, measured, passed=False)
    record_decision(system_engine, measured, passed=True)
    assert decision(ask) == ("succeeded", False, "main.summer@v1")
    with system_session(system_engine) as session:
        written = list(session.scalars(select(JobEvent.message).where(JobEvent.job_id == measured.job.id)))
    assert written.count("suite.jsonl: It was compared.") == 1


@pytest.mark.parametrize("passed", [True, False])
def test_nothing_is_decided_by_a_comparison_with_a_version_that_the_alias_no_longer_points_to(
    ask: Ask, publish_version: Ask, measured: promotions.Measured, system_engine: Engine, passed: bool
) -> None:
    moved_to = publish_version(**z("cc"))
    ask("put", "/experts/main.summer/aliases/prod", {"version": moved_to})
    record_decision(system_engine, measured, passed=passed)
    assert decision(ask) == ("waiting", None, moved_to)


def test_a_promotion_that_is_cancelled_while_it_is_compared_is_not_decided(
    ask: Ask, measured: promotions.Measured, system_engine: Engine
) -> None:
    (promotion,) = ask("get", "/promotions")["data"]
    ask("post", f"/promotions/{promotion['id']}/cancel")
    record_decision(system_engine, measured, passed=True)
    assert decision(ask) == ("cancelled", None, "main.summer@v1")


def test_a_comparison_that_fails_ends_its_gate_and_promotes_nothing(
    ask: Ask, measured: promotions.Measured, system_engine: Engine
) -> None:
    (suite,) = measured.suites
    broken = dataclasses.replace(measured, suites=[dataclasses.replace(suite, rewards=(1.0,))])
    findings = promotions.compare(broken)
    assert findings is None
    with system_session(system_engine) as session:
        promotions.record_decision(session, broken, findings)
    assert decision(ask) == ("failed", None, "main.summer@v1")


def test_a_gate_that_cannot_be_decided_does_not_stand_in_the_way_of_others(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask, owner_engine: Engine, system_engine: Engine
) -> None:
    broken = promote(publish_version(**z("aa")))
    with system_session(system_engine) as session:
        session.execute(text("UPDATE promotions SET gate = '{\"suites\": 1}'"))
    sound = promote("main.summer@v1", alias="next")
    work(aa=30)
    found = ask("get", f"/promotions/{broken['id']}")
    assert (found["status"], found["error"]["code"]) == ("failed", "internal_error")
    assert ask("get", f"/promotions/{sound['id']}")["promoted"] is True


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"model": "main.summer@v9"}, 404, None),
        ({"alias": "v2"}, 400, "alias"),
        ({"rule": "best"}, 400, "rule"),
        ({"suites": []}, 400, "suites"),
        ({"suites": [{"file": "file-0", "grader": GRADER}]}, 404, None),
    ],
)
def test_what_cannot_be_promoted_is_refused_at_once(
    promote: Ask, publish_version: Ask, changed: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"model": publish_version()} | changed
    with pytest.raises(openai.APIStatusError) as caught:
        promote(**body)
    assert (caught.value.status_code, caught.value.param) == (status, param)


def test_a_promotion_is_measured_where_it_is_asked_to_be_and_otherwise_on_the_default(
    promote: Ask, publish_version: Ask, system_engine: Engine, make_agent: Ask
) -> None:
    name = publish_version()
    promote(name)
    advance(system_engine)
    assert clusters_of_evaluations(system_engine) == {"default"}
    make_agent(cluster="h100")
    promote(name, cluster="h100")
    advance(system_engine)
    assert clusters_of_evaluations(system_engine) == {"h100"}


def test_a_gate_waits_for_a_cluster_that_has_been_away_for_long(
    ask: Ask, promote: Ask, publish_version: Ask, system_engine: Engine, make_agent: Ask
) -> None:
    make_agent(cluster="h100")
    made = promote(publish_version(), cluster="h100")
    with system_session(system_engine) as session:
        session.execute(text("UPDATE agents SET seen_at = now() - interval '3 days'"))
    advance(system_engine)
    assert clusters_of_evaluations(system_engine) == {"h100"}
    assert ask("get", f"/promotions/{made['id']}")["status"] == "waiting"


@pytest.mark.parametrize(("right", "passed"), [(30, True), (2, False)])
def test_a_gate_on_what_the_alias_points_to_already_says_so(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask, system_engine: Engine, right: int, passed: bool
) -> None:
    name = publish_version(**z("aa"))
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    made = promote(name)
    work(aa=right)
    found = ask("get", f"/promotions/{made['id']}")
    assert found["promoted"] is passed and points_to(ask) == name
    assert found["findings"][0]["sentences"][-1] == (
        f"The alias points to {name} already: it is compared with its base only."
    )
    with system_session(system_engine) as session:
        last = session.scalars(select(JobEvent.message).order_by(JobEvent.position.desc()).limit(1)).one()
    assert last == (
        f"{name} passed: @prod points to it already." if passed else f"{name} did not pass: @prod still points to it."
    )


def test_a_version_that_was_archived_meanwhile_is_not_promoted(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask
) -> None:
    name = publish_version(**z("aa"))
    made = promote(name)
    ask("patch", f"/experts/{name}", {"archived": True})
    work(aa=30)
    found = ask("get", f"/promotions/{made['id']}")
    assert (found["status"], found["error"]["code"]) == ("failed", "conflict")
    assert "archived" in found["error"]["message"]
    assert ask("get", "/aliases")["data"] == []
