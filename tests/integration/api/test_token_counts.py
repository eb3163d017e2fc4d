"""Rows longer than a base's context: counted once, and all of them named before a training is queued."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused, reinforcement
from claims import admit_queued, claim_one
from sqlalchemy import Engine, func, select

from zhub.database.sessions import system_session
from zhub.kinds.outcomes import record_failure, record_success
from zhub.models import Job
from zhub.queue.attempts import Failure
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
Ask = Callable[..., Any]
MAX_NAMED = 200


@pytest.fixture
def count(ask: Ask, checked_file: str) -> Callable[..., Any]:
    """POST the request for a count; by default of the file that there is."""

    def post(file_id: str = checked_file, model: str = "tiny") -> Any:
        return ask("post", f"/files/{file_id}/token_counts", {"model": model})

    return post


@pytest.fixture
def counted(system_engine: Engine) -> Callable[..., None]:
    """Do what a worker does that finds these rows too long."""

    def work(
        *long_rows: tuple[int, int], count: int | None = None, failure: Failure | None = None, **more: Any
    ) -> None:
        with system_session(system_engine) as session:
            admit_queued(session)
            claim = claim_one(session, "count_tokens")
            assert claim is not None and claim.spec["base"]["name"] == "tiny"
            if failure is not None:
                record_failure(session, claim.job_id, claim.fence, failure)
                return
            report = {"context_length": 64, "long_row_count": count or len(long_rows), "long_rows": long_rows}
            record_success(session, claim.job_id, claim.fence, report | more)

    return work


def jobs_of(engine: Engine, kind: str) -> int:
    with system_session(engine) as session:
        return session.scalars(select(func.count()).where(Job.kind == kind)).one()


def test_tokens_are_counted_once_for_a_file_and_a_base(
    count: Ask, counted: Ask, checked_file: str, system_engine: Engine
) -> None:
    waiting = count()
    assert (waiting["status"], waiting["long_row_count"], waiting["long_rows"]) == ("counting", None, [])
    assert count() == waiting
    counted((3, 70), (7, 90))
    done = count()
    assert (done["status"], done["context_length"], done["long_row_count"]) == ("counted", 64, 2)
    assert done["long_rows"] == [{"line": 3, "tokens": 70}, {"line": 7, "tokens": 90}]
    assert (done["file"], done["model"], jobs_of(system_engine, "count_tokens")) == (checked_file, "tiny", 1)


def test_a_count_says_that_the_tokenizer_does_not_know_the_language(count: Ask, counted: Ask) -> None:
    assert count()["tokenizer_warning"] is None
    counted(tokenizer_warning="It is split into 12 times the tokens of English.")
    assert count()["tokenizer_warning"] == "It is split into 12 times the tokens of English."


def test_a_count_that_failed_says_why_and_is_made_anew(count: Ask, counted: Ask, system_engine: Engine) -> None:
    count()
    counted(failure=Failure("training_error", "line 3: the chat template refuses it."))
    failed = count()  # this enqueues it again
    assert failed["status"] == "counting" and jobs_of(system_engine, "count_tokens") == 2
    counted()
    assert count()["status"] == "counted"


def test_a_training_on_rows_that_are_too_long_is_refused_with_all_of_them(
    client: Client, ask: Ask, count: Ask, counted: Ask, checked_file: str, system_engine: Engine
) -> None:
    body = {"model": "tiny", "training_file": checked_file, "method": reinforcement()}
    count()
    assert ask("post", "/fine_tuning/jobs/estimate", body)["expert"]
    counted((3, 70), (7, 90), count=MAX_NAMED + 2)
    for path in ("/fine_tuning/jobs/estimate", "/fine_tuning/jobs"):
        error = refused(lambda path=path: ask("post", path, body))  # type: ignore[misc]
        assert (error.status_code, error.code, error.param) == (400, "prompt_too_long", "training_file")
        assert "line 3 (70 tokens), line 7 (90 tokens) and 200 more" in str(error)
    assert jobs_of(system_engine, "train") == 0


@pytest.mark.parametrize("how", ["skip", "cut"])
def test_a_training_that_leaves_long_rows_out_or_cuts_them_is_accepted(
    ask: Ask, count: Ask, counted: Ask, checked_file: str, how: str
) -> None:
    count()
    counted((3, 70))
    method = reinforcement(hyperparameters={"long_rows": how})
    job = ask("post", "/fine_tuning/jobs", {"model": "tiny", "training_file": checked_file, "method": method})
    assert job["hyperparameters"]["long_rows"] == how


def test_rows_of_the_validation_file_are_named_as_such(
    ask: Ask, count: Ask, counted: Ask, checked_file: str, make_file: Ask, caller: Caller
) -> None:
    validation = make_file(caller)
    count(validation)
    counted((2, 80))
    body = {"model": "tiny", "training_file": checked_file, "validation_file": validation, "method": reinforcement()}
    assert "validation file, line 2 (80 tokens)" in str(refused(lambda: ask("post", "/fine_tuning/jobs", body)))


def test_a_count_needs_a_base_that_is_ready_and_a_file_that_is_checked(
    client: Client, count: Ask, make_base_model: Ask
) -> None:
    assert refused(lambda: count(model="none")).code == "model_not_found"
    assert refused(lambda: count(file_id=f"file-{'0' * 32}")).status_code == 404
    unchecked = client.files.create(file=("new.jsonl", b"{}\n"), purpose="evals").id
    assert refused(lambda: count(unchecked)).code == "not_ready"


def test_a_file_may_be_deleted_while_its_tokens_are_counted(client: Client, count: Ask, checked_file: str) -> None:
    count()
    assert client.files.delete(checked_file).deleted
    assert refused(count).status_code == 404
