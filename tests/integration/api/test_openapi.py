"""The API's own OpenAPI document is frozen in the repository, so that a change of the interface is seen in a diff."""

import json
import os
from pathlib import Path

from fastapi import FastAPI

FROZEN = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_the_interface_is_the_one_that_is_written_down(app: FastAPI) -> None:
    now = json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("ZHUB_FREEZE_OPENAPI"):
        FROZEN.write_text(now)
    app.state.context.engine.dispose()
    assert FROZEN.read_text() == now, (
        "run `ZHUB_FREEZE_OPENAPI=1 make test PYTEST_ARGS=tests/integration/api/test_openapi.py`"
    )
