"""What the tests of a folder share ends with the last of them.

With a fixture of the session it would end with the process, which goes on with the tests of other folders for minutes:
a whole stack that nobody asks takes a fifth of a core.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

Shared = TypeVar("Shared")

_lifetimes: dict[Path, ExitStack] = {}


def shared_in_folder(conftest: str, shared: AbstractContextManager[Shared]) -> Iterator[Shared]:
    """The body of a fixture of the session whose value is left after the last test below the folder of ``conftest``."""
    lifetime = _lifetimes.setdefault(Path(conftest).parent, ExitStack())
    yield lifetime.enter_context(shared)
    lifetime.close()  # a run that was interrupted has had no last test


def leave_folders(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Leave what is shared in folders that the next test is not in."""
    for folder, lifetime in _lifetimes.items():
        if folder in item.path.parents and (nextitem is None or folder not in nextitem.path.parents):
            lifetime.close()
