"""The manifest: one canonical document, named by its digest."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from zhub.manifest import CHUNK_BYTES, FileEntry, Manifest, canonical_json, file_entry, sha256_file

FIELDS: dict[str, Any] = {
    "base_model": "tiny",
    "base_source": "made here",
    "weights_fingerprint": "w",
    "basis_fingerprint": "b",
    "dataset_digest": "d",
    "validation_digest": None,
    "job_id": "j",
    "fence": 1,
    "recipe": "supervised",
    "hyperparameters": {"n_steps": 3, "learning_rate": 0.02},
    "grader": None,
    "seed": 1,
    "code_version": "0",
    "hardware": "cpu",
    "best_step": 1,
    "steps": 3,
    "parameters": 9,
    "evaluations": [
        {
            "split": "test",
            "base": {"mean": 0.1, "low": 0.0, "high": 0.2, "n": 10},
            "expert": {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 10},
            "p_value": 0.01,
        }
    ],
    "parent_digest": None,
    "files": [{"name": "z.safetensors", "size_bytes": 3, "sha256": "0" * 64}],
}

texts = st.text(st.characters(codec="utf-8"))
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def test_the_digest_is_the_sha256_of_the_stored_bytes() -> None:
    manifest = Manifest.model_validate(FIELDS)
    assert manifest.digest == hashlib.sha256(manifest.canonical()).hexdigest()


def test_a_manifest_read_back_from_its_bytes_has_the_same_digest() -> None:
    manifest = Manifest.model_validate(FIELDS)
    assert Manifest.model_validate_json(manifest.canonical()).digest == manifest.digest


def test_a_manifest_read_back_through_a_database_has_the_same_digest() -> None:
    manifest = Manifest.model_validate(FIELDS)
    # JSONB keeps no order of keys.
    shuffled = dict(reversed(json.loads(json.dumps(manifest.model_dump(mode="json"))).items()))
    assert Manifest.model_validate(shuffled).digest == manifest.digest


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_no_field_can_change_without_the_digest(field: str) -> None:
    manifest = Manifest.model_validate(FIELDS)
    other = {
        "hyperparameters": {"n_steps": 4, "learning_rate": 0.02},
        "evaluations": [],
        "files": [],
        "grader": {"type": "x"},
        **{name: "other" for name in ("validation_digest", "parent_digest")},
    }
    value = FIELDS[field]
    changed = other.get(field, value + 1 if isinstance(value, int) else f"{value}x")
    assert Manifest.model_validate(FIELDS | {field: changed}).digest != manifest.digest


@pytest.mark.parametrize("field", sorted(set(FIELDS)))
def test_every_field_is_needed(field: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({name: value for name, value in FIELDS.items() if name != field})


def test_a_field_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(FIELDS | {"surprise": 1})


@given(json_values)
def test_canonical_json_says_what_json_says(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(texts, st.integers()))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_canonical_json_has_no_space_and_no_escape_that_it_can_do_without() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_a_file_is_hashed_whole_whatever_its_size(tmp_path: Path, size: int) -> None:
    content = bytes(n % 251 for n in range(size))
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_an_entry_describes_its_file(tmp_path: Path) -> None:
    (tmp_path / "z.safetensors").write_bytes(b"abc")
    expected = FileEntry(name="z.safetensors", size_bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
    assert file_entry(tmp_path / "z.safetensors") == expected


def test_a_file_is_found_by_its_name() -> None:
    assert Manifest.model_validate(FIELDS).file("z.safetensors").size_bytes == 3


def test_what_was_mixed_is_part_of_the_digest_and_nothing_of_it_is_written_of_what_was_trained() -> None:
    trained = Manifest.model_validate(FIELDS)
    mixed = {"name": "main.summer@v1", "digest": "d", "weights": {"all": 0.25}}
    mixture = {"granularity": "global", "experts": [mixed], "shots": [1]}
    found = Manifest.model_validate(FIELDS | {"mixture": mixture})
    other = Manifest.model_validate(FIELDS | {"mixture": mixture | {"experts": [mixed | {"weights": {"all": 0.5}}]}})
    assert len({trained.digest, found.digest, other.digest}) == 3
    assert b"mixture" not in trained.canonical()
    assert Manifest.model_validate_json(found.canonical()) == found
