"""``zhub base-models show``, against an API made of a dictionary."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from zhub.registry.limitations import TITLES

Run = Callable[..., int]

BASE = {
    "id": "hybrid",
    "object": "base_model",
    "created_at": 0,
    "status": "ready",
    "error": None,
    "is_default": False,
    "private": False,
    "cluster": "default",
    "files": ["config.json"],
    "hub_id": None,
    "hub_revision": None,
    "weights_fingerprint": "w",
    "basis_fingerprint": "b",
    "details": {
        "architecture": "JambaForCausalLM",
        "parameters": 4000,
        "adapted_parameters": 3000,
        "limitations": [
            {"name": "serve_only", "reason": "no gradient"},
            {"name": "no_padding", "reason": "logits differ"},
        ],
    },
}


def test_a_base_is_shown_with_its_limitations_and_the_share_that_is_adapted(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("GET", "/v1/base_models/hybrid", BASE)
    assert zhub("base-models", "show", "hybrid") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"limitation {TITLES['serve_only']} (no gradient)" in shown
    assert f"limitation {TITLES['no_padding']} (logits differ)" in shown
    assert "adapted_parameters 3000 (75.0%)" in shown


def test_a_base_of_an_earlier_release_is_shown_without_them(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("GET", "/v1/base_models/hybrid", BASE | {"details": {"parameters": 4000}})
    assert zhub("base-models", "show", "hybrid") == 0
    assert "limitation" not in capsys.readouterr().out


def test_the_limitations_are_in_the_json(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("GET", "/v1/base_models/hybrid", BASE)
    assert zhub("base-models", "show", "hybrid", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [limitation["name"] for limitation in shown["details"]["limitations"]] == ["serve_only", "no_padding"]
