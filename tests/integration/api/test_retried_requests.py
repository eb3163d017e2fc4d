"""Requests that are sent again: what the client retries, and one job for each idempotency key."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from api_requests import refused, upload
from suites import METHOD

Client = openai.OpenAI
OpenClient = Callable[..., openai.OpenAI]
MakeKey = Callable[..., str]


class Counted(httpx.HTTPTransport):
    """Real HTTP that counts requests, and loses the answer to the first ``lost`` of them on the way back."""

    def __init__(self, lost: int = 0) -> None:
        super().__init__()
        self.requests = 0
        self._lost = lost

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        response = super().handle_request(request)
        if self.requests <= self._lost:
            response.read()
            response.close()
            raise httpx.ReadError("the answer was lost", request=request)
        return response


@pytest.fixture
def counting(open_client: OpenClient, make_key: MakeKey) -> Iterator[Callable[..., tuple[Client, Counted]]]:
    transports: list[httpx.Client] = []

    def make(*, lost: int = 0, max_retries: int = 2) -> tuple[Client, Counted]:
        transport = Counted(lost)
        transports.append(httpx.Client(transport=transport))
        return open_client(make_key(), max_retries=max_retries, http_client=transports[-1]), transport

    yield make
    for transport in transports:
        transport.close()


def test_a_file_that_is_not_checked_yet_is_a_conflict_that_the_client_retries(
    counting: Callable[..., tuple[Client, Counted]], make_base_model: Callable[..., uuid.UUID]
) -> None:
    make_base_model()
    client, transport = counting(max_retries=1)
    file = upload(client)
    before = transport.requests
    error = refused(lambda: client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=METHOD))
    assert (error.status_code, error.code, transport.requests - before) == (409, "not_ready", 2)


def test_a_conflict_that_never_passes_is_not_retried(
    counting: Callable[..., tuple[Client, Counted]], publish: Callable[..., str]
) -> None:
    publish()
    client, transport = counting(max_retries=2)
    (job,) = client.fine_tuning.jobs.list()
    before = transport.requests
    refused(lambda: client.fine_tuning.jobs.cancel(job.id))
    assert transport.requests - before == 1


def test_a_request_whose_answer_was_lost_makes_one_job(
    counting: Callable[..., tuple[Client, Counted]], checked_file: str
) -> None:
    client, transport = counting(lost=1)
    job = client.fine_tuning.jobs.create(model="tiny", training_file=checked_file, method=METHOD)
    assert transport.requests == 2
    assert [found.id for found in client.fine_tuning.jobs.list()] == [job.id]


def test_the_same_request_made_twice_on_purpose_makes_two_jobs(train: Callable[..., Any]) -> None:
    assert train().id != train().id


def test_a_retry_of_another_request_makes_another_job(train: Callable[..., Any]) -> None:
    first = train(seed=1)
    second = train(seed=2, extra_headers={"x-stainless-retry-count": "1"})
    assert first.id != second.id


def test_one_idempotency_key_makes_one_job(client: Client, train: Callable[..., Any]) -> None:
    made = {train(extra_headers={"Idempotency-Key": "k"}).id for _ in range(2)}
    assert made == {job.id for job in client.fine_tuning.jobs.list()} and len(made) == 1


def test_one_idempotency_key_with_two_bodies_is_refused(train: Callable[..., Any]) -> None:
    train(seed=1, extra_headers={"Idempotency-Key": "k"})
    error = refused(lambda: train(seed=2, extra_headers={"Idempotency-Key": "k"}))
    assert (error.status_code, error.code, error.param) == (422, "idempotency_mismatch", "Idempotency-Key")


def test_an_idempotency_key_belongs_to_its_project(
    open_client: OpenClient,
    make_key: MakeKey,
    train: Callable[..., Any],
    check_files: Callable[[], None],
) -> None:
    other = open_client(make_key("acme", "other"))
    file = upload(other)
    check_files()
    headers = {"Idempotency-Key": "k"}
    theirs = other.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=METHOD, extra_headers=headers)
    assert train(extra_headers=headers).id != theirs.id


def test_requests_with_one_idempotency_key_at_the_same_time_make_one_job(
    client: Client, train: Callable[..., Any]
) -> None:
    barrier = threading.Barrier(4)

    def create(_index: int) -> Any:
        barrier.wait(timeout=10)
        try:
            return train(extra_headers={"Idempotency-Key": "k"}).id
        except openai.ConflictError:  # still in flight: the client would try again by itself
            return None

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(create, range(4))) - {None}
    assert answers == {job.id for job in client.fine_tuning.jobs.list()} and len(answers) == 1
