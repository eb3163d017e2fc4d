"""An expert version as one file, with all that another zhub needs to check it: a tar archive, `<name>.zhub`.

Its first entry is ``expert.json``, the contract, which lists the others with their digests. The bytes depend on nothing
but the content. Whoever has no zhub unpacks it with ``tar``.
"""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from zhub.errors import ArtifactError, DigestMismatchError
from zhub.manifest import CHUNK_BYTES, MANIFEST_FILE, Z_FILE, FileEntry, Manifest, canonical_json, sha256_file

SUFFIX = ".zhub"
CONTRACT_FILE = "expert.json"
PROBE_FILE = "probe.safetensors"
MAX_CONTRACT_BYTES = 4 << 20
MAX_FILES = 32


class ContractBase(BaseModel):
    """The base model that the expert belongs to, as it is called where the file was made."""

    model_config = ConfigDict(frozen=True)
    name: str
    hub_id: str | None
    hub_revision: str | None
    weights_fingerprint: str
    basis_fingerprint: str


class Contract(BaseModel):
    """What the file holds, and what it takes to use it.

    ``digest`` is that of the version, the SHA-256 of its manifest; ``shapes`` are those of the tensors in
    ``z.safetensors``; ``files`` are all entries but this one.
    """

    model_config = ConfigDict(frozen=True)
    format: Literal["zhub-expert-1"] = "zhub-expert-1"
    name: str
    digest: str
    kind: str
    base: ContractBase
    shapes: dict[str, list[int]]
    files: list[FileEntry]

    def canonical(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


def pack(target: Path, contract: Contract, directory: Path) -> None:
    """Write the file of the contract and of what it lists, which lies in ``directory``."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        content = contract.canonical()
        archive.addfile(_entry(CONTRACT_FILE, len(content)), io.BytesIO(content))
        for file in contract.files:
            with (directory / file.name).open("rb") as opened:
                archive.addfile(_entry(file.name, file.size_bytes), opened)


def unpack(file: Path, directory: Path) -> Contract:
    """Write what the file holds into ``directory``, checked whole against its contract; nothing in it is trusted.

    Raises:
        ArtifactError: not such a file, cut short, or without a part.
        DigestMismatchError: an entry has other bytes than the contract says.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            contract = _contract(file, archive)
            listed = {entry.name: entry for entry in contract.files}
            while (member := archive.next()) is not None:
                entry = listed.pop(member.name, None)
                if entry is None or not member.isreg() or member.size != entry.size_bytes:
                    raise ArtifactError(f"{file.name}: '{member.name}' is not as {CONTRACT_FILE} lists it.")
                _extract(archive, member, entry, directory)
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise ArtifactError(f"{file.name} cannot be read as an exported expert: {exc}. Export it again.") from exc
    if listed:
        raise ArtifactError(f"{file.name} lacks '{min(listed)}', which {CONTRACT_FILE} lists. Export it again.")
    _check_manifest(file, contract, directory)
    return contract


def _contract(file: Path, archive: tarfile.TarFile) -> Contract:
    first = archive.next()
    opened = archive.extractfile(first) if first is not None and first.name == CONTRACT_FILE and first.isreg() else None
    if opened is None:
        raise ArtifactError(f"{file.name} does not begin with '{CONTRACT_FILE}': it is no exported expert.")
    content = opened.read(MAX_CONTRACT_BYTES + 1)
    try:
        if len(content) > MAX_CONTRACT_BYTES:
            raise ValueError(f"more than {MAX_CONTRACT_BYTES:,} bytes")
        contract = Contract.model_validate_json(content)
    except (ValidationError, ValueError) as exc:
        raise ArtifactError(f"{file.name}: {CONTRACT_FILE} is none of this release, or of a newer one: {exc}") from exc
    names = [entry.name for entry in contract.files]
    if len(names) > MAX_FILES or len({*names, CONTRACT_FILE}) != len(names) + 1:
        raise ArtifactError(f"{file.name}: {CONTRACT_FILE} lists a name twice, or more than {MAX_FILES}.")
    if any(Path(name).name != name for name in names):
        raise ArtifactError(f"{file.name}: {CONTRACT_FILE} lists a path, expected names of files.")
    for needed in (MANIFEST_FILE, Z_FILE, PROBE_FILE):
        if needed not in names:
            raise ArtifactError(f"{file.name}: {CONTRACT_FILE} lists no '{needed}'.")
    return contract


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, entry: FileEntry, directory: Path) -> None:
    opened = archive.extractfile(member)
    assert opened is not None  # it is a regular file
    digest = hashlib.sha256()
    with (directory / entry.name).open("xb") as target:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
    if digest.hexdigest() != entry.sha256:
        raise DigestMismatchError(entry.name, expected=entry.sha256, actual=digest.hexdigest())


def _check_manifest(file: Path, contract: Contract, directory: Path) -> None:
    """The manifest is that of the version, lists the files that lie beside it, and names the same base."""
    path = directory / MANIFEST_FILE
    if (actual := sha256_file(path)) != contract.digest:
        raise DigestMismatchError(MANIFEST_FILE, expected=contract.digest, actual=actual)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as exc:
        raise ArtifactError(f"{file.name}: this release cannot read its manifest; use a newer zhub. {exc}") from exc
    base = contract.base
    own = (manifest.weights_fingerprint, manifest.basis_fingerprint)
    if own != (base.weights_fingerprint, base.basis_fingerprint):
        raise ArtifactError(f"{file.name}: {CONTRACT_FILE} and {MANIFEST_FILE} name different bases.")
    beside = {entry.name: entry for entry in contract.files}
    for entry in manifest.files:
        if beside.get(entry.name) != entry:
            raise ArtifactError(f"{file.name}: '{entry.name}' is not the file that {MANIFEST_FILE} lists.")


def _entry(name: str, size_bytes: int) -> tarfile.TarInfo:
    """Without the time, the owner and the rights of a file, which say nothing of the version."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size_bytes, 0o644
    return entry
