"""The experts that the running answers follow, in the model: entered again only when a new one comes."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.changes import Change
from zhub_workers.model.row_changes import following_rows
from zhub_workers.serving.runners import Assign

# What of each expert is followed: digest, weight, layers. Empty: the base.
Follows = tuple[tuple[str, float, tuple[int, ...] | None], ...]
BASE: Follows = ()


class Following:
    """Lets the rows of a model follow the changes that it is told of, by what they follow."""

    def __init__(self, adapted: AdaptedModel) -> None:
        self._adapted = adapted
        self._state = ExitStack()
        self._owners: dict[Follows, int] = {}
        self._assign: Assign | None = None

    def owners(self, followed: Sequence[Follows], changes: Mapping[Follows, Change]) -> tuple[list[int], Assign | None]:
        """Each row's number among what the model can follow now, and the function to tell of the rows of a forward.

        Where all follow the base, the model is left as it is.
        """
        wanted = set(followed)
        if wanted <= {BASE}:
            self.leave()
            return [0] * len(followed), None
        if not wanted <= self._owners.keys() or len(self._owners) > 2 * len(changes) + 1:
            self._enter({BASE: Change()} | dict(changes))
        return [self._owners[follows] for follows in followed], self._assign

    def leave(self) -> None:
        """The model is the base again."""
        self._state.close()
        self._owners, self._assign = {}, None

    def _enter(self, changes: Mapping[Follows, Change]) -> None:
        self.leave()
        # Those without multipliers first, as ``following_rows`` likes it.
        ordered = sorted(changes, key=lambda follows: bool(changes[follows].z))
        self._assign = self._state.enter_context(
            following_rows(self._adapted, [changes[follows] for follows in ordered])
        )
        self._owners = {follows: number for number, follows in enumerate(ordered)}
