"""What a model takes is counted by another process; what that refuses is said in its words."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from zhub.client.model_sizes import model_sizes
from zhub.errors import UnavailableError, UnsupportedModelError

ROOT = Path(__file__).parents[3]


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    shipped = json.loads((ROOT / "workers" / "zhub_workers" / "shipped_base" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(shipped))
    sizes = model_sizes(tmp_path / "config.json")
    assert sizes.architecture == shipped["architectures"][0] and sizes.matrices > 0


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{tmp_path}/nothing.json: no config.json"):
        model_sizes(tmp_path / "nothing.json")


def test_what_the_count_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM is not a causal language model"):
        model_sizes(tmp_path / "config.json")


def test_without_torch_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'zhub\[workers\]'"):
        model_sizes(tmp_path)


def test_a_count_that_is_killed_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UnavailableError, match="counting the model was ended by signal 9"):
        model_sizes(tmp_path / "config.json")
