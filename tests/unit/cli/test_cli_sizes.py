"""``zhub base-models size``."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zhub.cli import base_models
from zhub.registry.model_sizes import ModelSizes

Run = Callable[..., int]
SIZES = ModelSizes(
    architecture="LlamaForCausalLM",
    parameters=1000,
    matrices=3,
    adapted_parameters=750,
    multipliers=100,
    checkpoint_bytes=20 * 10**9,
    basis_bytes=50 * 10**9,
    weights_bytes=40 * 10**9,
    factors_bytes=10 * 10**9,
    merged_bytes=30 * 10**9,
    decomposition_bytes=10**9,
    row_tokens=1024,
    activations_bytes=5 * 10**9,
    cache_bytes=10**9,
)


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_models, "model_sizes", lambda _path, _rank: SIZES)


def test_each_use_has_its_numbers_and_the_least_machine(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("base-models", "size", "config.json") == 0
    shown = capsys.readouterr().out
    assert "750 in 3 matrices (75.0 %)" in shown
    rows = {line.split()[0]: line.split("  ") for line in shown.splitlines() if line.strip()}
    cells = {use: [cell.strip() for cell in rows[use] if cell.strip()] for use in ("decompose", "train", "serve")}
    assert cells["decompose"] == ["decompose", "70.0 GB", "1.0 GB", "RTX 4090", "1.0 GB", "8 GB"]
    assert cells["train"] == ["train", "70.0 GB", "90.0 GB", "H200", "40.0 GB", "128 GB"]
    assert cells["serve"] == ["serve", "70.0 GB", "52.0 GB", "A100 or H100", "40.0 GB", "64 GB"]


def test_the_numbers_are_had_as_json(zhub: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert zhub("base-models", "size", str(tmp_path), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["basis_bytes"] == SIZES.basis_bytes
    assert shown["needs"]["train"]["device_bytes"] == SIZES.needs["train"].device_bytes
