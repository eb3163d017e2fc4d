"""Fine-tuning jobs found by what they are, described, tagged and archived."""

import itertools
import time
import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import raw, refused, reinforcement
from sqlalchemy import Engine, func, text, update

from zhub import states
from zhub.database.sessions import system_session
from zhub.ids import new_id, public_id
from zhub.models import Job
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
REQUEST = {"model": "tiny", "method": {"type": "dpo", "dpo": {"hyperparameters": {}}}, "seed": 1, "suffix": None}
REQUEST |= {"metadata": {}}
Ask = Callable[..., Any]


@pytest.fixture
def move(system_engine: Engine) -> Callable[..., None]:
    """Write columns of a job's row, as SQL."""

    def write(job_id: str, columns: str, **values: Any) -> None:
        with system_session(system_engine) as session:
            statement = text(f"UPDATE jobs /* any move */ SET {columns} WHERE id = :id")
            session.execute(statement, {"id": uuid.UUID(job_id.removeprefix("ftjob-")), **values})

    return write


@pytest.fixture
def found(client: Client) -> Callable[..., list[str]]:
    """The ids of the jobs that a list with these parameters has."""

    def ask(**query: Any) -> list[str]:
        return [job.id for job in client.fine_tuning.jobs.list(extra_query=query)]

    return ask


def test_a_status_finds_exactly_the_jobs_that_are_shown_with_it(
    client: Client, caller: Caller, make_job: Ask, api_url: str, make_key: Callable[..., str]
) -> None:
    for state, desired in itertools.product(states.JOB_STATES, states.DESIRED):
        ended, leased = state in states.TERMINAL, state in states.ACTIVE
        times = {"finished_at": func.now() if ended else None, "lease_until": func.now() if leased else None}
        make_job(caller, state=state, desired=desired, request=REQUEST, **times)
    shown = {job.id: job.status for job in client.fine_tuning.jobs.list(limit=100)}
    assert set(shown.values()) == {"queued", "running", "paused", "succeeded", "failed", "cancelled"}
    key = make_key()
    for status in sorted(set(shown.values())):
        answer = raw(api_url, key, "GET", f"/v1/fine_tuning/jobs?limit=100&status={status}").json()
        assert {job["id"] for job in answer["data"]} == {job_id for job_id, word in shown.items() if word == status}
    both = raw(api_url, key, "GET", "/v1/fine_tuning/jobs?limit=100&status=failed&status=running").json()["data"]
    assert {job["status"] for job in both} == {"failed", "running"}


def test_jobs_are_found_by_expert_method_and_time(train: Ask, move: Ask, found: Ask) -> None:
    old, winter = train(suffix="summer").id, train(suffix="winter").id
    move(old, "created_at = now() - interval '1 hour'")
    assert found(expert="winter") == [winter] == found(expert="main.winter")
    assert found(method="reinforcement") == [winter, old] and found(method="dpo") == []
    assert found(since=int(time.time()) - 600) == [winter]
    assert found(since=int(time.time()) - 7200) == [winter, old]


def test_a_job_is_found_by_its_time_though_the_clock_that_made_its_id_was_behind(
    caller: Caller, make_job: Callable[..., uuid.UUID], found: Ask
) -> None:
    behind = uuid.UUID(int=new_id().int - (12 * 3600 * 1000 << 80))
    make_job(caller, id=behind, request=REQUEST)
    assert found(since=int(time.time()) - 600) == [public_id("fine-tuning job", behind)]


def test_jobs_of_an_expert_that_is_not_there_are_not_found(client: Client, train: Ask) -> None:
    train()
    error = refused(lambda: client.fine_tuning.jobs.list(extra_query={"expert": "spring"}))
    assert (error.status_code, "spring" in error.message) == (404, True)


@pytest.mark.parametrize("words", ["SUMMER", "tiny", "sums.json", "a remark", "maths", "100%_sure", "went up"])
def test_a_search_looks_into_names_description_metadata_and_error(
    train: Ask, move: Ask, found: Ask, words: str
) -> None:
    other = train(suffix="other", metadata={"team": "x"}).id
    job = train(suffix="summer", metadata={"team": "maths", "note": "100%_sure"}).id
    move(job, "description = 'a remark', error = '{\"message\": \"it went up\"}'")
    everywhere = words in ("tiny", "sums.json")
    assert found(search=words) == ([job, other] if everywhere else [job])
    assert found(search="nothing like it") == []


def test_a_search_goes_on_from_page_to_page(client: Client, train: Ask) -> None:
    jobs = [train(suffix=f"summer-{n}").id for n in range(5)]
    train(suffix="winter")
    listed = client.fine_tuning.jobs.list(limit=2, extra_query={"search": "summer"})
    assert [job.id for job in listed] == jobs[::-1]
    oldest = client.fine_tuning.jobs.list(limit=2, extra_query={"search": "summer", "order": "asc"})
    assert [job.id for job in oldest] == jobs


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("status=done", "status"),
        ("status%5B%5D=failed", "status[]"),
        ("method=magic", "method"),
        ("order=sideways", "order"),
        ("since=yesterday", "since"),
        ("since=-1", "since"),
        ("search=", "search"),
        ("archived=perhaps", "archived"),
    ],
)
def test_a_filter_with_a_value_that_it_cannot_have_is_refused(
    api_url: str, make_key: Callable[..., str], query: str, param: str
) -> None:
    answer = raw(api_url, make_key(), "GET", f"/v1/fine_tuning/jobs?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_a_job_is_described_and_tagged_and_other_fields_stay(client: Client, ask: Ask, train: Ask, found: Ask) -> None:
    job = train(metadata={"team": "maths", "round": "1"})
    changed = ask(
        "patch", f"/fine_tuning/jobs/{job.id}", {"description": "With more rows.", "metadata": {"round": "2"}}
    )
    assert (changed["description"], changed["metadata"]) == ("With more rows.", {"round": "2"})
    assert found(**{"metadata[round]": "2"}) == [job.id]
    again = ask("patch", f"/fine_tuning/jobs/{job.id}", {"description": None})
    assert (again["description"], again["metadata"]) == (None, {"round": "2"})
    read = client.fine_tuning.jobs.retrieve(job.id)
    assert (read.status, read.hyperparameters, read.seed) == (job.status, job.hyperparameters, job.seed)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"metadata": {f"k{n}": "v" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"description": "x" * 2001}, "description"),
        ({"suffix": "winter"}, "suffix"),
    ],
)
def test_a_change_that_is_too_large_or_of_something_else_is_refused(
    ask: Ask, train: Ask, change: dict[str, Any], param: str
) -> None:
    job = train()
    error = refused(lambda: ask("patch", f"/fine_tuning/jobs/{job.id}", change))
    assert error.status_code == 400 and (error.param or "").startswith(param)
    if param == "metadata":
        made = refused(lambda: train(metadata=change["metadata"]))
        assert made.status_code == 400 and (made.param or "").startswith("metadata")


def test_an_archived_job_is_left_out_of_lists_until_it_is_asked_for_and_nothing_else_changes(
    client: Client, ask: Ask, train: Ask, found: Ask, move: Ask
) -> None:
    kept, job = train().id, train(suffix="winter").id
    move(job, "state = 'succeeded', finished_at = now()")
    archived = ask("patch", f"/fine_tuning/jobs/{job}", {"archived": True})
    assert archived["archived_at"] is not None
    assert (found(), found(archived="true")) == ([kept], [job])
    assert client.fine_tuning.jobs.retrieve(job).status == "succeeded"
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job)]
    assert messages[0] == "Changed: archived."
    assert ask("patch", f"/fine_tuning/jobs/{job}", {"archived": False})["archived_at"] is None
    assert found() == [job, kept]


def test_a_job_that_has_not_ended_or_is_queued_again_cannot_be_archived(ask: Ask, train: Ask, move: Ask) -> None:
    job = train().id
    for columns in ("spec = spec", "state = 'failed', finished_at = now(), desired = 'redrive'"):
        move(job, columns)
        error = refused(lambda: ask("patch", f"/fine_tuning/jobs/{job}", {"archived": True}))
        assert (error.status_code, error.code) == (409, "conflict")


def test_an_archived_job_that_is_queued_again_is_listed_again(ask: Ask, train: Ask, move: Ask, found: Ask) -> None:
    job = train().id
    move(job, "state = 'failed', finished_at = now()")
    ask("patch", f"/fine_tuning/jobs/{job}", {"archived": True})
    assert found() == []
    ask("post", f"/fine_tuning/jobs/{job}/redrive")
    assert found() == [job]


def test_a_change_needs_the_right_to_change_jobs(
    train: Ask, make_key: Callable[..., str], open_client: Callable[..., Client]
) -> None:
    job = train().id
    reader, stranger = open_client(make_key(scopes=("jobs:read",))), open_client(make_key("globex"))
    for client, status in ((reader, 403), (stranger, 404)):
        call = lambda client=client: client.patch(  # noqa: E731
            f"/fine_tuning/jobs/{job}", cast_to=object, body={"description": "x"}
        )
        assert refused(call).status_code == status


@pytest.mark.parametrize("best_step", [0, 3])
def test_a_job_says_what_it_led_to_and_whether_it_learned_anything(
    client: Client, publish_version: Ask, system_engine: Engine, best_step: int
) -> None:
    share = {"low": 0.0, "high": 1.0, "n": 10}
    test = {"split": "test", "base": share | {"mean": 0.25}, "expert": share | {"mean": 0.75}, "p_value": 0.01}
    publish_version(best_step=best_step, evaluations=[test])
    with system_session(system_engine) as session:
        session.execute(update(Job).values(request=REQUEST))
    (job,) = client.fine_tuning.jobs.list()
    assert job.to_dict()["result"] == {
        "best_step": best_step,
        "learned_nothing": best_step == 0,
        "base_mean": 0.25,
        "expert_mean": 0.75,
        "p_value": 0.01,
        "general_base_mean": None,
        "general_expert_mean": None,
        "general": None,
    }


def test_an_estimate_says_what_it_rests_on(ask: Ask, checked_file: str, train: Ask, move: Ask) -> None:
    def estimate(**hyperparameters: Any) -> Any:
        method = reinforcement(hyperparameters={"n_steps": 30} | hyperparameters)
        body = {"model": "tiny", "training_file": checked_file, "method": method}
        return ask("post", "/fine_tuning/jobs/estimate", body)

    nothing = estimate()
    assert nothing["based_on"] == {"trainings": 0, "same_size": False}
    assert [nothing[name] for name in ("expected_seconds", "longest_seconds", "expected_tokens")] == [None] * 3
    for seconds, tokens in ((100, 1000), (120, 3000), (200, 2000)):
        job = train(method=reinforcement(hyperparameters={"n_steps": 10})).id
        ended = "state = 'succeeded', finished_at = now(), started_at = now() - make_interval(secs => :s)"
        move(job, f"{ended}, trained_tokens = :t", s=seconds, t=tokens)
    alike, other = estimate(), estimate(batch_size=64)
    expected = [alike[name] for name in ("shortest_seconds", "expected_seconds", "longest_seconds")]
    assert expected == pytest.approx([300, 360, 600], rel=0.01)
    assert alike["expected_tokens"] == 6000
    assert (alike["based_on"], other["based_on"]) == (
        {"trainings": 3, "same_size": True},
        {"trainings": 3, "same_size": False},
    )
