"""Collection: objects that no row names are removed from the store, page by page, once they are old enough.

Mark and sweep in one pass: a page of the store's listing is asked for in the database, and what nobody names is looked
at again under the lock of its key before it goes. An object that a crash left between its bytes and its row is what
this is for; so are the bytes of files that were deleted.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.objects.references import is_known, unnamed
from zhub.objects.reservations import begin_removal, end_removal, forget_old
from zhub.storage.listed import StoredObject
from zhub.storage.object_store import ObjectStore

PAGE = 500
GRACE = timedelta(days=1)  # far longer than between an object and its row


@dataclass
class Collected:
    """What a pass has seen and done. ``unknown`` keys are none of this release's, and stay."""

    objects: int = 0
    unknown: int = 0
    unnamed: int = 0
    unnamed_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0


def collect(
    engine: Engine,
    store: ObjectStore,
    *,
    grace: timedelta = GRACE,
    dry_run: bool,
    on_unnamed: Callable[[StoredObject, bool], None] = lambda _object, _removed: None,
) -> Collected:
    """Go through the whole store once.

    Args:
        grace: objects that were stored, and jobs that ended, more lately than this are left alone.
        dry_run: remove nothing.
        on_unnamed: called for each object that no row names, and whether it was removed.

    Raises:
        StoreError, UnavailableError: the next pass removes the rest.
    """
    found = Collected()
    newest = datetime.now(UTC) - grace
    listing = store.listing("")
    while page := list(itertools.islice(listing, PAGE)):
        found.objects += len(page)
        found.unknown += sum(not is_known(listed.key) for listed in page)
        for listed in _unnamed(engine, [listed for listed in page if listed.modified_at < newest], grace):
            found.unnamed += 1
            found.unnamed_bytes += listed.size_bytes
            removed = not dry_run and _remove(engine, store, listed.key, grace)
            if removed:
                found.removed += 1
                found.removed_bytes += listed.size_bytes
            on_unnamed(listed, removed)
    if not dry_run:
        with system_session(engine) as session:
            forget_old(session)
    return found


def _unnamed(engine: Engine, page: list[StoredObject], grace: timedelta) -> Iterator[StoredObject]:
    if not page:
        return
    with system_session(engine) as session:
        keys = unnamed(session, [listed.key for listed in page], grace=grace)
    yield from (listed for listed in page if listed.key in keys)


def _remove(engine: Engine, store: ObjectStore, key: str, grace: timedelta) -> bool:
    """Remove the object unless it was reserved or named since."""
    with system_session(engine) as session:
        if not begin_removal(session, key):
            return False
        # After the lock: whoever reserved the key has written its row by now, or finds that it is being removed.
        if key not in unnamed(session, [key], grace=grace):
            end_removal(session, key)
            return False
    store.delete(key)
    with system_session(engine) as session:
        end_removal(session, key)
    return True
