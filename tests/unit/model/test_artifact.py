"""The files of an expert: reproducible bytes, and nothing trusted when they are read."""

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zhub.errors import ArtifactError, BasisMismatchError, DigestMismatchError
from zhub.manifest import sha256_file
from zhub.recipes import AdapterKind
from zhub_workers.model.artifact import (
    ExpertFile,
    read_expert,
    read_routing,
    read_z,
    write_expert,
    write_routing,
    write_z,
)
from zhub_workers.model.basis import Basis
from zhub_workers.model.routing import Centroid

WRITE = """
import sys
from pathlib import Path
import torch
from zhub_workers.model.artifact import write_z
names = ["long.name.with.dots", "c.d", "a", "b"]
z = {n: torch.arange(5.0) / 7 + len(n) for n in names}
write_z(Path(sys.argv[1]), z, basis_fingerprint="f" * 64, base_model="tiny")
"""


@pytest.fixture
def basis(load_adapted: Callable[[str], Any]) -> Basis:
    found: Basis = load_adapted("llama").basis
    return found


@pytest.fixture
def z(basis: Basis) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: 1 + 0.1 * torch.randn(s.shape, generator=generator) for name, (_, s, _) in basis.factors.items()}


def test_a_z_comes_back_as_it_was_written(basis: Basis, z: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "z.safetensors"
    write_z(file, z, basis_fingerprint=basis.fingerprint, base_model="tiny")
    back = read_z(file, sha256=sha256_file(file), basis=basis)
    assert back.keys() == z.keys()
    assert all(torch.equal(back[name], z[name]) for name in z)


def test_the_same_z_gives_the_same_bytes_in_every_process_and_order(tmp_path: Path) -> None:
    z = {name: torch.arange(5.0) / 7 + len(name) for name in ["a", "b", "c.d", "long.name.with.dots"]}
    for run in range(5):
        write_z(tmp_path / f"here-{run}", z, basis_fingerprint="f" * 64, base_model="tiny")
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / "there")], check=True, env=environment)
    assert len({sha256_file(file) for file in tmp_path.iterdir()}) == 1


def test_other_bytes_than_the_digest_names_are_refused_before_anything_is_parsed(
    basis: Basis, z: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "z.safetensors"
    write_z(file, z, basis_fingerprint=basis.fingerprint, base_model="tiny")
    with pytest.raises(DigestMismatchError) as caught:
        read_z(file, sha256="0" * 64, basis=basis)
    assert caught.value.actual == sha256_file(file)


def test_a_pickle_named_z_is_refused_and_never_run(basis: Basis, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    file = tmp_path / "z.safetensors"
    for content in (pickle.dumps(Bomb()), _zip_pickle(tmp_path, Bomb())):
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match="not a safetensors file"):
            read_z(file, sha256=hashlib.sha256(content).hexdigest(), basis=basis)
    assert not (tmp_path / "exploded").exists()


def _zip_pickle(tmp_path: Path, value: object) -> bytes:
    torch.save(value, tmp_path / "saved.pt")
    return (tmp_path / "saved.pt").read_bytes()


def test_a_z_of_another_basis_is_refused(basis: Basis, z: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "z.safetensors"
    write_z(file, z, basis_fingerprint="0" * 64, base_model="tiny")
    with pytest.raises(BasisMismatchError) as caught:
        read_z(file, sha256=sha256_file(file), basis=basis)
    assert (caught.value.expected, caught.value.actual) == (basis.fingerprint, "0" * 64)


def test_a_safetensors_file_that_zhub_did_not_write_is_refused(
    basis: Basis, z: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "z.safetensors"
    for metadata in (None, {"zhub": "[]"}, {"zhub": "{"}, {"format": "pt"}):
        save_file(z, file, metadata=metadata)
        with pytest.raises(ArtifactError):
            read_z(file, sha256=sha256_file(file), basis=basis)


def test_multipliers_that_are_not_finite_are_neither_written_nor_read(
    basis: Basis, z: dict[str, Tensor], tmp_path: Path
) -> None:
    file, name = tmp_path / "z.safetensors", next(iter(z))
    broken = {**z, name: torch.full_like(z[name], float("inf"))}
    with pytest.raises(ArtifactError):
        write_z(file, broken, basis_fingerprint=basis.fingerprint, base_model="tiny")
    assert list(tmp_path.iterdir()) == []
    write_z(file, z, basis_fingerprint=basis.fingerprint, base_model="tiny")
    raw = bytearray(file.read_bytes())
    raw[-4:] = bytes.fromhex("0000807f")  # the last multiplier becomes +inf
    file.write_bytes(raw)
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        read_z(file, sha256=sha256_file(file), basis=basis)


@pytest.mark.parametrize("kind", ["frames", "core", "lora", "dora"])
def test_an_expert_of_another_kind_comes_back_with_its_settings_and_is_no_z(
    basis: Basis, tmp_path: Path, kind: AdapterKind
) -> None:
    file = tmp_path / "z.safetensors"
    written = ExpertFile(kind, {"a": torch.tensor([0.5, -2.0]), "b": torch.ones(2, 3)}, {"rank": 3})
    write_expert(file, written, basis_fingerprint=basis.fingerprint, base_model="tiny")
    back = read_expert(file, sha256=sha256_file(file), basis=basis)
    assert (back.kind, back.settings["rank"]) == (kind, 3)
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in written.tensors.items())
    with pytest.raises(ArtifactError, match=f"zhub-{kind}-1"):
        read_z(file, sha256=sha256_file(file), basis=basis)
    write_expert(file, written, basis_fingerprint="0" * 64, base_model="tiny")
    with pytest.raises(BasisMismatchError):
        read_expert(file, sha256=sha256_file(file), basis=basis)
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        write_expert(
            file, ExpertFile(kind, {"a": torch.tensor([float("nan")])}, {}), basis_fingerprint="f", base_model="t"
        )


def test_a_z_is_read_as_an_expert_of_the_kind_svf_and_checked_as_one(
    basis: Basis, z: dict[str, Tensor], tmp_path: Path
) -> None:
    file, name = tmp_path / "z.safetensors", next(iter(z))
    write_expert(file, ExpertFile("svf", z, {}), basis_fingerprint=basis.fingerprint, base_model="tiny")
    assert read_expert(file, sha256=sha256_file(file), basis=basis).kind == "svf"
    write_z(file, {name: z[name][:-1]}, basis_fingerprint=basis.fingerprint, base_model="tiny")
    with pytest.raises(BasisMismatchError, match="has shape"):
        read_expert(file, sha256=sha256_file(file), basis=basis)


def test_a_centroid_comes_back_as_it_was_written_and_only_for_its_basis(tmp_path: Path) -> None:
    file = tmp_path / "routing.safetensors"
    centroid = Centroid(torch.tensor([0.5, -1.0]), torch.tensor([[0.6, 0.8]]), torch.tensor([2.0]), 0.1, 1.375)
    write_routing(file, centroid, basis_fingerprint="a" * 64)
    back = read_routing(file, sha256=sha256_file(file), basis_fingerprint="a" * 64)
    assert torch.equal(back.mean, centroid.mean) and torch.equal(back.directions, centroid.directions)
    assert torch.equal(back.variances, centroid.variances)
    assert (back.noise, back.threshold) == (0.1, 1.375)
    with pytest.raises(BasisMismatchError):
        read_routing(file, sha256=sha256_file(file), basis_fingerprint="b" * 64)


def test_a_z_is_not_taken_for_a_centroid(basis: Basis, z: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "routing.safetensors"
    write_z(file, z, basis_fingerprint=basis.fingerprint, base_model="tiny")
    with pytest.raises(ArtifactError, match="zhub-routing-1"):
        read_routing(file, sha256=sha256_file(file), basis_fingerprint=basis.fingerprint)
