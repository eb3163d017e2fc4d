"""Evaluations from the request to the verdict: run once for each subject and suite, compared on the same rows."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import openai
import pytest
from claims import admit_queued, claim_one
from sqlalchemy import Engine, func, select, text, update
from suites import GRADER, N, right_in, run

from zhub.admission.explain import explain
from zhub.database.sessions import system_session, tenant_session
from zhub.evaluation import evaluations
from zhub.evaluation.evaluations import EvaluationRequest
from zhub.evaluation.statistics import paired_bootstrap, paired_p_value
from zhub.graders import parse_grader
from zhub.kinds import outcomes, table
from zhub.models import Agent, DatasetVersion, Evaluation, Job, JobEvent
from zhub.queue import attempts
from zhub.queue.attempts import Failure
from zhub.specs import EvaluateSpec
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
Ask = Callable[..., Any]


@pytest.fixture
def create(client: Client, suite_file: str) -> Callable[..., dict[str, Any]]:
    """POST /v1/evaluations of the suite's file."""

    def post(model: str = "tiny", **options: Any) -> dict[str, Any]:
        body = {"model": model, "file": suite_file, "grader": GRADER} | options
        answer: Any = client.post("/evaluations", body=body, cast_to=object)
        return dict(answer)

    return post


def fetch(client: Client, evaluation_id: str) -> dict[str, Any]:
    answer: Any = client.get(f"/evaluations/{evaluation_id}", cast_to=object)
    return dict(answer)


def queued(engine: Engine) -> list[Job]:
    with system_session(engine) as session:
        return list(session.scalars(select(Job).where(Job.kind == "evaluate").order_by(Job.id)))


def better_experts(spec: EvaluateSpec) -> list[float]:
    return right_in(10 if spec.z is None else 30)


# What is run


def test_a_version_is_measured_beside_its_base(
    create: Callable[..., Any], publish_version: Callable[..., str], system_engine: Engine
) -> None:
    name = publish_version()
    made = create(name)
    assert (made["model"], made["status"], made["results"]) == (name, "queued", None)
    assert [other["model"] for other in made["others"]] == ["tiny"]
    specs = [EvaluateSpec.model_validate(job.spec) for job in queued(system_engine)]
    assert [spec.z and (spec.z.key, spec.z.sha256, spec.z.recipe) for spec in specs] == [
        ("k/z.safetensors", "e" * 64, "supervised"),
        None,
    ]


def test_the_same_subject_and_suite_are_never_run_twice(
    create: Callable[..., Any], publish_version: Callable[..., str], system_engine: Engine, store: DirectoryStore
) -> None:
    name = publish_version()
    first = create(name)
    assert run(system_engine, store, better_experts) == 2
    assert create(name)["id"] == first["id"]
    assert run(system_engine, store, better_experts) == 0


def test_comparing_with_another_version_runs_only_what_is_missing(
    create: Callable[..., Any], publish_version: Callable[..., str], system_engine: Engine
) -> None:
    first, second = publish_version(), publish_version()
    create(first)
    create(second, compare_with=[first, second, "tiny"])
    assert len(queued(system_engine)) == 3


@pytest.mark.parametrize(
    "other",
    [{"max_new_tokens": 5}, {"k": 2}, {"grader": GRADER | {"operation": "ne"}}],
    ids=lambda one: next(iter(one)),
)
def test_another_setting_is_another_suite(
    create: Callable[..., Any], system_engine: Engine, other: dict[str, Any]
) -> None:
    assert create()["id"] != create(**other)["id"]
    assert len(queued(system_engine)) == 2


def test_settings_of_sampling_make_no_other_suite_where_nothing_is_sampled(create: Callable[..., Any]) -> None:
    assert create(seed=1, temperature=0.5)["id"] == create(seed=2)["id"]
    assert create(k=2, seed=1)["id"] != create(k=2, seed=2)["id"]


def test_an_evaluation_that_failed_is_run_again_under_its_id(
    create: Callable[..., Any], client: Client, system_engine: Engine
) -> None:
    first = create()
    with system_session(system_engine) as session:
        admit_queued(session)
        claim = claim_one(session, "evaluate")
        assert claim is not None
        attempts.fail(session, claim.job_id, claim.fence, Failure("x", "It broke."), outcome="failed_user")
    failed = fetch(client, first["id"])
    assert (failed["status"], failed["error"]["message"]) == ("failed", "It broke.")
    again = create()
    assert (again["id"], again["status"], again["error"]) == (first["id"], "queued", None)


def test_requests_at_the_same_time_run_a_suite_once(
    api_engine: Engine, caller: Caller, suite_file: str, system_engine: Engine
) -> None:
    request = EvaluationRequest(model="tiny", file=suite_file, grader=GRADER)
    grader = parse_grader(GRADER, param="grader")

    def ask(_index: int) -> uuid.UUID:
        with tenant_session(api_engine, caller.org_id) as session:
            return evaluations.create(session, caller, request, grader)[0].id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(6)))) == 1
    assert len(queued(system_engine)) == 1


# Where it is run


def test_evaluations_go_to_the_cluster_that_is_asked_for_and_otherwise_to_the_default(
    create: Callable[..., Any], publish_version: Callable[..., str], make_agent: Ask, system_engine: Engine
) -> None:
    make_agent(cluster="h100")
    assert create(publish_version(), cluster="h100")["cluster"] == "h100"
    assert [job.cluster for job in queued(system_engine)] == ["h100", "h100"]
    assert create(k=2)["cluster"] == "default"


def test_the_cluster_makes_no_other_suite_and_a_queued_evaluation_moves_where_it_is_asked_for(
    create: Callable[..., Any], make_agent: Ask, system_engine: Engine
) -> None:
    make_agent(cluster="h100")
    first = create()
    moved = create(cluster="h100")
    assert (moved["id"], moved["cluster"]) == (first["id"], "h100")
    # Who does not care where leaves it there.
    assert create()["cluster"] == "h100"
    with system_session(system_engine) as session:
        told = session.scalars(select(JobEvent.message).order_by(JobEvent.position.desc()).limit(1)).one()
    assert told == "It was asked for on cluster 'h100', and waits there now."


def test_a_queued_evaluation_is_not_moved_to_where_no_agent_is_alive(
    create: Callable[..., Any], make_agent: Ask, system_engine: Engine
) -> None:
    gone = make_agent(cluster="h100")
    create()
    with system_session(system_engine) as session:
        session.execute(update(Agent).where(Agent.id == gone).values(seen_at=func.now() - timedelta(minutes=1)))
    assert create(cluster="h100")["cluster"] == "default"


@pytest.mark.parametrize("state", ["admitted", "running", "succeeded"])
def test_an_evaluation_that_has_left_the_queue_stays_where_it_is(
    create: Callable[..., Any], make_agent: Ask, system_engine: Engine, state: str
) -> None:
    make_agent(cluster="h100")
    create()
    with system_session(system_engine) as session:
        columns = {"state": state, "lease_until": func.now() if state == "running" else None}
        ended = {"finished_at": func.now()} if state == "succeeded" else {}
        put = update(Job).prefix_with("/* any move */").where(Job.kind == "evaluate")
        session.execute(put.values(**columns, **ended))
    assert create(cluster="h100")["cluster"] == "default"


def test_a_cluster_that_nobody_offers_is_refused_and_leaves_nothing(
    create: Callable[..., Any], make_agent: Ask, system_engine: Engine
) -> None:
    make_agent(cluster="a10")
    with pytest.raises(openai.BadRequestError, match="'h100' within a day.* give one of: a10") as refused:
        create(cluster="h100")
    assert refused.value.param == "cluster" and queued(system_engine) == []


def test_an_evaluation_whose_cluster_is_away_says_so_and_which_are_there(
    create: Callable[..., Any], client: Client, make_agent: Ask, system_engine: Engine
) -> None:
    for cluster in ("a10", "default", "h100"):
        make_agent(cluster=cluster)
    made = create(cluster="h100")
    path = f"/evaluations/{made['id']}/queue"
    before: Any = client.get(path, cast_to=object)
    assert (before["object"], before["job_id"], before["status"]) == ("evaluation.queue", made["id"], "queued")
    with system_session(system_engine) as session:
        session.execute(text("UPDATE agents SET seen_at = now() - interval '1 minute' WHERE cluster = 'h100'"))
        explain(session, table.names(), agent_lost_after_s=30)
    after: Any = client.get(path, cast_to=object)
    assert after["reason"] == (
        "No agent of cluster 'h100' is alive: nothing runs there until one is started. "
        "Agents are alive of: a10, default."
    )


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nothing"}, 404, None),
        ({"model": "auto"}, 400, "model"),
        ({"compare_with": ["main.none@v1"]}, 404, None),
        ({"file": "file-0"}, 404, None),
        ({"grader": {"type": "no_such"}}, 400, "grader"),
        ({"grader": GRADER | {"reference": "{{item.missing}}"}}, 400, "grader.reference"),
        ({"k": 0}, 400, "k"),
        ({"k": "2"}, 400, "k"),
        ({"temperature": 0}, 400, "temperature"),
        ({"nonsense": 1}, 400, "nonsense"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_and_leaves_nothing(
    create: Callable[..., Any],
    make_base_model: Callable[..., uuid.UUID],
    system_engine: Engine,
    body: dict[str, Any],
    status: int,
    param: str | None,
) -> None:
    make_base_model("other", is_default=True)
    with pytest.raises(openai.APIStatusError) as caught:
        create(**body)
    assert caught.value.status_code == status
    assert param is None or (caught.value.param or "").startswith(param)
    assert queued(system_engine) == []


def test_a_file_of_too_many_rows_is_refused(
    create: Callable[..., Any], suite_file: str, system_engine: Engine, owner_engine: Engine
) -> None:
    with system_session(system_engine) as session:
        found = session.get(DatasetVersion, uuid.UUID(suite_file.removeprefix("file-")))
        assert found is not None
        found.validation = dict(found.validation or {}) | {"rows": evaluations.MAX_EVALUATED_ROWS + 1}
    with pytest.raises(openai.BadRequestError, match="at most 10,000"):
        create()


# What is found


def test_a_finished_evaluation_has_its_mean_interval_and_parse_failures(
    create: Callable[..., Any], client: Client, system_engine: Engine, store: DirectoryStore
) -> None:
    made = create()
    run(system_engine, store, lambda _spec: right_in(30))
    found = fetch(client, made["id"])
    assert found["status"] == "succeeded" and found["finished_at"] is not None
    results = found["results"]
    assert (results["mean"], results["n"], results["parse_failures"], results["pass_at_k"]) == (0.75, N, 10, None)
    assert results["low"] < 0.75 < results["high"]


def test_a_version_that_is_better_than_its_base_is_said_to_be_better_and_the_base_worse(
    create: Callable[..., Any],
    publish_version: Callable[..., str],
    client: Client,
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    name = publish_version()
    made = create(name)
    run(system_engine, store, better_experts)
    (base,) = fetch(client, made["id"])["others"]
    found = base["comparison"]
    assert (found["verdict"], found["difference"], found["n"]) == ("better", 0.5, N)
    assert found["p_value"] == paired_p_value(right_in(10), right_in(30))
    assert (found["low"], found["high"]) == paired_bootstrap(right_in(10), right_in(30))
    assert found["sentence"].startswith(f"{name} is better than tiny (+50.0 points")
    (expert,) = fetch(client, base["id"])["others"]
    assert expert["comparison"]["verdict"] == "worse"


def test_a_version_inside_the_noise_says_so(
    create: Callable[..., Any],
    publish_version: Callable[..., str],
    client: Client,
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    made = create(publish_version())
    run(system_engine, store, lambda spec: right_in(20 if spec.z is None else 22))
    (base,) = fetch(client, made["id"])["others"]
    assert base["comparison"]["verdict"] == "inside the noise"
    assert "inside the noise" in base["comparison"]["sentence"]


def test_nothing_is_compared_before_both_have_finished(
    create: Callable[..., Any], publish_version: Callable[..., str], client: Client, system_engine: Engine
) -> None:
    made = create(publish_version())
    assert fetch(client, made["id"])["others"][0]["comparison"] is None


def test_an_expert_measured_on_its_own_training_file_comes_with_a_warning(
    create: Callable[..., Any], publish_version: Callable[..., str], suite_file: str, system_engine: Engine
) -> None:
    with system_session(system_engine) as session:
        sha256 = session.scalars(select(DatasetVersion.sha256)).one()
    clean, flattered = publish_version("clean"), publish_version("flattered", dataset_digest=sha256)
    assert create(clean)["warnings"] == []
    assert "flatter" in create(flattered)["warnings"][0]


def test_the_rows_of_a_finished_evaluation_can_be_read(
    create: Callable[..., Any], client: Client, system_engine: Engine, store: DirectoryStore
) -> None:
    made = create()
    path = f"/evaluations/{made['id']}/rows"
    with pytest.raises(openai.ConflictError, match="not finished"):
        client.get(path, cast_to=object)
    run(system_engine, store, better_experts)
    answer = client.get(path, cast_to=httpx.Response)
    assert answer.text == '{"line": 1}\n'


def test_evaluations_are_listed_newest_first_page_by_page(create: Callable[..., Any], client: Client) -> None:
    made = [create(max_new_tokens=n)["id"] for n in (1, 2, 3)]
    first: Any = client.get("/evaluations?limit=2", cast_to=object)
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (made[:0:-1], True)
    rest: Any = client.get(f"/evaluations?limit=2&after={first['last_id']}", cast_to=object)
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (made[:1], False)


def test_another_project_sees_no_evaluation_and_shares_none(
    create: Callable[..., Any],
    open_client: Callable[..., Client],
    make_key: Callable[..., str],
    make_caller: Callable[..., Caller],
    make_file: Callable[..., str],
) -> None:
    made = create()
    stranger = open_client(make_key("acme", "other"))
    with pytest.raises(openai.NotFoundError):
        stranger.get(f"/evaluations/{made['id']}", cast_to=object)
    body = {"model": "tiny", "file": make_file(make_caller("acme", "other")), "grader": GRADER}
    theirs: Any = stranger.post("/evaluations", body=body, cast_to=object)
    assert theirs["id"] != made["id"] and theirs["others"] == []


@pytest.mark.parametrize(
    "changed",
    [{"rewards": []}, {"rewards": [float("nan")]}, {"parsed": []}, {"rows_key": "t/elsewhere"}, {"rewards": None}],
)
def test_a_report_that_cannot_be_right_is_refused(
    create: Callable[..., Any], system_engine: Engine, changed: dict[str, Any]
) -> None:
    create()
    (job,) = queued(system_engine)
    key = f"t/{job.org_id.hex}/jobs/{job.id.hex}/rows.jsonl"
    report = {"rewards": [1.0], "parsed": [True], "pass_at_k": None, "rows_key": key} | changed
    with system_session(system_engine) as session:
        admit_queued(session)
        claim = claim_one(session, "evaluate")
    assert claim is not None
    with pytest.raises(ValueError), system_session(system_engine) as session:
        outcomes.record_success(session, claim.job_id, claim.fence, report)
    with system_session(system_engine) as session:
        assert session.scalars(select(Evaluation.results)).one() is None
