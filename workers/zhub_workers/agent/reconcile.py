"""What an agent does about the difference between the rows and the workers: a pure function of both."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from zhub_workers.attempts.attempt import AttemptKey


@dataclass(frozen=True)
class Adopt:
    """A worker runs an attempt that is ours to follow and that nobody follows: poll it."""

    key: AttemptKey


@dataclass(frozen=True)
class Kill:
    """A worker runs an attempt that is no longer its job's: end it."""

    key: AttemptKey


@dataclass(frozen=True)
class Lose:
    """An attempt of ours has no worker: give its job back."""

    key: AttemptKey


Action = Adopt | Kill | Lose


def reconcile(leased: Mapping[AttemptKey, bool], held: Set[AttemptKey], followed: Set[AttemptKey]) -> list[Action]:
    """Compare the attempts that the rows lease to this cluster with those that its workers hold.

    Args:
        leased: attempts that are starting, running or stopping in this cluster; True for those claimed by this
            agent process, which alone may call them lost: another agent may be about to start its own.
        held: attempts that some worker holds.
        followed: attempts that this agent polls.
    """
    actions: list[Action] = [Kill(key) for key in held - leased.keys()]
    actions += [Adopt(key) for key in (held & leased.keys()) - followed]
    actions += [Lose(key) for key, mine in leased.items() if mine and key not in held and key not in followed]
    return sorted(actions, key=lambda action: (type(action).__name__, action.key))
