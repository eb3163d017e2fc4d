"""``zhub experts`` on the life of a version: what is asked of the API, and what is shown."""

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import api_double
import pytest
from api_examples import EXPERT, MANIFEST

from zhub import attestation

Run = Callable[..., int]
STATE, NEEDS = f"/v1/experts/{EXPERT}/state", f"/v1/experts/{EXPERT}/needs"
REQUEST = {
    "id": "areq-1",
    "object": "alias.request",
    "created_at": 1_700_000_000,
    "alias": "default.sorting@prod",
    "version": EXPERT,
    "expected": None,
    "share": None,
    "promotion": None,
    "by": "key-1",
    "person": "key-1",
    "reason": "better",
    "status": "open",
    "expires_at": 1_700_600_000,
    "decided_at": None,
    "decided_by": None,
    "decided_because": None,
}
NEED = {"id": "default.sorting@prod", "kind": "alias", "needed": EXPERT, "sentence": "'@prod' points to it."}
FILE = "file suite.jsonl v1 (file-1)"
LINEAGE = {
    "id": EXPERT,
    "nodes": [
        {"id": "file-1", "kind": "file", "name": "suite.jsonl v1", "state": "deleted", "digest": "d"},
        {"id": "ftjob-1", "kind": "fine-tuning job", "name": "ftjob-1", "state": "succeeded", "digest": None},
        {"id": EXPERT, "kind": "version", "name": EXPERT, "state": "ready", "digest": "d"},
        {"id": "eval-1", "kind": "evaluation", "name": "suite.jsonl, mean 0.5", "state": "succeeded", "digest": None},
    ],
    "edges": [
        {"from": "file-1", "to": "ftjob-1", "relation": "was trained on by"},
        {"from": "ftjob-1", "to": EXPERT, "relation": "published"},
        {"from": EXPERT, "to": "eval-1", "relation": "measured by"},
    ],
    "truncated": True,
}


@pytest.fixture(autouse=True)
def life(api: Any) -> None:
    version = api.answers["GET", f"/v1/experts/{EXPERT}"]
    api.add("PUT", STATE, version | {"state": "deprecated", "successor": "default.sorting@v2"})
    api.add("GET", NEEDS, api_double.page([NEED]))
    api.add("DELETE", f"/v1/experts/{EXPERT}", {"id": EXPERT, "deleted": True})
    api.add("POST", "/v1/alias_requests/areq-1/decision", REQUEST | {"status": "approved"})
    api.add("GET", "/v1/alias_requests", api_double.page([REQUEST]))
    api.add("GET", f"/v1/lineage/{EXPERT}", LINEAGE)


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (("deprecate", EXPERT, "--successor", "default.sorting@v2"), {"state": "deprecated", "detach": None}),
        (("yank", EXPERT, "--reason", "it leaks", "--detach"), {"state": "yanked", "reason": "it leaks"}),
        (("restore", EXPERT), {"state": "ready"}),
    ],
)
def test_a_state_is_asked_for_and_the_successor_told(
    arguments: tuple[str, ...], body: dict[str, Any], api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("experts", *arguments) == 0
    (sent,) = api.bodies("PUT", STATE)
    assert {name: sent.get(name) for name in body} == body
    assert f"{EXPERT} is deprecated. Use default.sorting@v2." in capsys.readouterr().err


def test_a_version_that_is_deprecated_or_damaged_says_so(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    version = api.answers["GET", f"/v1/experts/{EXPERT}"]
    said = {"state": "deprecated", "state_reason": "Old.", "successor": "default.sorting@v2", "damage": "z is missing."}
    api.add("GET", f"/v1/experts/{EXPERT}", version | said)
    api.add("GET", "/v1/experts", api_double.page([version | said]))
    assert zhub("experts", "show", EXPERT) == zhub("experts", "ls") == 0
    out = capsys.readouterr().out
    assert "deprecated: Old. Use default.sorting@v2." in out and "z is missing." in out
    assert "@prod deprecated damaged" in out


def test_what_needs_a_version_is_shown_before_it_is_detached(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("experts", "needs", EXPERT, "--action", "yank") == 0
    assert api.requests[-1].url.params["action"] == "yank"
    assert "alias  default.sorting@prod  default.sorting@v1" in capsys.readouterr().out
    assert zhub("experts", "rm", EXPERT, "--detach", "--yes") == 0
    assert api.requests[-1].url.params["detach"] == "true"


def test_a_promotion_of_a_protected_alias_says_who_has_to_approve_it(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("PUT", "/v1/experts/default.sorting/aliases/prod", REQUEST)
    assert zhub("experts", "promote", EXPERT) == 0
    told = capsys.readouterr().err
    assert "areq-1 waits until" in told and "somebody other than key-1" in told
    assert zhub("experts", "requests", "--status", "open") == 0
    assert "areq-1" in capsys.readouterr().out and api.requests[-1].url.params["status"] == "open"
    assert zhub("experts", "approve", "areq-1", "--reason", "tried") == 0
    assert api.bodies("POST", "/v1/alias_requests/areq-1/decision") == [{"decision": "approve", "reason": "tried"}]
    assert f"default.sorting@prod points to {EXPERT}." in capsys.readouterr().err


def test_lineage_is_two_trees(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "lineage", EXPERT) == 0
    shown = capsys.readouterr()
    assert [line.strip("└─ ") for line in shown.out.splitlines()] == [
        f"version {EXPERT}: comes from",
        "fine-tuning job ftjob-1 published it",
        f"{FILE} [deleted] was trained on by it",
        f"version {EXPERT}: came of it",
        "measured by evaluation suite.jsonl, mean 0.5 (eval-1)",
    ]
    assert "There is more than is shown." in shown.err


def test_a_directory_is_verified_without_the_api(
    api: Any, zhub: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "pulled"
    directory.mkdir()
    content = {"manifest.json": MANIFEST.canonical()}
    for file in MANIFEST.files:
        content[file.name] = api.answers["GET", f"/v1/experts/{EXPERT}/files/{file.name}"]
    for name, written in content.items():
        (directory / name).write_bytes(written)
    private_key = attestation.private_key(attestation.PLATFORM, 1, "x" * 32)
    signed = attestation.statement(MANIFEST, digest=MANIFEST.digest, published_at=datetime.now(UTC))
    envelope = attestation.sign(private_key, signed)
    (directory / "attestation.json").write_text(envelope.model_dump_json())
    raw = private_key.public_key().public_bytes_raw()
    key = {"key_id": hashlib.sha256(raw).hexdigest(), "public_key": base64.b64encode(raw).decode()}
    (directory / "keys.json").write_text(json.dumps([key]))
    assert zhub("experts", "verify", str(directory)) == 0
    assert "all signed and unchanged" in capsys.readouterr().err and api.requests == []
    (directory / MANIFEST.files[0].name).write_bytes(b"other")
    assert zhub("experts", "verify", str(directory)) == 1
    assert f"{MANIFEST.files[0].name}: it was changed" in capsys.readouterr().err
