"""What sweeps do with the store, whatever they sweep."""

import logging
import uuid
from collections.abc import Callable, Iterable

from zhub.errors import StoreError


def remove_each(
    log: logging.Logger, kind: str, due: Iterable[tuple[uuid.UUID, Callable[[], object]]]
) -> list[uuid.UUID]:
    """Remove the objects of each of these, until the store fails; return the ids of those whose objects are gone.

    ``due``: the id of each, and what removes its objects. The next sweep removes the rest.
    """
    gone: list[uuid.UUID] = []
    for id_, remove in due:
        try:
            remove()
        except StoreError as exc:
            extra = {"action": "sweep_postponed", f"{kind}_id": id_}
            log.warning("%s %s stays until the next sweep: %s", kind, id_, exc, extra=extra)
            break
        gone.append(id_)
    return gone
