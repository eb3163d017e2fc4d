"""A supervisor of child processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from zhub.embedded.processes import Supervisor


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(logs=tmp_path, record=tmp_path / "processes.json", progress=lambda _message: None) as it:
        yield it
