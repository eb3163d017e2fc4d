"""Verify a version that was pulled, without a server: its files, the signed statement, the publisher's public keys."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zhub import attestation
from zhub.answering import SigningKey
from zhub.attestation import ATTESTATION_FILE
from zhub.errors import ArtifactError, InvalidRequestError
from zhub.manifest import MANIFEST_FILE, sha256_file

KEYS = TypeAdapter(list[SigningKey])


def read_keys(path: Path) -> list[SigningKey]:
    """The public keys of a file as ``zhub experts keys --json`` prints it. Raises InvalidRequestError."""
    try:
        return KEYS.validate_python(json.loads(path.read_bytes()))
    except (ValidationError, ValueError) as exc:
        raise InvalidRequestError(
            f"{path} has no public keys as `zhub experts keys --json` prints them: {exc}"
        ) from exc


def verify(directory: Path, keys: Sequence[SigningKey]) -> dict[str, Any]:
    """The statement of a version in a directory, once its files are what was signed.

    Raises:
        ArtifactError: the message names the file, the statement, the signature or the key that was changed.
    """
    path, name = directory / ATTESTATION_FILE, str(directory)
    if not path.is_file():
        raise ArtifactError(f"{name}: it has no {ATTESTATION_FILE}, so nobody vouches for it. Pull the version again.")
    signed = attestation.verify(attestation.read_envelope(path.read_bytes(), name), keys, name)
    listed = [entry["name"] for entry in signed["subject"]]
    if MANIFEST_FILE not in listed or any(Path(file).name != file for file in listed):
        raise ArtifactError(f"{name}: its statement is of no version of an expert.")
    found = {file: sha256_file(directory / file) for file in listed if (directory / file).is_file()}
    attestation.check_subject(signed, found, name, whole=True)
    return signed
