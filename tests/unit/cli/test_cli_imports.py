"""``zhub experts push`` and ``z``: what is sent, and what is told of the version that comes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_examples import EXPERT, MANIFEST

from zhub.manifest import Origin, Probe

Run = Callable[..., int]
IMPORT = {
    "id": "imp-1",
    "object": "expert_import",
    "created_at": 1_700_000_000,
    "finished_at": None,
    "status": "queued",
    "error": None,
    "cluster": "default",
    "name": "moved",
    "base_model": "zhub-tiny",
    "base_check": "The adapter does not say which base it was made on.",
    "dataset": None,
    "version": None,
}


def version(max_kl: float, *files: str) -> dict[str, Any]:
    origin = Origin(
        format="peft",
        imported_by="key-1",
        base_check="Nothing is known.",
        config={},
        files=[],
        routing_dataset=None,
        probe=Probe(prompts=4, tokens=40, mean_kl=max_kl / 2, max_kl=max_kl),
    )
    manifest = MANIFEST.model_copy(
        update={"origin": origin, "files": [file for file in MANIFEST.files if file.name in files]}
    )
    return {
        "id": EXPERT, "created_at": 1, "expert": "moved", "version": 1, "base_model": "zhub-tiny", "digest": "d",
        "size_bytes": 1, "job": "imp-1", "uri": "u", "feedback": {"count": 0, "mean_score": None},
        "manifest": manifest.model_dump(mode="json"),
    }  # fmt: skip


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_a_lora_is_sent_and_its_version_is_printed(api: Any, zhub: Run, lora: Path, capsys: Any) -> None:
    api.add("POST", "/v1/expert_imports", IMPORT)
    api.add(
        "GET", "/v1/expert_imports/imp-1", IMPORT | {"status": "succeeded", "version": version(0.3, "z.safetensors")}
    )
    assert zhub("experts", "push", "moved", str(lora), "--base", "zhub-tiny", "--cluster", "big") == 0
    sent = api.requests[0].content.decode(errors="replace")
    for part in ('name="name"\r\n\r\nmoved', 'name="base_model"\r\n\r\nzhub-tiny', 'name="cluster"\r\n\r\nbig'):
        assert part in sent
    assert sent.count('name="files"; filename="adapter_') == 2 and "README" not in sent
    shown = capsys.readouterr()
    assert shown.out.strip() == EXPERT
    assert "does not say which base" in shown.err and "0.15 nats a token" in shown.err
    assert "answers by its name only" in shown.err


def test_one_that_changes_nothing_is_told(api: Any, zhub: Run, lora: Path, capsys: Any) -> None:
    api.add("POST", "/v1/expert_imports", IMPORT)
    made = version(0.0, "z.safetensors", "routing.safetensors")
    api.add("GET", "/v1/expert_imports/imp-1", IMPORT | {"status": "succeeded", "version": made})
    assert zhub("experts", "push", "moved", str(lora), "--base", "zhub-tiny") == 0
    told = capsys.readouterr().err
    assert "It changes nothing" in told and "by its name only" not in told


def test_one_that_failed_says_why(api: Any, zhub: Run, lora: Path, capsys: Any) -> None:
    error = {"code": "unsupported_adapter", "message": "The adapter cannot be imported: NaN.", "param": "files"}
    api.add("POST", "/v1/expert_imports", IMPORT)
    api.add("GET", "/v1/expert_imports/imp-1", IMPORT | {"status": "failed", "error": error})
    assert zhub("experts", "push", "moved", str(lora), "--base", "zhub-tiny") == 7
    assert "cannot be imported: NaN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "told"),
    [(["adapter_config.json", "adapter_model.bin"], "is a pickle"), (["a.txt"], "expected the directory")],
)
def test_a_directory_that_is_no_expert_is_refused_before_anything_is_sent(
    api: Any, zhub: Run, tmp_path: Path, capsys: Any, files: list[str], told: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("")
    assert zhub("experts", "push", "moved", str(tmp_path), "--base", "zhub-tiny") == 1
    assert told in capsys.readouterr().err and api.requests == []


def test_strengths_are_shown_by_layer_and_against_another(api: Any, zhub: Run, capsys: Any) -> None:
    strength = {"share": 0.25, "distance": 1.5}
    answer = {
        "model": EXPERT, "kind": "svf", "shown": "The change.", **strength,
        "layers": [{"layer": 3, "matrices": 7, **strength}, {"layer": None, "matrices": 1, **strength}],
        "matrices": [{"name": "layers.3.up", "layer": 3, **strength}],
        "similar": [{"model": "default.other@v1", "cosine": -0.5}],
        "against": {"model": "default.old@v1", "cosine": 0.9,
                    "matrices": [{"name": "layers.3.up", "share": 0.1, "cosine": None}]},
    }  # fmt: skip
    api.add("GET", f"/v1/experts/{EXPERT}/z", answer)
    assert zhub("experts", "z", EXPERT, "--against", "default.old@v1") == 0
    assert api.requests[-1].url.params["against"] == "default.old@v1"
    capsys.readouterr()
    assert zhub("experts", "z", EXPERT) == 0
    assert "against" not in api.requests[-1].url.params
    assert zhub("experts", "z", EXPERT, "--against", "default.old@v1") == 0
    shown = capsys.readouterr()
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["3", "7", "25.0", "%", "1.5"] in rows and ["-", "1", "25.0", "%", "1.5"] in rows
    assert any(row[:1] == ["default.other@v1"] and row[-1] == "-0.500" for row in rows)
    assert "+0.900" in shown.err and any(row[:1] == ["layers.3.up"] for row in rows)
