"""What an agent does where the jobs' rows and the workers differ: a pure function of both."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from zhub_workers.attempts.attempt import AttemptKey


@dataclass(frozen=True)
class Adopt:
    """A worker holds an attempt of this cluster that this agent does not poll yet: poll it."""

    key: AttemptKey


@dataclass(frozen=True)
class Kill:
    """A worker holds an attempt that no row leases to this cluster: end it."""

    key: AttemptKey


@dataclass(frozen=True)
class Lose:
    """No worker holds an attempt that this agent claimed: record it as lost."""

    key: AttemptKey


Action = Adopt | Kill | Lose


def reconcile(leased: Mapping[AttemptKey, bool], held: Set[AttemptKey], followed: Set[AttemptKey]) -> list[Action]:
    """Compare the attempts that the rows lease to this cluster with those that its workers hold.

    Args:
        leased: attempts that are starting, running or stopping in this cluster; True for those that this agent
            claimed. Only those can be lost: another agent may be about to start the attempts that it claimed.
        held: attempts that a worker holds.
        followed: attempts that this agent polls.
    """
    actions: list[Action] = [Kill(key) for key in held - leased.keys()]
    actions += [Adopt(key) for key in (held & leased.keys()) - followed]
    actions += [Lose(key) for key, mine in leased.items() if mine and key not in held and key not in followed]
    return sorted(actions, key=lambda action: (type(action).__name__, action.key))
