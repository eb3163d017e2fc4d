"""The guards that ``make mutants`` takes away are still where it looks for them: it is too slow to find out there."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mutant", load().MUTANTS, ids=lambda mutant: mutant.what)
def test_what_a_mutant_changes_is_there_once(mutant: object) -> None:
    path, old, tests = (getattr(mutant, name) for name in ("path", "old", "tests"))
    assert (ROOT / path).read_text().count(old) == 1
    assert [test for test in tests if test.startswith("tests/") and not (ROOT / test).exists()] == []
