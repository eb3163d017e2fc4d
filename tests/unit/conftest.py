"""Fixtures of the unit tests. Nothing heavy is imported until a test asks for a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The module ``tests/support/tiny_models.py``."""
    import tiny_models

    return tiny_models


@pytest.fixture(scope="session")
def model_directory(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a tiny ``llama``, ``gpt2``, ``neox`` or mixture of experts, written once per run; copy it before
    changing it."""
    made: dict[str, Path] = {}

    def directory(kind: str) -> Path:
        if kind not in made:
            import tiny_moe

            save = tiny_moe.save_tiny_moe if kind in tiny_moe.FAMILIES else tiny.save_tiny
            made[kind] = save(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return directory


@pytest.fixture(scope="session")
def load_adapted(
    model_directory: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """A freshly loaded tiny model with its basis, by kind; the decomposition is made once per run."""
    from zhub_workers.model.adapted import AdaptedModel
    from zhub_workers.model.base_model import load_base_model
    from zhub_workers.model.basis import decompose_base, load_basis

    made: dict[str, tuple[Path, str]] = {}

    def load(kind: str) -> AdaptedModel:
        base = load_base_model(model_directory(kind))
        if kind not in made:
            directory = tmp_path_factory.mktemp(f"{kind}-basis")
            made[kind] = (directory, decompose_base(base, directory))
        return AdaptedModel(base, load_basis(*made[kind]))

    return load
