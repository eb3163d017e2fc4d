"""As which user programs run: never as root where that can be helped."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zhub.cli import doctor
from zhub.sandbox import Program, Sandbox, Value, zygote
from zhub.sandbox.zygote import UNPRIVILEGED

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# Of each kind one that no zygote has imported: a module, one of a package that is here, one written in C.
IMPORTS = """
import os, statistics, json.tool, concurrent.futures, _bisect
before = set(os.listdir(os.path.dirname(statistics.__file__)))
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as made:
        yield made


def results(sandbox: Sandbox, source: str, *expressions: str) -> tuple[object, ...]:
    outcome = sandbox.run(Program(source, expressions))
    assert outcome.failure is None, outcome
    return outcome.results


@needs_root
def test_roots_programs_run_as_nobody_also_where_python_lies_in_roots_home(sandbox: Sandbox) -> None:
    found = results(sandbox, "import os", "os.getresuid()", "os.getresgid()", "os.getgroups()")
    assert found == (Value((UNPRIVILEGED,) * 3), Value((UNPRIVILEGED,) * 3), Value([]))


def test_the_standard_library_can_be_imported(sandbox: Sandbox) -> None:
    assert results(sandbox, IMPORTS, "statistics.mean([1, 3])", "'json' in before") == (Value(2), Value(True))


def test_nothing_is_reached_from_the_directory_of_the_library(sandbox: Sandbox) -> None:
    attempt = """
import os, statistics

HOME = os.path.dirname(statistics.__file__)

def gets_out(how, path):
    try:
        how(path)
    except OSError:
        return False
    return True

def escapes():
    up = [f"{start}/{'../' * count}" for start in (".", HOME, "/proc/self/cwd") for count in range(1, 12)]
    paths = up + [f"{path}etc/passwd" for path in up] + [f"{path}root" for path in up] + ["made", f"{HOME}/made"]
    hows = (os.listdir, open, lambda path: open(path, "w"), os.chdir, os.mkdir)
    return [path for path in paths for how in hows if gets_out(how, path)]
"""
    assert results(sandbox, attempt, "escapes()") == (Value([]),)


@needs_root
@pytest.mark.parametrize(("home", "file", "direct", "through"), [
    (0o755, 0o644, True, True),
    (0o700, 0o644, False, True),
    (0o700, 0o600, False, False),
    (0o755, 0o600, False, False),
])  # fmt: skip
def test_nobody_reads_a_library_by_its_path_or_from_within_if_its_files_are_open_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: int, file: int, direct: bool, through: bool
) -> None:
    for parent in (tmp_path, *tmp_path.parents[:-1]):
        if parent.stat().st_mode & 0o005 != 0o005 and parent != Path("/root"):
            parent.chmod(0o755)
    library = tmp_path / "home" / "lib"
    library.mkdir(parents=True)
    (library / "module.py").touch()
    library.parent.chmod(home)
    (library / "module.py").chmod(file)
    monkeypatch.chdir(library)
    assert zygote._readable_by_nobody([library]) == direct
    assert zygote._readable_by_nobody([zygote.WORKING_DIRECTORY]) == through
    assert os.geteuid() == 0


def test_what_is_imported_already_and_what_comes_follow_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    old = "/old/lib"
    package = type(sys)("moved_package")
    package.__path__ = [f"{old}/moved_package"]
    monkeypatch.setitem(sys.modules, "moved_package", package)
    monkeypatch.setattr(sys, "path", [old, f"{old}/dynload", "/old/library"])
    zygote._import_from({old: "/new/3", f"{old}/dynload": "/new/4"})
    assert sys.path == ["/new/3", "/new/4", "/old/library"]
    assert package.__path__ == ["/new/3/moved_package"]


def test_the_doctor_says_as_which_user_programs_run() -> None:
    check = doctor._sandbox()
    expected = UNPRIVILEGED if os.geteuid() == 0 else os.geteuid()
    assert (check.state, check.found) == ("ok", f"programs run confined, as uid {expected}")


@needs_root
def test_the_doctor_says_where_programs_run_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    class AsRoot(Sandbox):
        def run(self, program: Program) -> object:  # type: ignore[override]
            outcome = super().run(program)
            return type(outcome)("finished", (Value(0),))

    monkeypatch.setattr(doctor, "Sandbox", AsRoot)
    check = doctor._sandbox()
    assert check.state == "warning" and "root, without capabilities" in check.found
    assert check.fix.endswith(".") and "chmod -R o+rX" in check.fix
