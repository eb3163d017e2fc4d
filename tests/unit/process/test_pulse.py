"""A process is alive for as long as all of its loops vouch for it."""

import os
import time
from pathlib import Path

from zhub.process.pulse import Pulse, is_alive


def test_a_process_that_has_never_beaten_is_not_alive(tmp_path: Path) -> None:
    assert not is_alive(tmp_path / "alive")


def test_a_process_is_alive_until_its_next_beat_is_due(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    pulse = Pulse(alive)
    pulse.beat("main", within_s=60)
    assert is_alive(alive)
    pulse.beat("main", within_s=-1)
    assert not is_alive(alive)


def test_a_loop_that_hangs_is_not_covered_by_those_that_go_on(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    pulse = Pulse(alive)
    pulse.beat("relay", within_s=-1)
    pulse.beat("main", within_s=60)
    assert not is_alive(alive)
    pulse.beat("relay", within_s=3600)
    assert is_alive(alive) and alive.stat().st_mtime < time.time() + 61


def test_the_file_of_an_earlier_process_does_not_count(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    alive.touch()
    past = time.time() - 10
    os.utime(alive, (past, past))
    assert not is_alive(alive)


def test_a_beat_survives_a_directory_that_is_away(tmp_path: Path) -> None:
    Pulse(tmp_path / "away" / "alive").beat("main", within_s=60)
    Pulse(None).beat("main", within_s=60)
