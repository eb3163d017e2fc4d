"""Promotions, and pretended workers that measure for them."""

from collections.abc import Callable
from typing import Any

import pytest
from promoting import advance
from sqlalchemy import Engine
from suites import GRADER, right_in, run

from zhub.specs import EvaluateSpec
from zhub.storage.directory import DirectoryStore

Ask = Callable[..., Any]


@pytest.fixture
def promote(ask: Ask, suite_file: str) -> Ask:
    """POST /v1/promotions with one suite."""

    def post(model: str, min_mean: float | None = None, **options: Any) -> Any:
        suite = {"file": suite_file, "grader": GRADER, "min_mean": min_mean}
        return ask("post", "/promotions", {"model": model, "suites": [suite]} | options)

    return post


@pytest.fixture
def work(system_engine: Engine, store: DirectoryStore) -> Callable[..., None]:
    """Let gates and pretended workers do what there is to do; ``right`` of the 40 answers of each z are right."""

    def until_nothing_is_left(base: int = 10, **right: int) -> None:
        def rewards(spec: EvaluateSpec) -> list[float]:
            return right_in(base if spec.z is None else right[spec.z.sha256[:2]])

        for _ in range(10):
            advance(system_engine)
            if not run(system_engine, store, rewards):
                return
        raise AssertionError("there is no end to it")

    return until_nothing_is_left
