"""Take guards away one by one, and see that a test notices each.

Run from the repository's root: ``python tools/mutants.py``, with words to run those alone whose sentence has them. Each
mutant is one line changed in a copy of the sources, on which the tests that should notice are run. Exits with 1 if a
mutant survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mutants_of_classifiers
import mutants_of_experts
import mutants_of_jobs
import mutants_of_rights
import mutants_of_serving
from mutant import Mutant

ROOT = Path(__file__).parents[1]
COPIED = ("platform", "workers", "api", "migrations", "tests", "benchmarks", "tools", "pyproject.toml")
MUTANTS = (
    *mutants_of_jobs.MUTANTS,
    *mutants_of_experts.MUTANTS,
    *mutants_of_serving.MUTANTS,
    *mutants_of_classifiers.MUTANTS,
    *mutants_of_rights.MUTANTS,
)


def main() -> None:
    words = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.what for word in words)]
    survivors = [mutant.what for mutant in chosen if not noticed(mutant)]
    if survivors:
        sys.exit(f"{len(survivors)} of {len(chosen)} mutants survive: {'; '.join(survivors)}")
    print(f"All {len(chosen)} mutants are noticed.")


def noticed(mutant: Mutant) -> bool:
    """Whether a test fails on the mutant; prints which."""
    with tempfile.TemporaryDirectory(prefix="zhub-mutant-") as name:
        copy = Path(name)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__", "shipped_base"))
            else:
                shutil.copy(source, copy / part)
        path = copy / mutant.path
        text = path.read_text()
        if text.count(mutant.old) != 1:
            sys.exit(f"'{mutant.what}': {mutant.path} has it {text.count(mutant.old)} times: {mutant.old!r}")
        path.write_text(text.replace(mutant.old, mutant.new))
        # In front of the editable installation, which points at the sources themselves.
        sources = os.pathsep.join(str(copy / root) for root in ("platform", "workers", "api"))
        found = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": sources},
            capture_output=True,
            text=True,
        )
    failed = [line for line in found.stdout.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/"))]
    told = failed[0].partition(" - ")[0] if failed else f"SURVIVES (pytest: {found.returncode})"
    print(f"{mutant.what}: {told}", flush=True)
    return found.returncode == 1 and bool(failed)


if __name__ == "__main__":
    main()
