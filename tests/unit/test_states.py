"""States and the moves between them."""

import re
from pathlib import Path

import pytest

from zhub import states

ROOT = Path(__file__).parents[2]


def test_every_state_has_its_moves() -> None:
    assert set(states.TRANSITIONS) == set(states.JOB_STATES)


@pytest.mark.parametrize("state", states.JOB_STATES)
def test_every_move_leads_to_another_state(state: str) -> None:
    assert set(states.TRANSITIONS[state]) <= set(states.JOB_STATES) - {state}


def reachable(start: str) -> set[str]:
    found, new = {start}, [start]
    while new:
        for state in states.TRANSITIONS[new.pop()]:
            if state not in found:
                found.add(state)
                new.append(state)
    return found


@pytest.mark.parametrize("state", sorted(set(states.JOB_STATES) - {states.WAITING}))
def test_every_state_can_be_reached_from_the_queue(state: str) -> None:
    assert state in reachable(states.QUEUED)


@pytest.mark.parametrize("state", states.JOB_STATES)
def test_from_every_state_a_job_can_come_to_an_end(state: str) -> None:
    assert reachable(state) & set(states.TERMINAL)


def test_a_success_is_for_ever() -> None:
    assert states.TRANSITIONS[states.SUCCEEDED] == ()


@pytest.mark.parametrize("state", states.TERMINAL)
def test_an_ended_job_goes_nowhere_but_back_into_the_queue(state: str) -> None:
    assert set(states.TRANSITIONS[state]) <= {states.QUEUED, states.WAITING}


@pytest.mark.parametrize("state", sorted(set(states.JOB_STATES) - set(states.TERMINAL)))
def test_every_job_that_has_not_ended_can_be_cancelled(state: str) -> None:
    assert states.CANCELLED in states.TRANSITIONS[state]


def test_no_state_is_both_active_and_ended() -> None:
    assert not set(states.ACTIVE) & set(states.TERMINAL)


@pytest.mark.parametrize("state", sorted(set(states.JOB_STATES) - {*states.ACTIVE, states.WAITING}))
def test_only_an_active_job_or_a_gate_can_succeed(state: str) -> None:
    assert states.SUCCEEDED not in states.TRANSITIONS[state]


def test_the_architecture_shows_the_moves_that_there_are() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ((?:`\w+` ?)+)\|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE
    )
    drawn = {before: set(re.findall(r"\w+", after)) for before, after in rows}
    assert drawn == {before: set(after) for before, after in states.TRANSITIONS.items() if after}


NAMED_SETS = {
    frozenset(named)
    for named in (
        states.JOB_STATES,
        states.ACTIVE,
        states.TERMINAL,
        (states.ADMITTED, *states.ACTIVE),  # what holds something of its cluster
        (states.STARTING, states.RUNNING),  # active, and not yet asked to stop
        (states.QUEUED, states.ADMITTED),  # what no attempt has yet
        (states.WAITING, states.QUEUED, states.ADMITTED),  # the same, with what depends on others
        (states.FAILED, states.CANCELLED),  # what a redrive brings back
    )
}


@pytest.mark.parametrize("path", sorted((ROOT / "platform").rglob("*.py")), ids=lambda path: path.stem)
def test_the_states_that_a_statement_lists_are_a_set_that_has_a_meaning(path: Path) -> None:
    for listed in re.findall(r"\bstate (?:NOT )?IN \(('[^)]*')\)", path.read_text()):
        assert frozenset(re.findall(r"'(\w+)'", listed)) in NAMED_SETS, listed
