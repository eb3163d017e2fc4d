"""Who gets the free workers of a cluster: weights, caps, large jobs, and what may go before them."""

import uuid
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhub.admission.fair_share import (
    HALF_LIFE_S,
    HORIZON_S,
    MIN_RUN_S,
    Preemptible,
    Running,
    Tenant,
    Waiting,
    order,
    plan,
    reclaim,
    starts,
)

A, B, C = (uuid.UUID(int=n) for n in (1, 2, 3))


def jobs(*workers: float, expected_s: float | None = None) -> list[Waiting]:
    return [Waiting(uuid.uuid4(), count, expected_s) for count in workers]


def shares(admitted: list[tuple[uuid.UUID, Waiting]]) -> dict[uuid.UUID, float]:
    found: dict[uuid.UUID, float] = {}
    for org, job in admitted:
        found[org] = found.get(org, 0.0) + job.workers
    return found


def test_equal_tenants_share_equally_however_many_jobs_one_of_them_has() -> None:
    queues = {A: jobs(*[1.0] * 50), B: jobs(*[1.0] * 3), C: jobs(1.0)}
    assert shares(plan(7, [], dict.fromkeys(queues, Tenant()), queues)) == {A: 3, B: 3, C: 1}


def test_a_weight_of_two_is_worth_twice_as_many_workers() -> None:
    queues = {A: jobs(*[1.0] * 50), B: jobs(*[1.0] * 50)}
    assert shares(plan(9, [], {A: Tenant(), B: Tenant(weight=2)}, queues)) == {A: 3, B: 6}


def test_who_has_used_more_waits() -> None:
    queues = {A: jobs(1.0), B: jobs(1.0)}
    ((org, _),) = plan(1, [], {A: Tenant(used=100.0), B: Tenant()}, queues)
    assert org == B


def test_workers_that_are_held_count_at_once() -> None:
    queues = {A: jobs(1.0), B: jobs(1.0)}
    ((org, _),) = plan(1, [], {A: Tenant(held=1), B: Tenant(used=0.9 * HORIZON_S)}, queues)
    assert org == B


def test_jobs_of_one_tenant_keep_their_order() -> None:
    queue = jobs(1.0, 1.0, 1.0)
    assert [job for _, job in plan(3, [], {A: Tenant()}, {A: queue})] == queue


def test_nobody_holds_more_than_its_cap() -> None:
    queues = {A: jobs(*[1.0] * 5), B: jobs(1.0)}
    assert shares(plan(8, [], {A: Tenant(held=1, cap=3), B: Tenant()}, queues)) == {A: 2, B: 1}


def test_places_of_a_worker_add_up_to_a_worker() -> None:
    assert len(plan(2, [], {A: Tenant()}, {A: jobs(*[1 / 3] * 10)})) == 6


def test_a_large_job_gets_the_workers_that_are_free_next() -> None:
    large, small = jobs(4.0), jobs(*[1.0] * 5)
    running = [Running(1.0, left_s=100.0)]
    assert plan(3, running, {A: Tenant(), B: Tenant(used=1.0)}, {A: large, B: small}) == []


def test_what_is_done_by_then_goes_before_a_large_job() -> None:
    large, short, long = jobs(4.0), jobs(1.0, expected_s=90.0), jobs(1.0, expected_s=110.0)
    running = [Running(1.0, left_s=100.0)]
    tenants = {A: Tenant(), B: Tenant(used=1.0), C: Tenant(used=1.0)}
    assert plan(3, running, tenants, {A: large, B: short, C: long}) == [(B, short[0])]


def test_what_leaves_a_large_job_enough_goes_before_it() -> None:
    large, long = jobs(4.0), jobs(1.0, 1.0)
    running = [Running(3.0, left_s=100.0)]
    # Five will be free then, four of them are reserved.
    assert plan(2, running, {A: Tenant(), B: Tenant(used=1.0)}, {A: large, B: long}) == [(B, long[0])]


def test_where_nobody_knows_when_workers_will_be_free_nothing_goes_before_a_large_job() -> None:
    running = [Running(2.0)]
    queues = {A: jobs(4.0), B: jobs(1.0, expected_s=1.0)}
    assert plan(2, running, {A: Tenant(), B: Tenant(used=1.0)}, queues) == []


def test_the_order_is_that_in_which_jobs_are_admitted() -> None:
    queues = {A: jobs(*[1.0] * 4), B: jobs(*[1.0] * 4)}
    tenants = {A: Tenant(weight=2), B: Tenant(used=50.0)}
    assert order(tenants, queues) == plan(8, [], tenants, queues)


def test_a_job_starts_when_enough_of_those_before_it_have_ended() -> None:
    running = [Running(1.0, 30.0), Running(1.0, 10.0)]
    ordered = [*jobs(1.0, expected_s=5.0), *jobs(2.0, expected_s=7.0), *jobs(1.0), *jobs(1.0, 1.0)]
    # The second waits for both, and the last two for one of which nobody knows.
    assert starts(0, running, ordered) == [10.0, 30.0, 37.0, 37.0, None]


def test_nobody_can_say_when_a_job_starts_behind_one_of_unknown_length() -> None:
    assert starts(0, [Running(1.0)], jobs(1.0)) == [None]


tenants_ = st.builds(
    Tenant, weight=st.floats(0.1, 10), used=st.floats(0, 1e6), held=st.floats(0, 3), cap=st.floats(1, 20)
)
waiting = st.lists(
    st.builds(Waiting, st.uuids(), st.sampled_from([0.25, 1 / 3, 1.0, 2.0]), st.floats(1, 1e4)), max_size=6
)
situations = st.dictionaries(st.uuids(), st.tuples(tenants_, waiting), max_size=5)


@given(st.floats(0, 12), st.lists(st.builds(Running, st.floats(0.25, 4), st.floats(0, 1e4))), situations)
def test_no_plan_gives_out_what_is_not_there_or_skips_a_cap_or_an_order(
    free: float, running: list[Running], situation: Mapping[uuid.UUID, tuple[Tenant, list[Waiting]]]
) -> None:
    tenants = {org: tenant for org, (tenant, _) in situation.items()}
    queues = {org: queue for org, (_, queue) in situation.items()}
    admitted = plan(free, running, tenants, queues)
    assert sum(job.workers for _, job in admitted) <= free + 1e-6
    for org, given_ in shares(admitted).items():
        assert tenants[org].held + given_ <= tenants[org].cap + 1e-6
    for org, queue in queues.items():
        chosen = [queue.index(job) for owner, job in admitted if owner == org]
        assert chosen == sorted(chosen)
    # Nothing that fits is left while workers are free, unless a larger job or a cap stands before it.
    if not admitted and free >= 2:
        assert all(
            not queue or tenants[org].held + queue[0].workers > tenants[org].cap for org, queue in queues.items()
        )


@given(st.lists(st.floats(0.5, 4), min_size=2, max_size=4))
def test_over_time_everybody_gets_its_share(weights: list[float]) -> None:
    """Jobs of one minute on four workers, queues that never run dry."""
    orgs = [uuid.UUID(int=n) for n in range(len(weights))]
    used, got = dict.fromkeys(orgs, 0.0), dict.fromkeys(orgs, 0.0)
    free = 4
    for _ in range(400):
        tenants = {org: Tenant(weight, used[org]) for org, weight in zip(orgs, weights, strict=True)}
        for org, count in shares(plan(free, [], tenants, {org: jobs(*[1.0] * 4) for org in orgs})).items():
            got[org] += count
            used[org] = used[org] + 60 * count
        used = {org: value * 0.5 ** (60 / HALF_LIFE_S) for org, value in used.items()}
    for org, weight in zip(orgs, weights, strict=True):
        assert got[org] / sum(got.values()) == pytest.approx(weight / sum(weights), abs=0.02)


# Nominal shares


def test_who_is_owed_workers_is_served_before_who_has_used_less() -> None:
    queues = {A: jobs(1.0, 1.0), B: jobs(1.0, 1.0)}
    tenants = {A: Tenant(used=10**6, nominal=1), B: Tenant()}
    assert [org for org, _ in plan(3, [], tenants, queues)] == [A, B, B]
    assert [org for org, _ in order(tenants, queues)] == [A, B, B, A]


def run(org: uuid.UUID, *ran_s: float, workers: float = 1.0, spared: bool = False) -> list[Preemptible]:
    return [Preemptible(uuid.uuid4(), org, workers, seconds, spared) for seconds in ran_s]


OWED = {A: Tenant(nominal=2), B: Tenant(held=4, nominal=2)}


def test_what_was_borrowed_is_taken_back_from_the_job_that_began_last() -> None:
    old, new, newer, newest = run(B, 5 * MIN_RUN_S, 3 * MIN_RUN_S, 2 * MIN_RUN_S, MIN_RUN_S)
    assert reclaim(0, [old, new, newer, newest], OWED, {A: jobs(1.0)}) == [newest]
    assert reclaim(0, [old, new, newer, newest], OWED, {A: jobs(2.0)}) == [newest, newer]


def test_nobody_is_taken_what_is_its_own() -> None:
    running = run(B, *[2 * MIN_RUN_S] * 4)
    assert reclaim(0, running, OWED | {A: Tenant(nominal=3)}, {A: jobs(3.0)}) == []


def test_nothing_is_preempted_where_something_is_free_or_is_being_given_back() -> None:
    assert reclaim(1, run(B, *[2 * MIN_RUN_S] * 4), OWED, {A: jobs(1.0)}) == []


def test_nothing_is_preempted_for_who_has_its_share() -> None:
    tenants = OWED | {A: Tenant(held=2, nominal=2)}
    assert reclaim(0, run(B, *[2 * MIN_RUN_S] * 4), tenants, {A: jobs(1.0)}) == []


def test_jobs_that_have_just_begun_or_are_spared_are_left_alone() -> None:
    running = run(B, *[MIN_RUN_S - 1] * 3) + run(B, 2 * MIN_RUN_S, spared=True)
    assert reclaim(0, running, OWED, {A: jobs(1.0)}) == []


def test_who_borrowed_most_gives_back_first() -> None:
    tenants = {A: Tenant(nominal=2), B: Tenant(held=2), C: Tenant(held=3)}
    running = run(B, *[2 * MIN_RUN_S] * 2) + run(C, *[3 * MIN_RUN_S] * 3)
    assert [one.org_id for one in reclaim(0, running, tenants, {A: jobs(2.0)})][0] == C


TENANT = st.tuples(st.integers(0, 4), st.integers(0, 4))


@given(
    holds=st.lists(TENANT, min_size=3, max_size=3),
    wants=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    free=st.integers(0, 2),
)
def test_after_a_preemption_nobody_is_owed_what_it_lost(
    holds: list[tuple[int, int]], wants: list[int], free: int
) -> None:
    orgs = (A, B, C)
    tenants = {org: Tenant(held=held, nominal=nominal) for org, (held, nominal) in zip(orgs, holds, strict=True)}
    queues = {org: jobs(float(want)) for org, want in zip(orgs, wants, strict=False)}
    running = [one for org in orgs for one in run(org, *[2 * MIN_RUN_S] * int(tenants[org].held))]
    victims = reclaim(free, running, tenants, queues)
    lost = {org: sum(one.workers for one in victims if one.org_id == org) for org in orgs}
    for org in orgs:
        if lost[org]:
            left = tenants[org].held - lost[org]
            assert left >= tenants[org].nominal
            assert not Tenant(held=left, nominal=tenants[org].nominal).is_owed(1.0)
    gained = sum(queues[org][0].workers for org in queues if tenants[org].is_owed(queues[org][0].workers))
    assert sum(lost.values()) <= gained
