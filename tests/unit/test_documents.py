"""What stands in the fences of README and guides: ``tests/e2e/test_documents.py`` runs it."""

import json

import pytest
from documents import NOT_RUN, RUN, SHOWN, Fence, commands, fences

from zhub.graders import parse_grader


@pytest.mark.parametrize("fence", fences(), ids=lambda fence: fence.place)
def test_a_fence_is_run_or_only_shows_something(fence: Fence) -> None:
    assert fence.language in (*RUN, *SHOWN), f"{fence.place}: neither run nor shown: {fence.language!r}"
    if fence.language in SHOWN:
        typed = [line for line in fence.text.splitlines() if line.startswith(("$ ", "zhub ", "make ", "pip "))]
        assert typed == [], f"{fence.place}: a command that is not run; mark the fence as `sh`"


@pytest.mark.parametrize("fence", [one for one in fences() if one.language == "json"], ids=lambda fence: fence.place)
def test_json_of_a_document_can_be_read_and_its_graders_are_accepted(fence: Fence) -> None:
    shown = json.loads(fence.text)
    if "name" in shown:
        parse_grader(shown, param=fence.place)


def test_what_is_not_run_is_still_in_a_document() -> None:
    skipped = {start for start in NOT_RUN for command in commands() if command.text.startswith(start)}
    assert skipped == set(NOT_RUN)
