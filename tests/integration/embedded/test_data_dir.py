"""The data directory of ``zhub up``: what is refused as one, and the secrets in it."""

from pathlib import Path

import pytest

from zhub.embedded.data_dir import check_free_bytes, load_secrets, open_data_dir
from zhub.errors import EmbeddedError


def test_a_file_in_place_of_the_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(EmbeddedError, match="data: expected a directory, found a file"):
        open_data_dir(tmp_path / "data")


def test_the_mode_of_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    open_data_dir(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_data_directory_that_cannot_be_written_is_refused() -> None:
    # Nobody writes to /proc, not even root, whom the mode of a directory does not stop.
    with pytest.raises(EmbeddedError, match="--data-dir"):
        open_data_dir(Path("/proc/zhub"))


def test_a_full_disk_is_refused_with_both_numbers(tmp_path: Path) -> None:
    check_free_bytes(tmp_path, 500_000_000)
    with pytest.raises(EmbeddedError, match="at least 500 MB free, found 499 MB"):
        check_free_bytes(tmp_path, 499_999_999)


def test_secrets_are_made_once_and_only_for_us(tmp_path: Path) -> None:
    data_dir = open_data_dir(tmp_path / "data")
    made = load_secrets(data_dir)
    assert load_secrets(data_dir) == made
    assert data_dir.secrets.stat().st_mode & 0o777 == 0o600


def test_secrets_that_cannot_be_read_are_never_replaced(tmp_path: Path) -> None:
    data_dir = open_data_dir(tmp_path / "data")
    data_dir.secrets.write_text("{")
    with pytest.raises(EmbeddedError, match="expected the secrets"):
        load_secrets(data_dir)
    assert data_dir.secrets.read_text() == "{"
