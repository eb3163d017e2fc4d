"""One file with a whole expert version: what is packed comes out again, and nothing else does."""

import io
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from suites import manifest_of

from zhub.errors import ArtifactError, DigestMismatchError
from zhub.expert_file import CONTRACT_FILE, PROBE_FILE, Contract, ContractBase, pack, unpack
from zhub.manifest import MANIFEST_FILE, Z_FILE, file_entry

Entries = list[tuple[str, bytes]]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A version as one file."""
    directory = tmp_path / "version"
    directory.mkdir()
    (directory / Z_FILE).write_bytes(b"multipliers")
    (directory / PROBE_FILE).write_bytes(b"answers")
    manifest = manifest_of(uuid.uuid4(), files=[file_entry(directory / Z_FILE)])
    (directory / MANIFEST_FILE).write_bytes(manifest.canonical())
    contract = Contract(
        name="main.summer@v1",
        digest=manifest.digest,
        kind="svf",
        base=ContractBase(
            name="tiny",
            hub_id=None,
            hub_revision=None,
            weights_fingerprint=manifest.weights_fingerprint,
            basis_fingerprint=manifest.basis_fingerprint,
        ),
        shapes={"a": [4]},
        files=[file_entry(directory / name) for name in (MANIFEST_FILE, Z_FILE, PROBE_FILE)],
    )
    pack(tmp_path / "version.zhub", contract, directory)
    return tmp_path / "version.zhub"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def entries(file: Path) -> Entries:
    with tarfile.open(file) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def rewritten(file: Path, change: Callable[[Entries], Entries]) -> Path:
    changed = change(entries(file))
    with tarfile.open(file, "w") as archive:
        for name, content in changed:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def test_what_was_packed_comes_out_again(packed: Path, out: Path) -> None:
    contract = unpack(packed, out)
    assert (contract.name, contract.shapes) == ("main.summer@v1", {"a": [4]})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == dict(entries(packed)[1:])
    assert entries(packed)[0][0] == CONTRACT_FILE


def without_last(them: Entries) -> Entries:
    return them[:-1]


def with_another(them: Entries) -> Entries:
    return [*them, ("../evil", b"x")]


def twice(them: Entries) -> Entries:
    return [*them, them[-1]]


def contract_last(them: Entries) -> Entries:
    return [*them[1:], them[0]]


def of_another_length(them: Entries) -> Entries:
    return [(name, content + b"x" if name == Z_FILE else content) for name, content in them]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_last, f"lacks '{PROBE_FILE}'"),
        (with_another, r"'\.\./evil' is not as"),
        (twice, f"'{PROBE_FILE}' is not as"),
        (contract_last, "does not begin with"),
        (of_another_length, f"'{Z_FILE}' is not as"),
        (lambda them: [(CONTRACT_FILE, b"{}"), *them[1:]], "is none of this release"),
        (lambda them: [(CONTRACT_FILE, them[0][1].replace(b'"z.safetensors"', b'"../z"')), *them[1:]], "a path"),
        (lambda them: [(CONTRACT_FILE, them[0][1].replace(b'"weights_fingerprint":"', b'"weights_fingerprint":"x')),
                       *them[1:]], "name different bases"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_its_contract_says_is_refused(packed: Path, out: Path, change: Any, told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        unpack(rewritten(packed, change), out)


def test_other_bytes_are_refused_by_name_and_digest(packed: Path, out: Path) -> None:
    def flipped(them: Entries) -> Entries:
        return [(name, b"multipliars" if name == Z_FILE else content) for name, content in them]

    with pytest.raises(DigestMismatchError, match=Z_FILE):
        unpack(rewritten(packed, flipped), out)


@pytest.mark.parametrize("length", [0, 100, 512, 700])
def test_a_file_that_is_cut_short_is_refused(packed: Path, out: Path, length: int) -> None:
    packed.write_bytes(packed.read_bytes()[:length])
    with pytest.raises(ArtifactError):
        unpack(packed, out)


def test_a_link_is_refused(packed: Path, out: Path) -> None:
    them = entries(packed)
    with tarfile.open(packed, "w") as archive:
        info = tarfile.TarInfo(CONTRACT_FILE)
        info.size = len(them[0][1])
        archive.addfile(info, io.BytesIO(them[0][1]))
        link = tarfile.TarInfo(MANIFEST_FILE)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ArtifactError, match="is not as"):
        unpack(packed, out)
