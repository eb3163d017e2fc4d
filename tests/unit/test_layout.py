"""The layout that imports rest on: source roots that are no packages, and heavy libraries where they belong only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
SOURCE_ROOTS = {"platform": "zhub", "workers": "zhub_workers", "api": "zhub_api"}


@pytest.mark.parametrize("root", [*SOURCE_ROOTS, "migrations", "tests", "benchmarks", "tools"])
def test_a_source_root_is_no_package(root: str) -> None:
    # platform/__init__.py would shadow the standard library's platform, and `import uuid` would die.
    assert not (ROOT / root / "__init__.py").exists()


def test_no_folder_of_tests_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize(("root", "package"), SOURCE_ROOTS.items())
def test_a_source_root_holds_one_import_package(root: str, package: str) -> None:
    assert [path.parent.name for path in (ROOT / root).glob("*/__init__.py")] == [package]


ROOMS = sorted(room for root, package in SOURCE_ROOTS.items() for room in (ROOT / root / package).rglob("__init__.py"))


@pytest.mark.parametrize("package", ROOMS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_room_says_in_its_docstring_what_lives_there(package: Path) -> None:
    assert ast.get_docstring(ast.parse(package.read_text()))


@pytest.mark.parametrize("root", [*SOURCE_ROOTS, "tests", "tools", "migrations"])
def test_no_file_has_more_than_400_lines(root: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / root).rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_the_standard_librarys_platform_is_the_one_imported_at_the_root_of_the_repository() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", "import platform, uuid; print(platform.python_version())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == sys.version.split()[0]


IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
print("\\n".join(sys.modules))
"""


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("zhub", {"torch", "ray", "transformers", "fastapi", "starlette", "uvicorn", "zhub_api", "zhub_workers"}),
        ("zhub_api", {"torch", "ray", "transformers", "zhub_workers"}),
    ],
)
def test_importing_all_of_a_package_imports_nothing_that_it_must_not_need(package: str, forbidden: set[str]) -> None:
    asked = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package], cwd=ROOT / "docs", capture_output=True, text=True, check=True
    )
    assert set(asked.stdout.split()) & forbidden == set()


def test_the_agent_and_its_light_worker_do_not_import_torch() -> None:
    code = "import sys, zhub_workers.agent.loop, zhub_workers.worker.light_runner; print('torch' in sys.modules)"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "False"
