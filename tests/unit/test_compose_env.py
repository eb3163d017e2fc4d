"""The script that writes the passwords of docker-compose.yml."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def write(path: Path) -> dict[str, str]:
    subprocess.run(
        [sys.executable, str(ROOT / "tools" / "compose_env.py"), "--file", str(path)], check=True, capture_output=True
    )
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_it_writes_every_password_that_compose_asks_for(tmp_path: Path) -> None:
    asked_for = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    written = write(tmp_path / "env")
    assert set(written) == asked_for
    assert all(len(secret) >= 20 for secret in written.values())


def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    write(tmp_path / "env")
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600


def test_what_the_file_says_already_is_kept(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("ZHUB_PORT=9000\nREDIS_PASSWORD=mine")
    written = write(tmp_path / "env")
    assert written["ZHUB_PORT"] == "9000"
    assert written["REDIS_PASSWORD"] == "mine"
    assert write(tmp_path / "env") == written
