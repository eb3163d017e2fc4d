"""``GET /v1/experts/{name}/z``: strengths by layer and matrix, what a version is like, and how two differ."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openai
import pytest
from api_requests import refused

from zhub.manifest import CHANGE_FILE, ROUTING_FILE, STRENGTH_FILE, Z_FILE, FileEntry, MatrixStrength, Strengths
from zhub.registry import strengths
from zhub.storage.directory import DirectoryStore

Client = openai.OpenAI
UP, DOWN, HEAD = "model.layers.0.mlp.up", "model.layers.1.mlp.down", "head"
WEIGHT_NORMS = {UP: 10.0, DOWN: 5.0, HEAD: 1.0}
LAYERS = {UP: 0, DOWN: 1, HEAD: None}


def safetensors(vectors: Mapping[str, list[float]]) -> bytes:
    header, content = {}, b""
    for name, values in vectors.items():
        raw = np.asarray(values, "<f4").tobytes()
        offsets = [len(content), len(content) + len(raw)]
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": offsets}
        content += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def strength_file(vectors: Mapping[str, list[float]]) -> bytes:
    return Strengths(
        matrices=[
            MatrixStrength(
                name=name,
                layer=LAYERS[name],
                norm=float(np.linalg.norm(values)),
                weight_norm=WEIGHT_NORMS[name],
                distance=float(np.abs(values).sum()),
            )
            for name, values in vectors.items()
        ]
    ).canonical()


@pytest.fixture
def version(client: Client, publish: Callable[..., str], store: DirectoryStore) -> Callable[..., str]:
    """Publish a version that changes matrices by these vectors."""

    def make(suffix: str, vectors: Mapping[str, list[float]], *, kind: str = "svf", **changed: bytes) -> str:
        contents = {Z_FILE: b"z", ROUTING_FILE: b"r", STRENGTH_FILE: strength_file(vectors)}
        contents |= {CHANGE_FILE: safetensors(vectors)} if kind == "svf" else {}
        files = [
            FileEntry(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        ]
        name = publish(suffix, files=files, hyperparameters={"n_steps": 1, "adapter": kind})
        shown: Any = client.get(f"/experts/{name}", cast_to=object)
        for file, content in (contents | {"change.safetensors": changed["change"]} if changed else contents).items():
            store.put(f"{shown['uri']}/{file}", io.BytesIO(content))
        return name

    return make


def show(client: Client, name: str, **query: str) -> Any:
    return client.get(f"/experts/{name}/z", options={"params": query}, cast_to=object)


def test_strengths_are_shares_of_the_weights_by_layer_and_matrix(client: Client, version: Callable[..., str]) -> None:
    shown = show(client, version("summer", {UP: [3.0, 4.0], DOWN: [0.0, 1.0], HEAD: [0.5]}))
    assert (shown["model"], shown["kind"]) == ("main.summer@v1", "svf")
    assert [(layer["layer"], layer["matrices"]) for layer in shown["layers"]] == [(0, 1), (1, 1), (None, 1)]
    assert [layer["share"] for layer in shown["layers"]] == pytest.approx([0.5, 0.2, 0.5])
    assert {matrix["name"]: matrix["distance"] for matrix in shown["matrices"]} == {UP: 7.0, DOWN: 1.0, HEAD: 0.5}
    assert shown["share"] == pytest.approx((25 + 1 + 0.25) ** 0.5 / (100 + 25 + 1) ** 0.5)
    assert (shown["similar"], shown["against"]) == ([], None)


def test_it_is_compared_with_the_others_of_its_basis_the_most_alike_first(
    client: Client, version: Callable[..., str]
) -> None:
    version("opposite", {UP: [-1.0, 0.0]})
    version("alike", {UP: [1.0, 1.0]})
    version("lora", {UP: [1.0, 1.0]}, kind="lora")
    similar = show(client, version("summer", {UP: [2.0, 0.0]}))["similar"]
    assert [entry["model"] for entry in similar] == ["main.alike@v1", "main.opposite@v1"]
    assert [entry["cosine"] for entry in similar] == pytest.approx([0.5**0.5, -1.0])


def test_the_difference_of_two_versions_is_told_matrix_by_matrix(client: Client, version: Callable[..., str]) -> None:
    own, other = version("summer", {UP: [3.0, 0.0]}), version("winter", {UP: [0.0, 4.0], DOWN: [1.0]})
    against = show(client, own, against=other)["against"]
    assert against["model"] == other and against["cosine"] == pytest.approx(0.0)
    shares = {matrix["name"]: matrix["share"] for matrix in against["matrices"]}
    assert shares == pytest.approx({UP: 5.0 / 10.0, DOWN: 1.0 / 5.0})


def test_of_another_kind_norms_are_shown_and_said_to_be_all(client: Client, version: Callable[..., str]) -> None:
    own, other = version("moved", {UP: [3.0, 4.0]}, kind="lora"), version("summer", {UP: [1.0, 1.0]})
    shown = show(client, own, against=other)
    assert "There is no z" in shown["shown"] and shown["matrices"][0]["share"] == pytest.approx(0.5)
    assert shown["against"] == {"model": other, "cosine": None, "matrices": []} and shown["similar"] == []


def test_a_version_that_was_never_measured_says_what_to_do(client: Client, publish: Callable[..., str]) -> None:
    name = publish()
    error = refused(lambda: show(client, name))
    assert error.status_code == 409 and "import it again" in error.message


def test_vectors_that_are_too_large_are_not_compared(
    client: Client, version: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = version("summer", {UP: [3.0, 0.0]}), version("winter", {UP: [0.0, 4.0]})
    monkeypatch.setattr(strengths, "MAX_CHANGE_BYTES", 10)
    shown = show(client, own, against=other)
    assert shown["similar"] == [] and shown["against"]["cosine"] is None and shown["share"] > 0


def test_changed_bytes_are_never_shown(client: Client, version: Callable[..., str]) -> None:
    name = version("summer", {UP: [3.0, 0.0]}, change=safetensors({UP: [9.0, 0.0]}))
    assert refused(lambda: show(client, name)).status_code == 500


def test_a_name_that_is_no_version_is_not_found(client: Client, version: Callable[..., str]) -> None:
    name = version("summer", {UP: [3.0, 0.0]})
    assert refused(lambda: show(client, name, against="main.none@v1")).status_code == 404
    assert refused(lambda: show(client, "main.summer@v9")).status_code == 404
