"""A base that two processes hold between them, each half of its matrices, answers as one that holds it whole.

It is transformers' own division, with gloo between processes on CPUs. zhub loads no base so; its record of sizes says
what that would take.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensor_parallel_forward import TOKENS

from zhub_workers.model.base_model import load_base_model

SCRIPT = Path(__file__).parents[2] / "support" / "tensor_parallel_forward.py"
SHIPPED = Path(__file__).parents[3] / "workers" / "zhub_workers" / "shipped_base"
PROCESSES = 2
TIMEOUT_S = 300


@pytest.mark.parametrize("of", ["shipped", "llama"])
def test_a_base_divided_between_two_processes_gives_the_logits_of_the_whole(
    of: str, model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = SHIPPED if of == "shipped" else model_directory(of)
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(PROCESSES), str(directory), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * PROCESSES, errors
    whole = load_base_model(directory).model
    with torch.no_grad():
        expected = whole(torch.tensor([list(TOKENS)])).logits
    of_whole = sum(parameter.nbytes for parameter in whole.parameters())
    for rank in range(PROCESSES):
        got = load_file(tmp_path / f"{rank}.safetensors")
        assert torch.allclose(got["logits"], expected, atol=1e-4, rtol=1e-4)
        assert int(got["held"]) < 0.6 * of_whole
