"""``zhub experts export`` and ``import``: what is fetched, how exact it is said to be, and what is sent."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_examples import EXPERT

Run = Callable[..., int]
CONTENT = {"adapter_config.json": b"{}", "rank-8/adapter_model.safetensors": b"weights"}
QUEUED: dict[str, Any] = {
    "id": "exp-1", "object": "expert_export", "created_at": 1, "finished_at": None, "status": "queued", "error": None,
    "cluster": "default", "model": EXPERT, "digest": "d", "base_model": "tiny", "format": "lora", "rank": None,
    "files": None, "facts": None,
}  # fmt: skip
ERROR = {"weights": 0.25, "logits": 0.3, "mean_kl": 0.01, "max_kl": 0.5}


def finished(content: dict[str, bytes], **fields: Any) -> dict[str, Any]:
    files = [
        {"name": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in content.items()
    ]
    return QUEUED | {"status": "succeeded", "files": files, "facts": {"rank": 8, "error": ERROR}} | fields


def serve(api: Any, content: dict[str, bytes], **fields: Any) -> None:
    api.add("POST", "/v1/expert_exports", QUEUED)
    api.add("GET", "/v1/expert_exports/exp-1", finished(content, **fields))
    for name, data in content.items():
        api.add("GET", f"/v1/expert_exports/exp-1/files/{name}", data)


def test_a_folder_is_fetched_and_its_error_told(api: Any, zhub: Run, tmp_path: Path, capsys: Any) -> None:
    serve(api, CONTENT)
    target = tmp_path / "lora"
    assert zhub("experts", "export", EXPERT, "--to", str(target), "--format", "lora", "--rank", "8") == 0
    assert {
        str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*.*") if path.is_file()
    } == CONTENT
    shown = capsys.readouterr()
    assert shown.out.strip() == str(target)
    assert (
        "Rank 8: 0.25 of the change is left out. On a few prompts the logits are off by 0.3" in shown.err
        and "A higher --rank comes nearer" in shown.err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_one_file_is_fetched_as_a_file(api: Any, zhub: Run, tmp_path: Path) -> None:
    serve(api, {"summer.zhub": b"tar"}, format="zhub", facts={"tensors": 2})
    target = tmp_path / "kept.zhub"
    assert zhub("experts", "export", EXPERT, "--to", str(target), "--format", "zhub") == 0
    assert target.read_bytes() == b"tar" and list(tmp_path.iterdir()) == [target]


def test_other_bytes_leave_nothing_behind(api: Any, zhub: Run, tmp_path: Path, capsys: Any) -> None:
    serve(api, CONTENT)
    api.add("GET", "/v1/expert_exports/exp-1/files/adapter_config.json", b"[]")
    assert zhub("experts", "export", EXPERT, "--to", str(tmp_path / "lora"), "--format", "lora") == 1
    assert "adapter_config.json" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_file_that_would_lie_elsewhere_is_refused(api: Any, zhub: Run, tmp_path: Path, capsys: Any) -> None:
    serve(api, {"../evil": b"x"})
    assert zhub("experts", "export", EXPERT, "--to", str(tmp_path / "a" / "lora"), "--format", "lora") == 1
    assert "cannot lie in its directory" in capsys.readouterr().err and not list(tmp_path.rglob("evil"))


def test_what_is_there_already_is_not_written_over(api: Any, zhub: Run, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    for target in (tmp_path, tmp_path / "kept"):
        assert zhub("experts", "export", EXPERT, "--to", str(target), "--format", "lora") == 5
    assert api.requests == [] and (tmp_path / "kept").read_text() == "mine"


def test_one_that_failed_says_why(api: Any, zhub: Run, tmp_path: Path, capsys: Any) -> None:
    api.add("POST", "/v1/expert_exports", QUEUED)
    error = {"code": "unsupported_adapter", "message": "As PSOFT the version takes 1.6 GB.", "param": "format"}
    api.add("GET", "/v1/expert_exports/exp-1", QUEUED | {"status": "failed", "error": error})
    assert zhub("experts", "export", EXPERT, "--to", str(tmp_path / "p"), "--format", "psoft") == 7
    assert "takes 1.6 GB" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a tar"])
def test_a_file_that_is_no_expert_is_refused_before_anything_is_sent(
    api: Any, zhub: Run, tmp_path: Path, capsys: Any, content: bytes
) -> None:
    (tmp_path / "x.zhub").write_bytes(content)
    assert zhub("experts", "import", str(tmp_path / "x.zhub")) == 1
    assert "cannot be read as an exported expert" in capsys.readouterr().err and api.requests == []
