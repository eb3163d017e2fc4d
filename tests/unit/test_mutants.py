"""The guards that ``make mutants`` takes away are still where it looks for them: it is too slow to find out there."""

from pathlib import Path

import pytest
from mutant import Mutant
from mutants import MUTANTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_what_a_mutant_changes_is_there_once(mutant: Mutant) -> None:
    assert (ROOT / mutant.path).read_text().count(mutant.old) == 1
    assert [test for test in mutant.tests if test.startswith("tests/") and not (ROOT / test).exists()] == []
