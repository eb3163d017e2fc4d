"""What a model takes, before anything is added. Another process counts it, because torch is not imported here."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from zhub.errors import UnavailableError, UnsupportedModelError
from zhub.registry.model_sizes import ModelSizes


def model_sizes(path: Path, rank: int | None = None) -> ModelSizes:
    """Count the model that a ``config.json`` describes, or the one in a directory. Its weights need not be there.

    ``rank``: that its basis shall have, None for a whole one.

    Raises:
        UnavailableError: what counts is not installed, or was killed.
        UnsupportedModelError: there is no such model, or zhub cannot adapt it.
    """
    if importlib.util.find_spec("zhub_workers") is None or importlib.util.find_spec("torch") is None:
        raise UnavailableError("What counts a model's tensors is not installed here: pip install 'zhub[workers]'.")
    if not (path / "config.json" if path.is_dir() else path).is_file():
        raise UnsupportedModelError(
            f"{path}: no config.json. Give a model's config.json, or the directory that has it."
        )
    command = [sys.executable, "-m", "zhub_workers.compute.sizes", str(path), *([] if rank is None else [str(rank)])]
    counted = subprocess.run(command, capture_output=True, text=True)
    if counted.returncode < 0:
        raise UnavailableError(f"{path}: counting the model was ended by signal {-counted.returncode}.")
    if counted.returncode:
        raise UnsupportedModelError(counted.stderr.strip().splitlines()[-1])
    return ModelSizes.model_validate_json(counted.stdout)
