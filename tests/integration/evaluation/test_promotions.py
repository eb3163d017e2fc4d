"""Jobs that wait for others, aliases, and promotions: an alias moves to what passed its gate, and to nothing else."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from claims import admit_queued, claim_one
from sqlalchemy import Engine, select, text
from suites import GRADER, METHOD, manifest_of, right_in, run

from zhub.database.sessions import system_session
from zhub.errors import ConflictError
from zhub.evaluation import promotions
from zhub.evaluation.evaluations import Comparison
from zhub.kinds import table
from zhub.models import Job, JobEvent
from zhub.queue import attempts, jobs
from zhub.queue.attempts import Failure
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes
from zhub.registry import aliases, versions
from zhub.registry.publish import publish
from zhub.specs import EvaluateSpec
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
Ask = Callable[..., Any]


@pytest.fixture
def promote(ask: Ask, suite_file: str) -> Ask:
    """POST /v1/promotions with one suite."""

    def post(model: str, min_mean: float | None = None, **options: Any) -> Any:
        suite = {"file": suite_file, "grader": GRADER, "min_mean": min_mean}
        return ask("post", "/promotions", {"model": model, "suites": [suite]} | options)

    return post


@pytest.fixture
def work(system_engine: Engine, store: DirectoryStore) -> Callable[..., None]:
    """Let gates and pretended workers do what there is to do; ``right`` of the 40 answers of each z are right."""

    def until_nothing_is_left(base: int = 10, **right: int) -> None:
        def rewards(spec: EvaluateSpec) -> list[float]:
            return right_in(base if spec.z is None else right[spec.z.sha256[:2]])

        for _ in range(10):
            advance(system_engine)
            if not run(system_engine, store, rewards):
                return
        raise AssertionError("there is no end to it")

    return until_nothing_is_left


def advance(engine: Engine) -> None:
    more = True
    while more:
        with system_session(engine) as session:
            more = promotions.advance(session)
    with system_session(engine) as session:
        apply_requested_changes(session)
        release_dependents(session, table.names())


def z(sha256: str) -> dict[str, Any]:
    """A manifest whose z is another."""
    return {"files": [{"name": "z.safetensors", "size_bytes": 1, "sha256": sha256 * 32}]}


def stands_on(ask: Ask, expert: str = "summer", alias: str = "prod") -> str:
    return str(ask("get", f"/experts/main.{expert}/aliases/{alias}")["version"])


def messages(engine: Engine, kind: str) -> list[str]:
    with system_session(engine) as session:
        statement = select(JobEvent.message).join(Job, Job.id == JobEvent.job_id).where(Job.kind == kind)
        return list(session.scalars(statement.order_by(JobEvent.position)))


# Aliases


def test_an_alias_stands_for_the_version_it_was_put_on(ask: Ask, publish_version: Ask) -> None:
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
    with pytest.raises(openai.ConflictError, match="stands elsewhere"):
        ask("put", path, {"version": first, "expected": second})
    ask("put", path, {"version": first, "expected": None})
    with pytest.raises(openai.ConflictError, match="stands elsewhere"):
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


# Gates


def compared(difference: float, p_value: float) -> Comparison:
    low, high = sorted((difference * 0.5, difference * 1.5)) if p_value < 0.05 else (-1.0, 1.0)
    return Comparison(difference, low, high, p_value, 40)


BETTER, NOISE, WORSE = compared(0.5, 0.001), compared(0.01, 0.8), compared(-0.5, 0.001)


@pytest.mark.parametrize(
    ("rule", "standing", "base", "minimum", "passed"),
    [
        ("not_worse", BETTER, BETTER, None, True),
        ("not_worse", NOISE, BETTER, None, True),
        ("not_worse", WORSE, BETTER, None, False),
        ("not_worse", NOISE, WORSE, None, False),
        ("better", BETTER, BETTER, None, True),
        ("better", NOISE, BETTER, None, False),
        ("better", BETTER, WORSE, None, False),
        ("not_worse", BETTER, BETTER, 0.8, True),
        ("not_worse", BETTER, BETTER, 0.81, False),
    ],
)
def test_what_a_gate_lets_pass(
    rule: promotions.Rule, standing: Comparison, base: Comparison, minimum: float | None, passed: bool
) -> None:
    against = [("old", standing), ("base", base)]
    found, sentences = promotions.decide(rule, "new", 0.8, minimum, against)
    assert found == passed
    assert len(sentences) == 2 + (minimum is not None)


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
    assert stands_on(ask) == name
    (move,) = ask("get", "/experts/main.summer/aliases/prod")["moves"]
    assert (move["by"], move["reason"]) == (made["id"], "passed its gate")


def test_a_version_that_is_worse_than_what_the_alias_stands_on_is_not_promoted(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask
) -> None:
    good = publish_version(**z("aa"))
    ask("put", "/experts/main.summer/aliases/prod", {"version": good})
    made = promote(publish_version(**z("bb")))
    work(aa=38, bb=12)
    found = ask("get", f"/promotions/{made['id']}")
    assert (found["status"], found["promoted"]) == ("succeeded", False)
    assert "is worse than" in found["findings"][0]["sentences"][0]
    assert stands_on(ask) == good


@pytest.mark.parametrize(("rule", "passed"), [("not_worse", True), ("better", False)])
def test_a_version_inside_the_noise_passes_only_where_not_being_worse_is_enough(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask, rule: str, passed: bool
) -> None:
    old = publish_version(**z("aa"))
    ask("put", "/experts/main.summer/aliases/prod", {"version": old})
    new = publish_version(**z("bb"))
    promote(new, rule=rule)
    work(aa=30, bb=31)
    assert stands_on(ask) == (new if passed else old)


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
    assert (found["promoted"], stands_on(ask)) == (False, best)
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
        stands_on(ask)


def test_a_cancelled_promotion_moves_nothing(
    ask: Ask, promote: Ask, publish_version: Ask, work: Ask, system_engine: Engine
) -> None:
    made = promote(publish_version(**z("aa")))
    advance(system_engine)
    assert ask("post", f"/promotions/{made['id']}/cancel")["status"] == "cancelled"
    work(aa=30)
    assert ask("get", f"/promotions/{made['id']}")["promoted"] is None
    with pytest.raises(openai.NotFoundError):
        stands_on(ask)
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


# From training to the alias


@pytest.fixture
def train(client: Client, suite_file: str) -> Ask:
    def create(**options: Any) -> Any:
        return client.fine_tuning.jobs.create(
            model="tiny", training_file=suite_file, method=METHOD, suffix="summer", extra_body=options
        )

    return create


def publish_job(engine: Engine, job_id: str, sha256: str, cluster: str = "default") -> None:
    """Do what a worker does with a training."""
    with system_session(engine) as session:
        found = uuid.UUID(job_id.removeprefix("ftjob-"))
        session.execute(text("UPDATE jobs SET state = 'admitted', admitted_at = now() WHERE id = :id"), {"id": found})
        claim = claim_one(session, "train", cluster=cluster)
        assert claim is not None and claim.job_id == found
        publish(session, found, claim.fence, manifest_of(found, **z(sha256)), "k", 7)


def test_a_training_with_a_gate_is_measured_and_promoted_by_itself(
    ask: Ask, train: Ask, suite_file: str, work: Ask, system_engine: Engine
) -> None:
    job = train(promotion={"suites": [{"file": suite_file, "grader": GRADER}]})
    found = ask("get", f"/promotions/{job.promotion}")
    assert (found["status"], found["training_job"], found["model"]) == ("waiting", job.id, None)
    publish_job(system_engine, job.id, "aa")
    work(aa=30)
    found = ask("get", f"/promotions/{job.promotion}")
    assert (found["promoted"], found["model"], stands_on(ask)) == (True, "main.summer@v1", "main.summer@v1")
    assert messages(system_engine, "gate")[-1] == "main.summer@v1 is @prod now."


def clusters_of_evaluations(engine: Engine) -> set[str]:
    with system_session(engine) as session:
        return set(session.scalars(select(Job.cluster).where(Job.kind == "evaluate")))


@pytest.mark.parametrize(
    ("wanted", "found"), [({}, "h100"), ({"cluster": "a10"}, "a10"), ({"cluster": "default"}, "default")]
)
def test_the_gate_of_a_training_measures_where_it_was_trained_unless_it_names_another_cluster(
    ask: Ask, train: Ask, suite_file: str, system_engine: Engine, make_agent: Ask, wanted: Any, found: str
) -> None:
    for cluster in ("a10", "h100"):
        make_agent(cluster=cluster)
    job = train(cluster="h100", promotion={"suites": [{"file": suite_file, "grader": GRADER}]} | wanted)
    assert ask("get", f"/promotions/{job.promotion}")["gate"]["cluster"] == found
    publish_job(system_engine, job.id, "aa", "h100")
    advance(system_engine)
    assert clusters_of_evaluations(system_engine) == {found}


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


def test_a_gate_on_a_cluster_that_nobody_offers_is_refused_where_it_is_asked_for(
    promote: Ask, train: Ask, publish_version: Ask, suite_file: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="none has been seen") as refused:
        promote(publish_version(), cluster="h100")
    assert refused.value.param == "cluster"
    with pytest.raises(openai.BadRequestError, match="none has been seen") as refused:
        train(promotion={"suites": [{"file": suite_file, "grader": GRADER}], "cluster": "h100"})
    assert refused.value.param == "promotion.cluster"


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


def test_a_gate_whose_training_has_ended_is_left_to_decide(
    ask: Ask, train: Ask, suite_file: str, system_engine: Engine
) -> None:
    job = train(promotion={"suites": [{"file": suite_file, "grader": GRADER}]})
    publish_job(system_engine, job.id, "aa")
    with system_session(system_engine) as session:
        assert release_dependents(session, table.names()) == 0
    assert ask("get", f"/promotions/{job.promotion}")["status"] == "waiting"


def test_a_training_that_failed_promotes_nothing(ask: Ask, train: Ask, suite_file: str, system_engine: Engine) -> None:
    job = train(promotion={"suites": [{"file": suite_file, "grader": GRADER}]})
    ask("post", f"/fine_tuning/jobs/{job.id}/cancel")
    advance(system_engine)
    advance(system_engine)
    found = ask("get", f"/promotions/{job.promotion}")
    assert (found["status"], found["error"]["code"]) == ("cancelled", "dependency_failed")


def test_a_job_waits_until_what_it_needs_has_succeeded(
    ask: Ask, train: Ask, client: Client, system_engine: Engine
) -> None:
    first = train()
    second = train(depends_on=[first.id])
    assert second.depends_on == [first.id]
    advance(system_engine)
    assert state_of(system_engine, second.id) == "waiting"
    assert first.id in ask("get", f"/fine_tuning/jobs/{second.id}/queue")["reason"]
    publish_job(system_engine, first.id, "aa")
    advance(system_engine)
    assert state_of(system_engine, second.id) == "queued"


def test_a_job_waits_for_all_that_it_needs(train: Ask, system_engine: Engine) -> None:
    first, second = train(), train()
    third = train(depends_on=[first.id, second.id])
    publish_job(system_engine, first.id, "aa")
    advance(system_engine)
    assert state_of(system_engine, third.id) == "waiting"
    publish_job(system_engine, second.id, "bb")
    advance(system_engine)
    assert state_of(system_engine, third.id) == "queued"


def test_a_job_is_cancelled_with_what_it_needs_and_says_why(ask: Ask, train: Ask, system_engine: Engine) -> None:
    first = train()
    second = train(depends_on=[first.id])
    third = train(depends_on=[second.id])
    ask("post", f"/fine_tuning/jobs/{first.id}/cancel")
    advance(system_engine)
    advance(system_engine)
    for job, needed in ((second, first), (third, second)):
        found = ask("get", f"/fine_tuning/jobs/{job.id}")
        assert (found["status"], found["error"]["code"]) == ("cancelled", "dependency_failed")
        assert needed.id in found["error"]["message"]


def test_a_job_cannot_wait_for_what_will_never_succeed_or_is_not_there(
    ask: Ask, train: Ask, system_engine: Engine
) -> None:
    first = train()
    ask("post", f"/fine_tuning/jobs/{first.id}/cancel")
    advance(system_engine)
    with pytest.raises(openai.BadRequestError, match="would never run"):
        train(depends_on=[first.id])
    with pytest.raises(openai.BadRequestError, match="there is no fine-tuning job"):
        train(depends_on=["ftjob-" + "0" * 32])


def test_a_waiting_job_can_be_cancelled(ask: Ask, train: Ask, system_engine: Engine) -> None:
    first = train()
    second = train(depends_on=[first.id])
    ask("post", f"/fine_tuning/jobs/{second.id}/cancel")
    advance(system_engine)
    assert state_of(system_engine, second.id) == "cancelled"


def state_of(engine: Engine, job_id: str) -> str:
    with system_session(engine) as session:
        return jobs.get_job(session, uuid.UUID(job_id.removeprefix("ftjob-"))).state
