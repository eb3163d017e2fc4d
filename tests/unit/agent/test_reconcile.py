"""What an agent does about the difference between the rows and the workers."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhub_workers.agent.reconcile import Action, Adopt, Kill, Lose, reconcile
from zhub_workers.attempts.attempt import AttemptKey

JOB = uuid.UUID(int=1)
KEY = AttemptKey(JOB, 1)

# A few jobs with a few fences, so that rows and workers meet often.
keys = st.builds(AttemptKey, st.sampled_from([uuid.UUID(int=n) for n in range(3)]), st.integers(1, 3))
views = st.tuples(st.dictionaries(keys, st.booleans()), st.sets(keys), st.sets(keys))
View = tuple[dict[AttemptKey, bool], set[AttemptKey], set[AttemptKey]]


@pytest.mark.parametrize(
    ("leased", "held", "followed", "expected"),
    [
        ({}, set(), set(), []),
        ({}, {KEY}, set(), [Kill(KEY)]),
        ({}, {KEY}, {KEY}, [Kill(KEY)]),
        ({KEY: True}, {KEY}, set(), [Adopt(KEY)]),
        ({KEY: False}, {KEY}, set(), [Adopt(KEY)]),
        ({KEY: True}, {KEY}, {KEY}, []),
        ({KEY: True}, set(), set(), [Lose(KEY)]),
        ({KEY: False}, set(), set(), []),  # another agent may be about to start it
        ({KEY: True}, set(), {KEY}, []),  # polling will find out
        ({AttemptKey(JOB, 2): False}, {KEY}, set(), [Kill(KEY)]),
        ({AttemptKey(JOB, 2): True}, {KEY}, {KEY}, [Kill(KEY), Lose(AttemptKey(JOB, 2))]),
    ],
)
def test_each_difference_has_its_action(
    leased: dict[AttemptKey, bool], held: set[AttemptKey], followed: set[AttemptKey], expected: list[Action]
) -> None:
    assert reconcile(leased, held, followed) == expected


@given(views)
def test_an_attempt_that_its_job_does_not_lease_is_killed_and_no_other_is(view: View) -> None:
    leased, held, followed = view
    killed = {action.key for action in reconcile(leased, held, followed) if isinstance(action, Kill)}
    assert killed == {key for key in held if key not in leased}


@given(views)
def test_after_the_actions_every_held_attempt_is_followed_and_leased(view: View) -> None:
    leased, held, followed = view
    held, followed = set(held), set(followed)
    for action in reconcile(leased, held, followed):
        match action:
            case Kill(key):
                held.discard(key)
            case Adopt(key):
                followed.add(key)
            case Lose(key):
                leased = {other: mine for other, mine in leased.items() if other != key}
    assert held <= followed and held <= leased.keys()


@given(views)
def test_only_an_attempt_of_this_agent_without_a_worker_is_called_lost(view: View) -> None:
    leased, held, followed = view
    lost = {action.key for action in reconcile(leased, held, followed) if isinstance(action, Lose)}
    assert lost == {key for key, mine in leased.items() if mine and key not in held | followed}


@given(views)
def test_no_attempt_gets_two_actions(view: View) -> None:
    keys = [action.key for action in reconcile(*view)]
    assert len(keys) == len(set(keys))


@given(views)
def test_equal_views_give_equal_lists(view: View) -> None:
    leased, held, followed = view
    assert reconcile(leased, held, followed) == reconcile(dict(reversed(leased.items())), set(held), set(followed))


@given(views)
def test_what_is_in_order_needs_no_action(view: View) -> None:
    leased, _held, _followed = view
    assert reconcile(leased, leased.keys(), leased.keys()) == []
