"""Which replica has what a request needs in its memory: learned from where requests went. Pure, without Ray."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

# How many more requests than the least busy replica a warm one may have, by what it has: the prefix of the
# conversation, the experts (whose files are small), the base (which takes long to load).
SLACK = {"beginning": 8, "experts": 2, "base": 8}
MAX_REMEMBERED = 65_536

Replica = TypeVar("Replica", bound=Hashable)


class Warmth(Generic[Replica]):
    """Remembers which replicas were sent requests of which affinity (see ``GenerationRequest.affinity``).

    A replica may have dropped meanwhile what it had: then it reads or fetches it again, as another would.
    """

    def __init__(self) -> None:
        self._sent: OrderedDict[str, set[Replica]] = OrderedDict()  # the one that was used last at the end

    def note(self, affinity: str, replica: Replica) -> None:
        """A request went to this replica."""
        for key in _parts(affinity):
            self._sent.setdefault(key, set()).add(replica)
            self._sent.move_to_end(key)
        while len(self._sent) > MAX_REMEMBERED:
            self._sent.popitem(last=False)

    def ranked(self, affinity: str, loads: Mapping[Replica, int]) -> list[Replica]:
        """All replicas, the best first.

        Args:
            loads: how many requests each replica has.
        """
        least = min(loads.values(), default=0)
        by_load = sorted(loads, key=loads.__getitem__)
        parts = _parts(affinity)
        ranked: dict[Replica, None] = {}
        for key, slack in zip(parts, list(SLACK.values())[-len(parts) :], strict=False):
            warm = self._sent.get(key, set())
            warm.intersection_update(loads)
            ranked |= dict.fromkeys(one for one in by_load if one in warm and loads[one] <= least + slack)
        return list(ranked | dict.fromkeys(by_load))


def _parts(affinity: str) -> list[str]:
    """All of an affinity, its base and experts, its base; only the last for a request that needs no more."""
    words = affinity.split("/", len(SLACK))[: len(SLACK)] if affinity else []
    return ["/".join(words[:count]) for count in range(len(words), 0, -1)]
