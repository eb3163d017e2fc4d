"""Webhooks: written with what they tell, signed, sent at least once under one id, and never one's harm another's."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import format_datetime
from typing import Any, Final

import httpx
import openai
import pytest
from claims import claim_one
from fastapi import FastAPI
from openai import InvalidWebhookSignatureError
from sqlalchemy import Engine, func, select, text, update
from suites import manifest_of

from zhub.database.sessions import system_session, tenant_session
from zhub.ids import public_id
from zhub.models import Evaluation, Job, WebhookDelivery, WebhookEndpoint
from zhub.process.config import Settings
from zhub.queue import attempts, dependencies, jobs
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes, request_cancel, request_pause
from zhub.queue.reaper import reap
from zhub.registry.publish import publish
from zhub.tenancy.keys import Caller
from zhub.webhooks import deliveries, endpoints, outbox, relay
from zhub.webhooks.deliveries import Due
from zhub.webhooks.safe_http import Outbound, Outcome
from zhub_api.app import create_app

MakeJob = Callable[..., uuid.UUID]
MakeCaller = Callable[..., Caller]
MakeEndpoint = Callable[..., uuid.UUID]
Until = Callable[..., Any]

SUCCEEDED: Final = "fine_tuning.job.succeeded"
OK = Outcome(204, None, 0.01)
DOWN = Outcome(503, None, 0.01)


@pytest.fixture
def make_endpoint(api_engine: Engine, caller: Caller) -> MakeEndpoint:
    """Make an endpoint in acme's project, of every event unless told otherwise; columns change its row."""

    def make(
        event_types: Sequence[str] = endpoints.EVENT_TYPES,
        *,
        url: str = "https://hook.example.com/",
        owner: Caller | None = None,
    ) -> uuid.UUID:
        owner = owner or caller
        with tenant_session(api_engine, owner.org_id) as session:
            made = endpoints.create_endpoint(
                session, owner, name="", url=url, event_types=event_types, allow_private=True
            )
            return made.id

    return make


@pytest.fixture
def events(system_engine: Engine) -> Callable[[], list[tuple[str, Any]]]:
    """What is in the outbox, oldest first: types and ids of what they are about."""

    def read() -> list[tuple[str, Any]]:
        with system_session(system_engine) as session:
            found = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.event_id))
            return [(delivery.type, delivery.data["id"]) for delivery in found]

    return read


@pytest.fixture
def start(system_engine: Engine) -> Callable[[uuid.UUID], int]:
    """Have a job admitted and claimed; return its fence."""

    def begin(job_id: uuid.UUID) -> int:
        with system_session(system_engine) as session:
            session.execute(
                update(Job)
                .where(Job.id == job_id)
                .values(state="admitted", admitted_at=func.now(), cluster=str(job_id))
            )
            claimed = claim_one(session, "train", "evaluate", "validate", cluster=str(job_id))
            assert claimed is not None
            return claimed.fence

    return begin


# What is written


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled", "paused"])
def test_the_end_of_a_training_is_in_the_outbox(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any], how: str,
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        wish = {"cancelled": "cancel", "paused": "pause"}.get(how)
        if how == "failed":
            attempts.fail(session, job_id, fence, attempts.Failure("x", "It failed."))
        elif how == "succeeded":
            attempts.succeed(session, job_id, fence)
        else:
            session.execute(update(Job).where(Job.id == job_id).values(desired=wish))
            attempts.stopped(session, job_id, fence)
    assert events() == [(f"fine_tuning.job.{how}", public_id("fine-tuning job", job_id))]


def test_a_job_that_is_tried_again_has_not_ended(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        attempts.fail(session, job_id, fence, attempts.Failure("x", "It failed.", retryable=True))
    assert events() == []


@pytest.mark.parametrize(("request_it", "state"), [(request_cancel, "cancelled"), (request_pause, "paused")])
def test_what_the_leader_settles_is_in_the_outbox(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint, events: Callable[[], Any],
    request_it: Callable[..., Job], state: str,
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    with system_session(system_engine) as session:
        request_it(session, job_id)
        apply_requested_changes(session)
    assert events() == [(f"fine_tuning.job.{state}", public_id("fine-tuning job", job_id))]


def test_a_job_that_is_cancelled_with_what_it_needs_is_in_the_outbox(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    needed, waiting = make_job(caller), make_job(caller, state="waiting")
    with system_session(system_engine) as session:
        dependencies.add(session, jobs.get_job(session, waiting), [needed])
    fence = start(needed)
    with system_session(system_engine) as session:
        attempts.fail(session, needed, fence, attempts.Failure("x", "It failed."))
        release_dependents(session)
    assert events() == [
        ("fine_tuning.job.failed", public_id("fine-tuning job", needed)),
        ("fine_tuning.job.cancelled", public_id("fine-tuning job", waiting)),
    ]


def test_a_job_that_was_lost_too_often_is_in_the_outbox(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller, infra_failures=attempts.MAX_INFRA_FAILURES)
    start(job_id)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE jobs SET lease_until = now() - interval '1 second'"))
        reap(session)
    assert events() == [("fine_tuning.job.failed", public_id("fine-tuning job", job_id))]


def test_a_publication_is_in_the_outbox_beside_its_jobs_end(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        publish(session, job_id, fence, manifest_of(job_id, fence=fence), "t/x", 7)
    published = (endpoints.PUBLISHED, "main.summer@v1")
    assert sorted(events()) == [published, (SUCCEEDED, public_id("fine-tuning job", job_id))]


def test_an_evaluation_is_told_by_its_own_id(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    make_base_model: Callable[..., uuid.UUID], start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller, kind="evaluate")
    with system_session(system_engine) as session:
        within = {"org_id": caller.org_id, "project_id": caller.project_id, "base_model_id": make_base_model()}
        made = Evaluation(job_id=job_id, suite_digest="d", suite={}, **within)
        session.add(made)
    fence = start(job_id)
    with system_session(system_engine) as session:
        attempts.succeed(session, job_id, fence)
    assert events() == [("evaluation.succeeded", public_id("evaluation", made.id))]


def test_a_change_that_is_rolled_back_is_not_told(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        attempts.succeed(session, job_id, fence)
        session.rollback()
    assert events() == []


def test_nothing_is_written_where_nobody_subscribed(
    system_engine: Engine, caller: Caller, make_caller: MakeCaller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint(["fine_tuning.job.failed"])
    make_endpoint(owner=make_caller("acme", "other"))
    make_endpoint(owner=make_caller("globex"))
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        attempts.succeed(session, job_id, fence)
    assert events() == []


# How it is sent


@pytest.fixture
def enqueue(system_engine: Engine, caller: Caller) -> Callable[..., None]:
    """Put an event into the outboxes of acme's project, or of another's."""

    def put(event_type: str = SUCCEEDED, job: str = "ftjob-1", owner: Caller | None = None) -> None:
        owner = owner or caller
        with system_session(system_engine) as session:
            outbox.announce(session, owner.org_id, owner.project_id, event_type, {"id": job})

    return put


@pytest.fixture
def claim(system_engine: Engine) -> Callable[..., list[Due]]:
    def take(in_flight: Sequence[Due] = (), room: int = 64, room_of_org: int = 64) -> list[Due]:
        with system_session(system_engine) as session:
            return deliveries.claim(session, in_flight=in_flight, room=room, room_of_org=room_of_org)

    return take


@pytest.fixture
def record(system_engine: Engine) -> Callable[[Due, Outcome], WebhookDelivery]:
    def write(due: Due, outcome: Outcome) -> WebhookDelivery:
        with system_session(system_engine) as session:
            deliveries.record(session, due, outcome)
        with system_session(system_engine) as session:
            return session.scalars(select(WebhookDelivery).where(WebhookDelivery.id == due.id)).one()

    return write


@pytest.fixture
def hurry(system_engine: Engine) -> Callable[[], None]:
    """Make everything due that waits for its time."""

    def make_due() -> None:
        with system_session(system_engine) as session:
            session.execute(text("UPDATE webhook_deliveries SET next_try_at = now() WHERE next_try_at IS NOT NULL"))
            session.execute(update(WebhookEndpoint).values(not_before=None, sending_until=None))

    return make_due


def endpoint_of(engine: Engine, endpoint_id: uuid.UUID) -> WebhookEndpoint:
    with system_session(engine) as session:
        return session.scalars(select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id)).one()


@pytest.mark.parametrize(
    "event_type", ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
)
def test_the_unmodified_client_verifies_and_parses_a_delivery(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    secret_key: str, event_type: str,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue(event_type, "ftjob-7")
    (due,) = claim()
    headers = due.headers(secret_key, deliveries.now_utc())
    client = openai.OpenAI(api_key="unused")
    secret = endpoints.secret_of(endpoint_id, 0, secret_key)
    event: Any = client.webhooks.unwrap(due.body(), headers, secret=secret)
    assert (event.type, event.data.id, event.object) == (event_type, "ftjob-7", "event")
    assert event.id == headers["webhook-id"] and event.created_at == int(due.created_at.timestamp())
    for wrong in (due.body().replace("7", "8"), due.body() + " "):
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(wrong, headers, secret=secret)
    client.close()


def test_a_delivery_has_one_id_and_one_body_over_all_its_tries(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery], hurry: Callable[[], None], secret_key: str,
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    sent = set()
    for _ in range(3):
        (due,) = claim()
        sent.add((due.headers(secret_key, deliveries.now_utc())["webhook-id"], due.body()))
        record(due, DOWN)
        hurry()
    assert len(sent) == 1


def test_what_is_being_sent_is_nobody_elses(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]]
) -> None:
    make_endpoint()
    enqueue()
    assert (len(claim()), claim()) == (1, [])


def claims_run_out(engine: Engine) -> None:
    with system_session(engine) as session:
        later = timedelta(seconds=deliveries.CLAIM_S)
        session.execute(update(WebhookDelivery).values(next_try_at=WebhookDelivery.next_try_at - later))
        session.execute(update(WebhookEndpoint).values(sending_until=WebhookEndpoint.sending_until - later))


def test_what_a_relay_forgot_by_dying_is_sent_again(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]],
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    (before,) = claim()
    claims_run_out(system_engine)
    assert [due.event_id for due in claim()] == [before.event_id]


def test_an_endpoint_gets_one_event_at_a_time_and_the_oldest_first_whoever_sends(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    make_endpoint()
    for job in ("ftjob-1", "ftjob-2"):
        enqueue(job=job)
    (first,) = claim()
    assert first.data["id"] == "ftjob-1"
    assert claim() == []  # as another relay, with nothing of its own in flight
    record(first, OK)
    assert [due.data["id"] for due in claim()] == ["ftjob-2"]


def test_of_relays_that_claim_at_the_same_time_one_gets_an_endpoint(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    make_endpoint()
    for number in range(4):
        enqueue(job=f"ftjob-{number}")
    sent = []
    with ThreadPoolExecutor(6) as pool:
        while found := [due for some in pool.map(lambda _: claim(), range(6)) for due in some]:
            (due,) = found
            sent.append(due.data["id"])
            record(due, OK)
    assert sent == [f"ftjob-{number}" for number in range(4)]


def test_a_try_that_is_recorded_late_does_not_free_the_endpoint_for_a_third(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    make_endpoint()
    for job in ("ftjob-1", "ftjob-2", "ftjob-3"):
        enqueue(job=job)
    (slow,) = claim()
    claims_run_out(system_engine)
    (second,) = claim()
    record(slow, OK)
    assert (slow.data["id"], second.data["id"], claim()) == ("ftjob-1", "ftjob-2", [])
    record(second, OK)
    assert [due.data["id"] for due in claim()] == ["ftjob-3"]


def test_an_organisation_whose_receivers_hang_leaves_room_for_others(
    make_caller: MakeCaller, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], caller: Caller,
) -> None:  # fmt: skip
    other = make_caller("globex")
    for _ in range(4):
        make_endpoint()
    make_endpoint(owner=other)
    enqueue()
    enqueue(owner=other)
    first = claim(room_of_org=3)
    assert sorted(due.org_id for due in first) == sorted([caller.org_id] * 3 + [other.org_id])
    assert claim(first, room_of_org=3) == []
    assert len(claim(first[1:], room_of_org=3)) == (1 if first[0].org_id == caller.org_id else 0)


def test_what_fails_is_tried_again_for_three_days_and_then_given_up(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], hurry: Callable[[], None],
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()
    waits = []
    for _ in range(outbox.MAX_TRIES):
        (due,) = claim()
        delivery = record(due, DOWN)
        attempt = delivery.attempts[-1]
        waits.append((attempt["next_try_at"] or attempt["at"]) - attempt["at"])
        hurry()
    assert waits[-1] == 0 and claim() == []
    for waited, planned in zip(waits, outbox.BACK_OFFS_S, strict=False):
        assert planned * 0.9 - 1 <= waited <= planned * 1.1 + 1
    assert 3 * 86_400 * 0.9 <= sum(waits) <= 3.2 * 86_400 * 1.1
    assert [attempt["status_code"] for attempt in delivery.attempts] == [503] * outbox.MAX_TRIES
    assert endpoint_of(system_engine, endpoint_id).status == "disabled"


def refusal(retry_after: str | None, status: int = 429) -> Outcome:
    return Outcome(status, None, 0.01, retry_after)


def wait_of(delivery: WebhookDelivery) -> float:
    attempt = delivery.attempts[-1]
    return float(attempt["next_try_at"] - attempt["at"])


@pytest.mark.parametrize("status", [307, 404, 429, 500, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_a_receiver_is_asked_again_when_it_wants_to_be(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery], status: int, as_date: bool,
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    (due,) = claim()
    moment = format_datetime(deliveries.now_utc() + timedelta(seconds=3600), usegmt=True)
    delivery = record(due, refusal(moment if as_date else "3600", status))
    assert 3600 - 60 * as_date <= wait_of(delivery) <= 3600 * (1 + deliveries.JITTER) + 1


def test_its_other_events_wait_as_well_and_other_receivers_do_not(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    busy, free = make_endpoint([SUCCEEDED]), make_endpoint()
    for job in ("ftjob-1", "ftjob-2"):
        enqueue(job=job)
    first = {due.endpoint_id: due for due in claim()}
    record(first[busy], refusal("60"))
    record(first[free], OK)
    enqueue(job="ftjob-3")
    (other,) = claim()
    assert (other.endpoint_id, other.data["id"]) == (free, "ftjob-2")
    record(other, OK)
    with system_session(system_engine) as session:
        session.execute(update(WebhookEndpoint).values(not_before=WebhookEndpoint.not_before - timedelta(seconds=66)))
    assert {due.endpoint_id: due.data["id"] for due in claim()} == {busy: "ftjob-2", free: "ftjob-3"}


@pytest.mark.parametrize("status", [429, 410])
def test_what_the_old_address_answered_does_not_silence_the_new_one(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], status: int,
) -> None:  # fmt: skip
    endpoint = make_endpoint()
    enqueue(job="ftjob-1")
    (due,) = claim()
    with system_session(system_engine) as session:
        session.execute(update(WebhookEndpoint).values(url="https://elsewhere.example.com/"))
    record(due, refusal("3600", status))
    enqueue(job="ftjob-2")
    assert [(other.endpoint_id, other.data["id"]) for other in claim()] == [(endpoint, "ftjob-2")]


@pytest.mark.parametrize("soon", ["0", "1", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_receiver_is_never_asked_sooner_than_without_its_wish(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery], hurry: Callable[[], None], soon: str,
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    for planned in outbox.BACK_OFFS_S:
        hurry()
        (due,) = claim()
        assert wait_of(record(due, refusal(soon))) >= planned * (1 - deliveries.JITTER) - 1


@pytest.mark.parametrize("late", ["86401", "9" * 500, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_receiver_puts_off_by_a_day_and_no_more(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], late: str,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()
    (due,) = claim()
    delivery = record(due, refusal(late))
    assert 86_400 <= wait_of(delivery) <= 86_400 * (1 + deliveries.JITTER) + 1
    assert endpoint_of(system_engine, endpoint_id).not_before == delivery.next_try_at


@pytest.mark.parametrize("given", ["", "-5", "1.5", "soon", "٣", "12 h", "Wed, 99 Foo 2030 00:00:00 GMT", "\xff", None])
def test_a_wish_that_makes_no_sense_is_ignored(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], given: str | None,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()
    (due,) = claim()
    assert wait_of(record(due, refusal(given))) <= outbox.BACK_OFFS_S[0] * (1 + deliveries.JITTER) + 1
    assert endpoint_of(system_engine, endpoint_id).not_before is None


def test_an_answer_of_success_puts_nothing_off(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()
    (due,) = claim()
    assert record(due, refusal("3600", 200)).delivered_at is not None
    assert endpoint_of(system_engine, endpoint_id).not_before is None


def test_a_receiver_that_grants_one_try_at_a_time_for_ever_is_disabled_however_much_waits(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    for number in range(5):
        enqueue(job=f"ftjob-{number}")
    tried = []
    for _ in range(outbox.MAX_TRIES):
        (due,) = claim()
        tried.append(due.data["id"])
        record(due, refusal("86400"))
        with system_session(system_engine) as session:
            later = timedelta(seconds=86_400 * 1.2)
            session.execute(update(WebhookDelivery).values(next_try_at=WebhookDelivery.next_try_at - later))
            session.execute(update(WebhookEndpoint).values(not_before=WebhookEndpoint.not_before - later))
    assert set(tried) == {"ftjob-0"}
    assert endpoint_of(system_engine, endpoint_id).status == "disabled"


@pytest.mark.parametrize("how", ["test", "replay", "enable", "url"])
def test_whoever_knows_better_does_not_wait_for_what_the_receiver_asked_for(
    api_engine: Engine, caller: Caller, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], how: str,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    for _ in range(2):
        enqueue()
    (due,) = claim()
    delivery = record(due, refusal("3600"))
    assert claim() == []
    with tenant_session(api_engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, endpoint_id)
        if how == "test":
            endpoints.send_test(session, endpoint, SUCCEEDED)
        elif how == "replay":
            deliveries.replay(session, endpoint, deliveries.get_delivery(session, endpoint, delivery.id))
        else:
            url = "https://other.example.com/" if how == "url" else None
            endpoints.update_endpoint(
                session, endpoint, name=None, url=url, event_types=None, enable=how == "enable", allow_private=False
            )
    assert [found.endpoint_id for found in claim()] == [endpoint_id]


def test_an_endpoint_that_took_something_meanwhile_is_not_disabled(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], hurry: Callable[[], None],
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue(job="ftjob-bad")
    for number in range(outbox.MAX_TRIES):
        hurry()
        (due,) = claim()
        record(due, DOWN)
        if number == 0:
            enqueue(job="ftjob-good")
            (good,) = claim()
            record(good, OK)
    assert (due.data["id"], good.data["id"]) == ("ftjob-bad", "ftjob-good")
    hurry()
    assert (claim(), endpoint_of(system_engine, endpoint_id).status) == ([], "enabled")


def test_a_receiver_that_is_gone_is_sent_nothing_more_and_the_others_are_told(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], hurry: Callable[[], None],
) -> None:  # fmt: skip
    gone = make_endpoint([SUCCEEDED])
    make_endpoint([endpoints.DISABLED])
    enqueue()
    enqueue()
    (due,) = claim()
    record(due, Outcome(410, None, 0.01))
    found = endpoint_of(system_engine, gone)
    assert (found.status, found.status_details) == ("disabled", "It answered 410 Gone.")
    hurry()
    assert [(due.type, due.data["id"]) for due in claim()] == [
        (endpoints.DISABLED, public_id("webhook endpoint", gone)),
    ]


def test_what_is_delivered_is_not_sent_again(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery], hurry: Callable[[], None],
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    (due,) = claim()
    delivery = record(due, OK)
    hurry()
    assert delivery.delivered_at is not None and claim() == []


def test_for_a_day_after_a_rotation_both_secrets_sign(
    api_engine: Engine, system_engine: Engine, caller: Caller, make_endpoint: MakeEndpoint,
    enqueue: Callable[..., None], claim: Callable[..., list[Due]], hurry: Callable[[], None], secret_key: str,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()

    def who_verifies() -> list[int]:
        hurry()
        (due,) = claim()
        headers = due.headers(secret_key, deliveries.now_utc())
        client = openai.OpenAI(api_key="unused")
        able = []
        for rotation in range(3):
            try:
                client.webhooks.unwrap(
                    due.body(), headers, secret=endpoints.secret_of(endpoint_id, rotation, secret_key)
                )
                able.append(rotation)
            except InvalidWebhookSignatureError:
                pass
        client.close()
        return able

    def rotate(keep_old: bool) -> None:
        with tenant_session(api_engine, caller.org_id) as session:
            endpoints.rotate_secret(session, endpoints.get_endpoint(session, caller, endpoint_id), keep_old=keep_old)

    assert who_verifies() == [0]
    rotate(keep_old=True)
    assert who_verifies() == [0, 1]
    with system_session(system_engine) as session:
        a_day = endpoints.OLD_SECRET_FOR
        session.execute(update(WebhookEndpoint).values(old_secret_until=WebhookEndpoint.old_secret_until - a_day))
    assert who_verifies() == [1]
    rotate(keep_old=False)
    assert who_verifies() == [2]


def test_no_secret_is_in_the_database(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None], secret_key: str
) -> None:
    endpoint_id = make_endpoint()
    enqueue()
    secret = endpoints.secret_of(endpoint_id, 0, secret_key).removeprefix("whsec_")
    with system_session(system_engine) as session:
        for table in ("webhook_endpoints", "webhook_deliveries"):
            (row,) = session.scalars(text(f"SELECT to_jsonb(t)::text FROM {table} t"))
            assert secret not in row


def test_old_deliveries_and_then_deleted_endpoints_are_forgotten(
    system_engine: Engine, api_engine: Engine, caller: Caller, make_endpoint: MakeEndpoint, enqueue: Callable[..., None]
) -> None:
    deleted, kept = make_endpoint(), make_endpoint()
    enqueue()
    with tenant_session(api_engine, caller.org_id) as session:
        endpoints.delete_endpoint(session, endpoints.get_endpoint(session, caller, deleted))
    with system_session(system_engine) as session:
        deliveries.forget(session)
        assert session.scalar(select(func.count()).select_from(WebhookDelivery)) == 2
        session.execute(update(WebhookDelivery).values(created_at=func.now() - deliveries.KEPT_FOR))
        session.execute(update(WebhookDelivery).values(created_at=WebhookDelivery.created_at - timedelta(seconds=1)))
        deliveries.forget(session)
        assert session.scalar(select(func.count()).select_from(WebhookDelivery)) == 0
        assert list(session.scalars(select(WebhookEndpoint.id))) == [kept]


# The relay and the API


class Hooks:
    """Receivers of this machine: each path answers as it is told to, or hangs."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: dict[str, int] = {}
        self.retry_after: bytes | None = None
        self.hanging: set[str] = set()
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["path"], headers, body))
        if scope["path"] in self.hanging:
            await receive()  # until the client goes away
            return
        status, asked = self.statuses.get(scope["path"], 204), self.retry_after
        given = [(b"retry-after", asked)] if asked is not None else []
        await send({"type": "http.response.start", "status": status, "headers": given})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def hooks(run_server: Callable[[Any], str]) -> Hooks:
    made = Hooks()
    made.url = run_server(made).removesuffix("/v1")
    return made


@pytest.fixture
def relaying(system_engine: Engine, secret_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scheduler's thread, which looks often."""
    monkeypatch.setattr(relay, "POLL_S", 0.05)
    stopping = threading.Event()
    outbound = Outbound(allow_private=True)
    thread = threading.Thread(target=relay.relay, args=(system_engine, outbound, secret_key, stopping))
    thread.start()
    yield
    stopping.set()
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    made = create_app(settings.model_copy(update={"webhook_allow_private": True}))
    yield made
    made.state.context.engine.dispose()


Client = openai.OpenAI


def add(client: Client, url: str, event_types: Sequence[str] = (SUCCEEDED,)) -> Any:
    return client.webhooks.create(name="test", url=url, event_types=list(event_types))  # type: ignore[arg-type]


def deliveries_of(client: Client, endpoint_id: str) -> list[dict[str, Any]]:
    answer: Any = client.get(f"/webhook_endpoints/{endpoint_id}/deliveries", cast_to=object)
    return list(answer["data"])


def test_an_event_arrives_signed_with_the_secret_that_was_shown_once(
    client: Client, hooks: Hooks, relaying: None, enqueue: Callable[..., None], until: Until
) -> None:
    made = add(client, f"{hooks.url}/hook")
    enqueue(job="ftjob-7")
    (delivered,) = until(lambda: [d for d in deliveries_of(client, made.id) if d["status"] == "delivered"])
    ((path, headers, body),) = hooks.requests
    event: Any = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert (path, event.type, event.data.id) == ("/hook", SUCCEEDED, "ftjob-7")
    assert delivered["event_id"] == headers["webhook-id"]
    assert [attempt["status_code"] for attempt in delivered["attempts"]] == [204]
    shown = client.webhooks.retrieve(made.id)
    assert made.signing_secret not in shown.to_json() and made.signing_secret.endswith(
        (shown.signing_secret_hint or "").removeprefix("whsec_…")
    )


def test_a_receiver_that_hangs_delays_no_other(
    client: Client, hooks: Hooks, relaying: None, enqueue: Callable[..., None], until: Until
) -> None:
    hooks.hanging.add("/slow")
    add(client, f"{hooks.url}/slow")
    enqueue()
    until(lambda: hooks.requests)
    add(client, f"{hooks.url}/fast")
    for number in range(5):
        enqueue(job=f"ftjob-{number}")
    until(lambda: [path for path, *_ in hooks.requests].count("/fast") == 5)
    assert [path for path, *_ in hooks.requests].count("/slow") == 1


def test_the_owner_of_an_endpoint_sees_what_its_receiver_asked_for(
    client: Client, hooks: Hooks, relaying: None, enqueue: Callable[..., None], until: Until
) -> None:
    hooks.statuses["/hook"], hooks.retry_after = 503, b"3600"
    made = add(client, f"{hooks.url}/hook")
    assert made.to_dict()["not_before"] is None
    enqueue()
    (delivery,) = until(lambda: [d for d in deliveries_of(client, made.id) if d["attempts"]])
    (attempt,) = delivery["attempts"]
    assert attempt["at"] + 3600 <= attempt["next_try_at"] == delivery["next_try_at"]
    assert client.webhooks.retrieve(made.id).to_dict()["not_before"] == delivery["next_try_at"]


def test_a_test_is_sent_the_way_of_real_events_and_says_what_came_back(
    client: Client, hooks: Hooks, relaying: None
) -> None:
    made = add(client, f"{hooks.url}/hook")
    result: Any = client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    assert (result.success, result.status_code, result.event_type) == (True, 204, "fine_tuning.job.failed")
    hooks.statuses["/hook"] = 500
    result = client.webhooks.test(made.id, event_type=SUCCEEDED)
    assert (result.success, result.status_code) == (False, 500)
    ((_, headers, body), _) = hooks.requests
    event: Any = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert event.data.test is True
    # One try and no more, and the endpoint stays: it was only asked.
    assert [d["status"] for d in deliveries_of(client, made.id)] == ["failed", "delivered"]
    assert client.webhooks.retrieve(made.id).to_dict()["status"] == "enabled"


def test_an_event_that_was_given_up_can_be_replayed_under_its_old_id(
    client: Client, hooks: Hooks, relaying: None, enqueue: Callable[..., None], until: Until
) -> None:
    hooks.statuses["/hook"] = 410
    made = add(client, f"{hooks.url}/hook")
    enqueue()
    (failed,) = until(lambda: [d for d in deliveries_of(client, made.id) if d["status"] == "failed"])
    replay = f"/webhook_endpoints/{made.id}/deliveries/{failed['id']}/replay"
    with pytest.raises(openai.ConflictError, match="410 Gone"):
        client.post(replay, body={}, cast_to=object)
    hooks.statuses.clear()
    client.webhooks.update(made.id, extra_body={"status": "enabled"})
    client.post(replay, body={}, cast_to=object)
    (delivered,) = until(lambda: [d for d in deliveries_of(client, made.id) if d["status"] == "delivered"])
    assert [attempt["status_code"] for attempt in delivered["attempts"]] == [410, 204]
    assert len({headers["webhook-id"] for _, headers, _ in hooks.requests}) == 1


def test_the_client_manages_endpoints(client: Client) -> None:
    made = add(client, "https://hook.example.com/a")
    client.webhooks.update(made.id, name="renamed", url="https://hook.example.com/b")
    (listed,) = client.webhooks.list()
    assert (listed.name, listed.url, listed.event_types) == ("renamed", "https://hook.example.com/b", [SUCCEEDED])
    assert client.webhooks.rotate_secret(made.id).signing_secret != made.signing_secret
    assert SUCCEEDED in client.webhooks.event_types.list().data
    assert client.webhooks.delete(made.id).deleted
    assert list(client.webhooks.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_deliveries_come_in_pages(client: Client, enqueue: Callable[..., None]) -> None:
    made = add(client, "https://hook.example.com/")
    for number in range(5):
        enqueue(job=f"ftjob-{number}")
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        answer: Any = client.get(
            f"/webhook_endpoints/{made.id}/deliveries",
            cast_to=object,
            options={"params": {"limit": "2", **after}},
        )
        found += [entry["data"]["id"] for entry in answer["data"]]
        if not answer["has_more"]:
            break
        after = {"after": answer["last_id"]}
    assert sorted(found) == [f"ftjob-{number}" for number in range(5)]


def refused(client: Client, **body: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/webhook_endpoints", body=body, cast_to=object)
    return caught.value


def test_an_endpoint_that_makes_no_sense_is_refused_with_a_reason(client: Client) -> None:
    unknown = refused(client, url="https://hook.example.com/", event_types=["fine_tuning.job.exploded"])
    assert unknown.param == "event_types" and "fine_tuning.job.paused" in unknown.message
    none = refused(client, url="https://hook.example.com/", event_types=[])
    assert none.param == "event_types" and "at least one" in none.message
    metadata = refused(client, url="http://169.254.169.254/latest", event_types=[SUCCEEDED])
    assert (metadata.param, metadata.code) == ("url", "address_refused")


def test_a_project_has_so_many_endpoints_and_no_more(client: Client, make_endpoint: MakeEndpoint) -> None:
    for _ in range(endpoints.MAX_ENDPOINTS):
        make_endpoint()
    with pytest.raises(openai.RateLimitError) as refused:
        add(client, "https://hook.example.com/")
    assert refused.value.code == "quota_exceeded"


def test_without_the_operators_leave_an_endpoint_is_public_and_encrypted(
    serve: Callable[[Settings], str], settings: Settings, make_key: Callable[..., str]
) -> None:
    url = serve(settings)
    headers = {"authorization": f"Bearer {make_key()}"}
    for target, code in (("http://hook.example.com/", "invalid_request"), ("https://10.0.0.1/", "address_refused")):
        body = {"url": target, "event_types": [SUCCEEDED]}
        answer = httpx.post(f"{url}/webhook_endpoints", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
